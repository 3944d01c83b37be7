"""How a run is trained, and where."""

from dataclasses import dataclass
from typing import Literal

from dias_lab.config.fields import NotNegative, NotNegativeFloat, Part, Positive, PositiveFloat, Share


@dataclass(frozen=True)
class Training(Part):
    """Schedule, optimiser, devices, log. The training loop reads these for every method."""

    steps: Positive = 100_000
    batch_size: Positive = 32  # of all devices together
    accumulate: Positive = 1  # parts in which each device takes its share of a batch, for memory; the gradients add up
    learning_rate: PositiveFloat = 2e-4
    aggregator_rate: NotNegativeFloat = 1.0  # before the decoder (not of smoothsa's prediction): a share of learning_rate
    final_learning_rate: Share = 1e-3  # as a share of learning_rate
    warmup: Share = 0.05  # share of the steps
    gradient_clip: PositiveFloat = 1.0  # norm over all parameters
    gradient_norm: Literal["l2", "largest"] = "l2"  # "largest": of the absolute values
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # bf16-mixed on a GPU that has it, else 32-true
    compile: bool = False  # torch.compile for the trained parts: minutes at the start, for speed on a GPU
    graphs: bool = False  # with compile, on one GPU and accumulate=1: these parts are captured as CUDA graphs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive = 1  # of each node; with several, also torchrun or srun may start the processes
    num_nodes: Positive = 1  # machines that train together
    workers: NotNegative = 0  # processes that read and decode
    log_every: Positive = 50  # steps
    evaluate_every: Positive = 2500  # steps; also how often a checkpoint is written
    evaluate_images: NotNegative = 0  # of the validation split; 0: all
    protocol: Literal["dias", "dias-v1", "spot", "oclf", "videosaur"] = "dias"  # of the scores that choose the best checkpoint
