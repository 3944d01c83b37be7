"""Checkpoints: folders that appear whole or not at all.

`checkpoints/<step>/` holds `weights.safetensors` (without the frozen backbone, whose weights come from elsewhere; with it
where the config's `backbone_weights` is "checkpoint", as in published models),
`state.pt` (optimiser, gradient scaler, random states; read weights-only) and `progress.json`, which holds the step, and
checksums of all three that are compared whenever one is read; checkpoints of older versions have none. It is written beside,
synced and renamed, so a process killed at any moment leaves the one before. `checkpoints/best.json` names the best.
"""

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.files import file_checksum, full_disk, read_object, sync, write_sealed
from dias_lab.methods.base import Method, build
from dias_lab.runs.weights import WEIGHTS, best_step, steps

STATE, PROGRESS = "state.pt", "progress.json"
# what a damaged file, that no checksum told of before, makes torch raise
DAMAGE = (OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)


def save(run_dir: Path, step: int, model: Method, state: dict, progress: dict) -> Path:
    """Write checkpoint `step`. `state` goes to state.pt, `progress` (JSON) beside it; both come back from `load`."""
    folder = run_dir / "checkpoints"
    target, partial = folder / str(step), folder / f".partial-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with full_disk(target):
            partial.mkdir(parents=True)
            write_tensors(partial / WEIGHTS, model.trained_state())
            with open(partial / STATE, "wb") as file:
                torch.save({**state, "step": step}, file)
            sums = {name: file_checksum(partial / name) for name in (WEIGHTS, STATE)}
            write_sealed(partial / PROGRESS, {**progress, "step": step, "checksums": sums})
            for path in [*partial.iterdir(), partial]:
                sync(path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # the space is needed
        raise
    os.replace(partial, target)
    sync(folder)
    return target


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]):
    """A file of safetensors, written here, so that a full disk is the system's error."""
    with full_disk(path), open(path, "wb") as file:
        file.write(as_bytes({name: value.contiguous() for name, value in tensors.items()}))


def load(run_dir: Path, step: int, model: Method) -> tuple[dict, dict]:
    """Put the weights of checkpoint `step` into the model; returns its state and its progress.

    Raises ValueError where a file is damaged, or says that it is of another step than the folder's name.
    """
    folder = Path(run_dir) / "checkpoints" / str(step)
    known = progress(run_dir, step)
    with _naming(folder):
        _compare(folder, STATE)
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        said = state.get("step", step)  # older versions did not say
    _check_step(folder, said)
    with _naming(folder):
        load_weights(model, folder)
    return state, {name: value for name, value in known.items() if name != "checksums"}


def progress(run_dir: Path, step: int) -> dict:
    """What checkpoint `step` says about the run so far. ValueError where it is of another step, or damaged."""
    folder = Path(run_dir) / "checkpoints" / str(step)
    with _naming(folder):
        known = read_object(folder / PROGRESS, {"step": int})
    _check_step(folder, known["step"])
    return known


def last(run_dir: Path) -> dict:
    """The same of the last checkpoint; {} where there is none."""
    there = steps(run_dir)
    return progress(run_dir, there[-1]) if there else {}


def check_data(run_dir: Path, before: dict, now: dict):
    """ValueError unless a run goes on with the data, the parent and the teacher that its checkpoint has written down."""
    unknown = {name: now[name] for name in ("records", "teacher") if name in now}  # to older versions: taken to be the same
    if unknown | before != now:
        told = ", ".join(sorted(name for name in {*before, *now} if (unknown | before).get(name) != now.get(name)))
        raise ValueError(
            f"{run_dir} was trained on {before}, and what config.data and teacher name is {now} ({told} differ): the steps "
            "would not be the same. Choose another run directory, or the old data and teacher."
        )


@contextlib.contextmanager
def _naming(folder: Path):
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"checkpoint {folder} cannot be read ({error}). Delete that folder to go on from the one before."
        ) from error


def _check_step(folder: Path, said: int):
    if str(said) != folder.name:
        raise ValueError(
            f"checkpoint {folder} says that it is of step {said}: it was renamed, or copied from another. Nothing was "
            f"deleted; rename the folder to {said}, or move it away"
        )


def load_weights(model: Method, folder: Path, lacking: dict[str, torch.Tensor] | None = None):
    """Put the weights in `folder` into the model; `lacking` are what it gets where the file has none of the name.

    Raises ValueError for a damaged file or another model's weights.
    """
    try:
        _compare(folder, WEIGHTS)
        model.load_trained_state((lacking or {}) | load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def _compare(folder: Path, name: str):
    """ValueError unless a file has the checksum that was written with it, if any was."""
    known = read_object(folder / PROGRESS) if (folder / PROGRESS).exists() else {}
    sums = known.get("checksums", {})
    expected = sums.get(name) if isinstance(sums, dict) else "another kind of checksum"
    if expected is not None and file_checksum(folder / name) != expected:
        raise ValueError(f"{name} is not as it was written: its checksum differs")


def prune(run_dir: Path, keep: set[int]):
    """Delete the checkpoints of all steps but these."""
    folder = Path(run_dir) / "checkpoints"
    for step in steps(run_dir):
        if step not in keep:
            os.replace(folder / str(step), folder / f".old-{step}")  # at once: half a checkpoint must not look whole
    for old in folder.glob(".old-*"):
        shutil.rmtree(old)


def load_model(run_dir, which: str | int = "best", device: str | None = None) -> Method:
    """The model of a run, in evaluation mode: its "best" checkpoint, its "last", or that of a step.

    `device`: by default a GPU where there is one, unless the run's config says otherwise. Raises ValueError for a folder
    that is no run, or that has no such checkpoint yet.
    """
    run_dir = runs.resolve(run_dir)
    config = Config.load(run_dir)
    if config.task != "discovery":
        raise ValueError(f"{run_dir} learnt {config.task} from the slots of {config.parent}: that is the model to load")
    there = steps(run_dir)
    step = best_step(run_dir) if which == "best" or not there else there[-1] if which == "last" else which
    if step not in there:
        raise ValueError(f"{run_dir} has no checkpoint {step!r}; it has {', '.join(map(str, there))}, best and last")
    model = build(config)
    if (run_dir / "checkpoints" / str(step) / PROGRESS).exists():
        progress(run_dir, step)  # whether it is of this step
    load_weights(model, run_dir / "checkpoints" / str(step))
    model.trained_steps = step
    return place(model, device).eval()


def place(model: Method, device: str | None = None) -> Method:
    """The model on a device: by default a GPU where there is one, unless its config says otherwise."""
    return model.to(device or ("cuda" if model.config.device != "cpu" and torch.cuda.is_available() else "cpu"))


def shipped(kind: Literal["scenes", "clips"] = "scenes") -> Method:
    """A small model that comes with the package, in evaluation mode, on the CPU: DIAS, trained on the built-in scenes; or
    temporal DIAS, trained on the built-in clips from those weights.

    Their folders are those of runs: a training may start from them (`parent`). ValueError for another kind.
    """
    places = {"scenes": runs.PACKAGE / "shipped", "clips": runs.PACKAGE / "shipped" / "clips"}
    if kind not in places:
        raise ValueError(f"no model of kind {kind!r} comes with the package; there are: {', '.join(places)}")
    return load_model(places[kind], device="cpu")
