"""Published recognition heads (Genera1Z/RandSF.Q and SmoothSA): a file holds a model and the head on it, which become two runs.

    heads.save("smoothsav_r_recogn-ytvis/42.pth", "runs/published", "data/ytvis/test.lmdb", method="smoothsa", preset="ytvis")
    python -m dias_lab evaluate --run-dir runs/published --data data/ytvis
"""

from pathlib import Path

from dias_lab import reference, runs
from dias_lab.data import store as stores
from dias_lab.heads.recognition import Head, classes_of
from dias_lab.methods import checkpoint


def save(path_or_state_dict, run_dir, store, method: str = "smoothsa", preset: str = "ytvis", **fields) -> Path:
    """Write the head as a run of the task recognition, and its model as a run in the folder `model` within.

    The file numbers classes by their ids, and `store`, any of the same data set, has their names. How frequent they were in
    training is not in it, so these runs have no majority class beside them. `method`, `preset`, `fields`: see
    `reference.load`. Raises ValueError as that does, for a directory that holds a run, and for a store of more classes.
    """
    run_dir, (state, source) = runs.resolve(run_dir), reference.state_of(path_or_state_dict)
    if (run_dir / "config.json").exists():
        raise ValueError(f"{run_dir} holds a run already: choose another run directory")
    if reference.kind_of(state) != "recognition head":
        raise ValueError(f"{source} holds no recognition head on a model: names that begin with m.discov and with m.recogn")
    parts = {name: {} for name in ("discov.", "recogn.")}
    for name, value in state.items():
        start = next((start for start in parts if name.removeprefix("m.").startswith(start)), "recogn.")
        parts[start][name.replace(start, "", 1) if start == "discov." else name] = value
    shapes = [tuple(getattr(parts["recogn."].get(f"m.recogn.{name}"), "shape", ())) for name in ("0.weight", "3.bias")]
    if [len(shape) for shape in shapes] != [2, 1]:
        raise ValueError(f"{source}: m.recogn.0.weight and m.recogn.3.bias are {shapes}, and not a matrix and a vector")
    (hidden, slot_dim), (out,) = shapes
    names = classes_of(store if isinstance(store, stores.Store) else stores.open(runs.resolve(store)))
    if more := [one for one in names if one >= out - 4]:
        raise ValueError(f"{source} tells {out - 4} classes, and the store has others: {', '.join(map(str, more[:5]))}")
    model = reference.load(parts["discov."], method, preset, **fields)
    model.source = str(source)
    config = model.config.for_task("recognition", runs.short(run_dir / "model"), head_dim=hidden)
    classes = {number: names.get(number, f"no class {number}") for number in range(out - 4)}
    head = Head(config, slot_dim, classes)
    own = {name: value for name, value in head.state_dict().items() if name.startswith(("hidden.", "out."))}
    head.load_state_dict(reference.translate(parts["recogn."], own, "recognition head", source), strict=False)
    reference.save(model, run_dir / "model")
    known = {"slot_dim": slot_dim, "classes": {str(one): name for one, name in classes.items()}}
    known |= {"parent": runs.weights_hash(config.parent)}
    checkpoint.save(run_dir, 0, head, state={}, progress={"reference": model.source, "data": known})
    runs.write_json(run_dir / "metrics.json", {"steps": 0, "reference": model.source, "about": runs.about()})
    runs.write_json(run_dir / "config.json", config.to_dict())  # last: without it, this is no run
    return run_dir
