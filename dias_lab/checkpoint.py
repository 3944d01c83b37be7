"""Checkpoints: folders that appear whole or not at all.

`checkpoints/<step>/` holds `weights.safetensors` (without the frozen backbone, whose weights come from elsewhere),
`state.pt` (optimiser, gradient scaler, random states; read weights-only) and `progress.json`. It is written beside,
synced and renamed, so a process killed at any moment leaves the one before. `checkpoints/best.json` names the best.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.methods import Method, build

WEIGHTS, STATE, PROGRESS = "weights.safetensors", "state.pt", "progress.json"


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
        _sync(path)
    if target.exists():  # left by a run that was killed before it could go on: the same step of the same run
        shutil.rmtree(target)
    os.replace(partial, target)
    _sync(folder)
    return target


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(run_dir: Path) -> list[int]:
    """The steps of the complete checkpoints, ascending."""
    folder = Path(run_dir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


def load(run_dir: Path, step: int, model: Method) -> tuple[dict, dict]:
    """Put the weights of checkpoint `step` into the model; returns its state and its progress."""
    folder = Path(run_dir) / "checkpoints" / str(step)
    try:
        model.load_trained_state(load_file(folder / WEIGHTS))
        return torch.load(folder / STATE, map_location="cpu", weights_only=True), runs.read_json(folder / PROGRESS)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"checkpoint {folder} cannot be read ({error}). Delete that folder to go on from the one before."
        ) from error


def prune(run_dir: Path, keep: set[int]):
    for step in steps(run_dir):
        if step not in keep:
            shutil.rmtree(Path(run_dir) / "checkpoints" / str(step))


def load_model(run_dir, which: str | int = "best", device: str = "cpu") -> Method:
    """The model of a run, in evaluation mode: its "best" checkpoint, its "last", or that of a step.

    Raises ValueError for a folder that is no run, or that has no such checkpoint yet.
    """
    run_dir = Path(run_dir)
    config = Config.load(run_dir)
    there = steps(run_dir)
    if not there:
        raise ValueError(f"{run_dir} has no checkpoint yet: train it with --run-dir {run_dir}")
    best = run_dir / "checkpoints" / "best.json"
    if which == "best":
        step = runs.read_json(best)["step"] if best.exists() else there[-1]
    else:
        step = there[-1] if which == "last" else which
    if step not in there:
        raise ValueError(f"{run_dir} has no checkpoint {step!r}; it has {', '.join(map(str, there))}, best and last")
    model = build(config)
    model.load_trained_state(load_file(run_dir / "checkpoints" / str(step) / WEIGHTS))
    return model.to(device).eval()


def shipped() -> Method:
    """The small model that comes with the package: DIAS, trained on the built-in scenes, in evaluation mode."""
    folder = Path(__file__).parent / "shipped"
    model = build(Config.load(folder))
    model.load_trained_state(load_file(folder / WEIGHTS))
    return model.eval()
