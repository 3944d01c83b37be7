"""Checkpoints: folders that appear whole or not at all.

`checkpoints/<step>/` holds `weights.safetensors` (without the frozen backbone, whose weights come from elsewhere; with it
where the config's `backbone_weights` is "checkpoint", as in published models),
`state.pt` (optimiser, gradient scaler, random states; read weights-only) and `progress.json`. It is written beside,
synced and renamed, so a process killed at any moment leaves the one before. `checkpoints/best.json` names the best.
"""

import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.files import sync
from dias_lab.methods.base import Method, build
from dias_lab.runs.weights import WEIGHTS, best_step, steps

STATE, PROGRESS = "state.pt", "progress.json"


def save(run_dir: Path, step: int, model: Method, state: dict, progress: dict) -> Path:
    """Write checkpoint `step`. `state` goes to state.pt, `progress` (JSON) beside it; both come back from `load`."""
    folder = run_dir / "checkpoints"
    target, partial = folder / str(step), folder / f".partial-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.trained_state().items()}, partial / WEIGHTS)
    torch.save(state, partial / STATE)
    runs.write_json(partial / PROGRESS, {"step": step, **progress})
    for path in [*partial.iterdir(), partial]:
        sync(path)
    os.replace(partial, target)
    sync(folder)
    return target


def load(run_dir: Path, step: int, model: Method) -> tuple[dict, dict]:
    """Put the weights of checkpoint `step` into the model; returns its state and its progress."""
    folder = Path(run_dir) / "checkpoints" / str(step)
    try:
        load_weights(model, folder)
        return torch.load(folder / STATE, map_location="cpu", weights_only=True), progress(run_dir, step)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"checkpoint {folder} cannot be read ({error}). Delete that folder to go on from the one before."
        ) from error


def progress(run_dir: Path, step: int) -> dict:
    """What checkpoint `step` says about the run so far."""
    return runs.read_json(Path(run_dir) / "checkpoints" / str(step) / PROGRESS)


def load_weights(model: Method, folder: Path):
    """Put the weights in `folder` into the model. Raises ValueError for a damaged file or another model's weights."""
    try:
        model.load_trained_state(load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error


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
    there = steps(run_dir)
    step = best_step(run_dir) if which == "best" or not there else there[-1] if which == "last" else which
    if step not in there:
        raise ValueError(f"{run_dir} has no checkpoint {step!r}; it has {', '.join(map(str, there))}, best and last")
    model = build(config)
    load_weights(model, run_dir / "checkpoints" / str(step))
    model.step = step
    return place(model, device).eval()


def place(model: Method, device: str | None = None) -> Method:
    """The model on a device: by default a GPU where there is one, unless its config says otherwise."""
    return model.to(device or ("cuda" if model.config.device != "cpu" and torch.cuda.is_available() else "cpu"))


def shipped() -> Method:
    """The small model that comes with the package: DIAS, trained on the built-in scenes, in evaluation mode, on the CPU.

    Its folder is that of a run: a training may start from it (`parent`).
    """
    return load_model(runs.PACKAGE / "shipped", device="cpu")
