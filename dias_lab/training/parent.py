"""A run that starts from another run's weights, or looks through them: its parent, `config.parent`.

All that is trained is taken by name and shape from the parent's best checkpoint, and with it the fitted conditioning of the
features; the optimiser starts fresh, and so does what a model for clips has besides (`fresh`), where its parent, a model for
images, has none of it. What a run knows its parent by is a hash of these weights in its checkpoints: other weights under the
same path are noticed. With a checkpoint of its own it needs the parent no more; but a task `through_parent`
goes on looking through the parent's model, which stays as it is.
"""

import dataclasses
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from dias_lab import runs
from dias_lab.config import Backbone, Config, Data, Run, Training
from dias_lab.methods import checkpoint
from dias_lab.methods.task import Task

SHOWN = 10  # weights in an error
MAY_DIFFER = {field.name for part in (Run, Data, Training) for field in dataclasses.fields(part)}  # no shape follows from them


def check(config: Config, run_dir: Path, task: type[Task]):
    """Whether the run can start from its parent, or go on from where it is: ValueError says why not."""
    through = getattr(task, "through_parent", False)
    named = Config.load(run_dir).parent if (run_dir / "config.json").exists() else ""
    if not config.parent and not named:
        return
    parent = runs.resolve(config.parent)
    if config.parent and parent.resolve() == run_dir.resolve():
        raise ValueError(f"{run_dir} cannot be its own parent: choose another run directory")
    if checkpoint.steps(run_dir):
        gone = parent == runs.resolve(named) and not (parent / "config.json").exists()
        if through or not gone:  # else it is not needed any more
            _check_same(config, run_dir, named)
    elif through:
        runs.weights_hash(parent)
    elif config.parent:
        _check_fit(config, parent, task)


def looked_through(config: Config) -> dict:
    """What the record of a run says of a parent whose model it looks through."""
    step = runs.best_step(runs.resolve(config.parent))
    return {"parent": runs.weights_hash(config.parent, step), "parent_step": step}


def start(config: Config, model: nn.Module, run_dir: Path) -> dict:
    """Put the parent's weights into the model before the first step; the run's own where it goes on.

    Gives what the run's record says of the parent: a hash of its weights, and their step. {} where there is no parent.
    """
    if not config.parent:
        return {}
    if own := checkpoint.steps(run_dir):  # at once, since the conditioning of the features is not fitted again
        checkpoint.load(run_dir, own[-1], model)
        return _record(run_dir)
    parent = runs.resolve(config.parent)
    step = runs.best_step(parent)
    lacking = {name: value for name, value in model.trained_state().items() if name.startswith(getattr(model, "fresh", ()))}
    checkpoint.load_weights(model, parent / "checkpoints" / str(step), lacking)
    return {"parent": runs.weights_hash(parent, step), "parent_step": step}


def _record(run_dir: Path) -> dict:
    """What the last checkpoint says of the parent."""
    data = checkpoint.progress(run_dir, checkpoint.steps(run_dir)[-1]).get("data", {})
    return {name: data[name] for name in ("parent", "parent_step") if name in data}


def _check_same(config: Config, run_dir: Path, named: str):
    """Whether the run that is there has started from the weights that its config asks for."""
    before, now = _record(run_dir).get("parent"), runs.weights_hash(config.parent) if config.parent else None
    if before != now:
        was = f"those of {named} (hash {before})" if before else "random ones"
        wanted = f"those of {config.parent} (hash {now})" if now else "random ones"
        raise ValueError(
            f"{run_dir} has started from other weights: {was}; asked for are now {wanted}. Choose another run directory, "
            "or delete it."
        )


def _check_fit(config: Config, parent: Path, task: type[Task]):
    """Whether the parent has learned from the same features, and has weights for all that is trained."""
    theirs, told = Config.load(parent), f"cannot start from the run {config.parent}"
    if theirs.method != config.method:
        raise ValueError(f"{told}: its method is {theirs.method!r}, and this one's {config.method!r}; they have other parts")
    same = "Take these fields as that run has them, or start without it (parent)."
    fields = {name for name in config.of(Backbone) if _matters(name, config)}
    if features := _differing(config, theirs, fields):
        what = "backbone" if any(not name.startswith("conditioning") for name in features) else "conditioning of the features"
        raise ValueError(f"{told}: its {what} is another ({_told(features, config, theirs)}). {same}")
    there = _shapes(parent / "checkpoints" / str(runs.best_step(parent)) / checkpoint.WEIGHTS)
    if wrong := _unfit(config, there, task):
        names = _to_blame(config, theirs, there, task)
        blame = f" What differs: {_told(names, config, theirs)}." if names else ""
        some = list(wrong.values())[:SHOWN] + [f"and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
        raise ValueError(f"{told}, not all of its weights fit: {'; '.join(some)}.{blame} {same}")


def _matters(name: str, config: Config) -> bool:
    """Whether a field of the backbone says what its features are."""
    built_in = next((kind for kind in ("colour", "fourier") if name.startswith(f"{kind}_")), config.backbone)
    return built_in == config.backbone and name != "conditioning_images"


def _differing(config: Config, theirs: Config, names) -> list[str]:
    return [name for name in config.to_dict() if name in names and getattr(config, name) != getattr(theirs, name)]


def _told(names: list[str], config: Config, theirs: Config) -> str:
    return "; ".join(f"{name} is {getattr(theirs, name)!r} there, {getattr(config, name)!r} here" for name in names)


def _shapes(file: Path) -> dict[str, tuple]:
    try:
        with safe_open(file, "pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the parent's weights {file} cannot be read: {error}. Train it again, or start without it") from None


def _unfit(config: Config, there: dict[str, tuple], task: type[Task]) -> dict[str, str]:
    """The names of weights that one side lacks, or has in another shape, each with what is wrong."""
    model = task(config.replace(backbone_weights="random")).model  # a frozen backbone's own are not needed for shapes
    lacked = tuple(part for part in getattr(model, "fresh", ()) if not any(name.startswith(part) for name in there))
    own, found = {name: (*value.shape,) for name, value in model.trained_state().items() if not name.startswith(lacked)}, {}
    for name in own | there:
        if name not in there or name not in own:
            found[name] = f"{name} is {'missing' if name in own else 'left over'}"
        elif own[name] != there[name]:
            found[name] = f"{name} is {there[name]} there, {own[name]} here"
    return found


def _to_blame(config: Config, theirs: Config, there: dict[str, tuple], task: type[Task]) -> list[str]:
    """The fields that, as the parent has them, would make some of its weights fit; where none does alone, all that differ."""
    wrong = _unfit(config, there, task).keys()

    def helps(name: str) -> bool:
        try:
            return bool(wrong - _unfit(config.replace(**{name: getattr(theirs, name)}), there, task).keys())
        except ValueError:  # the other fields do not allow it
            return False

    others = set(config.to_dict()) - MAY_DIFFER - set(config.of(Backbone)) - config.unread()
    others = _differing(config, theirs, others)
    return list(filter(helps, others)) or others
