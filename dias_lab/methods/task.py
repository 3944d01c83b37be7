"""Task: what the training loop needs of what it trains, and no more. Whoever fills it trains with exact resume on any device.

Object discovery is one (analysis/discovery.py); what is learnt on top of slots are others. `config.task` says which, in a
table of config/__init__.py; `fit` also takes one that is in no table.
"""

from collections.abc import Iterator
from typing import Protocol

from lightning_fabric import Fabric
from torch import Tensor, nn

from dias_lab.config import Config


class Task(Protocol):
    config: Config  # steps, batch_size, learning_rate, ...
    model: nn.Module  # a pass is model(**inputs, draws=draws); it also has `progress`, `trained_state`, `load_trained_state`

    @staticmethod
    def check(config: Config):
        """Whether a training can start: ValueError or FileNotFoundError says why not. Nothing is written before."""

    def __init__(self, config: Config):
        """Builds the model from `config.seed`."""

    def begin(self, fabric: Fabric) -> dict:
        """Once, with the model on its device. Gives what the run is trained on, which a resume must find the same."""

    def batches(self, places: range, step: int, progress: bool = False) -> Iterator[dict]:
        """The batches from `step` on, or what these places of the global batch have of them; each has info["step"]."""

    def prepare(self, batch: dict, places: range) -> tuple[dict, dict]:
        """What the model takes, on its device: its inputs, tensors [B ...] or None, and the step's draws."""

    def losses(self, output, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Unweighted losses, and their weights at `progress` (0 to 1) through the training."""

    def measured(self, output) -> dict[str, Tensor]:
        """What else the log says of a step, scalars."""

    def parameter_groups(self) -> list[dict]:
        """What is trained: dicts of `params` and `share`, their share of the learning rate."""

    def compiled(self) -> list[nn.Module]:
        """The parts that torch.compile may take: their inputs always have the same shapes."""

    def evaluate(self, fabric: Fabric) -> dict:
        """Scores on the validation split, shared by all processes."""

    # a Task may have a static records(config): what tells its data from others; a run that is there is not taken for theirs
    # `through_parent = True`: the parent is a model that the task looks through, and not where its own weights start
    # a Task of such a run has static report(run_dir, store, limit) -> tuple[dict, str], for the command evaluate: the scores of
    # its best checkpoint, and their text; and text(scores) -> str of what `evaluate` below gave
    # a Task whose maps can be looked at also has trace(images: int) -> AttentionTrace, of the first validation images

    def selection(self, scores: dict) -> float:
        """The number that chooses the best checkpoint, the largest; NaN where none is defined."""


class Head(nn.Module):
    """The model of a task on top of slots: a checkpoint keeps all of its state, buffers included."""

    progress = 0.0  # through the training, 0 to 1: the loop sets it

    def trained_state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def load_trained_state(self, state: dict[str, Tensor]):
        """Raises ValueError where the weights are of another model."""
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"these weights are of another {type(self).__name__}: {error}") from None
