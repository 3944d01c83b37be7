"""training.npz of a run directory: the maps of a few pictures at each evaluation, as one AttentionTrace.

It holds no step after the last checkpoint once a run goes on, so a killed run ends with the file of an unbroken one.
"""

from pathlib import Path

from dias_lab.trace import AttentionTrace

FILE = "training.npz"


def load(run_dir: Path) -> dict[int, AttentionTrace]:
    """The plain traces by training step; none where there is no file. ValueError for one that cannot be read."""
    path = run_dir / FILE
    if not path.exists():
        return {}
    try:
        whole = AttentionTrace.load(path)
        return {step: whole.at(step) for step in whole.training_steps.tolist()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no maps of a training ({error}). Delete it to go on without the maps so far") from error


def add(run_dir: Path, step: int, trace: AttentionTrace):
    """Write the maps of one more step. Those of fewer pictures (`trace_images` has grown) give way."""
    before = {other: one[: len(trace)] for other, one in load(run_dir).items() if other < step and len(one) >= len(trace)}
    AttentionTrace.over_training({**before, step: trace}).save(run_dir / FILE)


def rewind(run_dir: Path, step: int) -> list[int]:
    """Drop the maps of later steps, which a killed process has left; gives the steps that stay."""
    traces = load(run_dir)
    kept = {other: trace for other, trace in traces.items() if other <= step}
    if len(kept) < len(traces):
        AttentionTrace.over_training(kept).save(run_dir / FILE) if kept else (run_dir / FILE).unlink()
    return list(kept)
