"""Published recognition heads (Genera1Z/RandSF.Q and SmoothSA): a file holds a model and the head on it, which become two runs.

    heads.save("smoothsav_r_recogn-ytvis/42.pth", "runs/published", "data/ytvis/test.lmdb", method="smoothsa", preset="ytvis")
    python -m dias_lab evaluate --run-dir runs/published --data data/ytvis
"""

from pathlib import Path

from dias_lab import reference, runs
from dias_lab.data import store as stores
from dias_lab.heads.recognition import Head, classes_of


def save(path_or_state_dict, run_dir, store, method: str = "smoothsa", preset: str = "ytvis", **fields) -> Path:
    """Write the head as a run of the task recognition, and its model as a run in the folder `model` within.

    The file numbers classes by their ids, and `store`, any of the same data set, has their names. How frequent they were in
    training is not in it, so these runs have no majority class beside them. `method`, `preset`, `fields`: see
    `reference.load`. Raises ValueError as that does, for a directory that holds files, for a head of another width than the
    model's slots, and for a store that has none of the classes; nothing is written then.
    """
    run_dir, (state, source) = runs.resolve(run_dir), reference.state_of(path_or_state_dict)
    if reference.kind_of(state) != "recognition head":
        raise ValueError(f"{source} holds no recognition head on a model: names that begin with m.discov and with m.recogn")
    state = {str(name).removeprefix("m."): value for name, value in state.items()}
    inner = {name.removeprefix("discov."): value for name, value in state.items() if name.startswith("discov.")}
    outer = {name: value for name, value in state.items() if not name.startswith("discov.")}
    shapes = [tuple(getattr(outer.get(f"recogn.{name}"), "shape", ())) for name in ("0.weight", "3.bias")]
    if [len(shape) for shape in shapes] != [2, 1]:
        raise ValueError(f"{source}: recogn.0.weight and recogn.3.bias are {shapes}, and not a matrix and a vector")
    (hidden, slot_dim), (out,) = shapes
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    names = {one: name for one, name in classes_of(store).items() if one < out - 4}  # stuff of COCO comes after
    if not names:
        raise ValueError(f"{source} tells {out - 4} classes by their ids, and {store.path} has none of these: take its data set")
    try:
        model = reference.load(inner, method, preset, **fields)
    except ValueError as error:
        raise ValueError(f"the model in {source} (there its names begin with m.discov): {error}") from None
    if model.config.slot_dim != slot_dim:
        raise ValueError(f"the head in {source} is for slots of width {slot_dim}, and its model has {model.config.slot_dim}")
    model.source = str(source)
    config = model.config.for_task("recognition", runs.short(run_dir / "model"), head_dim=hidden)
    classes = {number: names.get(number, f"no class {number}") for number in range(out - 4)}
    head = Head(config, slot_dim, classes)
    own = {name: value for name, value in head.state_dict().items() if name.startswith(("hidden.", "out."))}
    head.load_state_dict(reference.translate(outer, own, "recognition head", source), strict=False)
    known = {"slot_dim": slot_dim, "classes": {str(one): name for one, name in classes.items()}}
    with reference.whole(run_dir) as folder:
        reference.write_run(folder / "model", model, model.config, model.source)
        known |= {"parent": runs.weights_hash(folder / "model")}
        reference.write_run(folder, head, config, model.source, {"data": known})
    return run_dir
