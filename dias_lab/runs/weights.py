"""Which weights a run has, found without reading them as tensors: its checkpoints, the best one, and a hash of that."""

from pathlib import Path

from dias_lab.files import file_checksum, read_object
from dias_lab.runs.places import resolve

WEIGHTS = "weights.safetensors"


def steps(run_dir) -> list[int]:
    """The steps of the complete checkpoints, ascending."""
    folder = Path(run_dir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []


def best_step(run_dir) -> int:
    """The step of the best checkpoint; of the last one where none is known to be best.

    ValueError where there is none, or best.json names none that is there.
    """
    there, named = steps(run_dir), Path(run_dir) / "checkpoints" / "best.json"
    if not there:
        raise ValueError(f"{run_dir} has no checkpoint yet: train it with --run-dir {run_dir}")
    if not named.is_file():
        return there[-1]
    step = read_object(named, {"step": int})["step"]
    if step not in there:
        raise ValueError(f"{named} names step {step}, and there are {', '.join(map(str, there))}. Delete it to take the last one")
    return step


def weights_hash(run_dir, step: int | None = None) -> str:
    """12 hexadecimal digits that change with the weights of a checkpoint, by default the best one.

    Raises ValueError where there is no run, or no checkpoint yet.
    """
    run_dir = resolve(run_dir)
    if not (run_dir / "config.json").exists():
        raise ValueError(f"no config.json at {run_dir}: is it a run directory?")
    path = run_dir / "checkpoints" / str(best_step(run_dir) if step is None else step) / WEIGHTS
    try:
        return file_checksum(path)[:12]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
