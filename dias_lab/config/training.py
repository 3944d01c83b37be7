"""How a run is trained, and where."""

from dataclasses import dataclass
from typing import Literal

from dias_lab.config.fields import NotNegative, NotNegativeFloat, Part, Positive, PositiveFloat, Share


@dataclass(frozen=True)
class Training(Part):
    """Schedule, optimiser, devices, log. The training loop reads these for every method.

    A protocol says how pixels without a label, and the background, count in the scores.
    """

    steps: Positive = 100_000  # updates of the weights
    batch_size: Positive = 32  # images a step, of all devices together
    accumulate: Positive = 1  # parts in which each device takes its share of a batch, for memory; the gradients add up
    learning_rate: PositiveFloat = 2e-4  # the largest, after the warm-up
    aggregator_rate: NotNegativeFloat = 1.0  # before the decoder (not of smoothsa's prediction): a share of learning_rate
    final_learning_rate: Share = 1e-3  # at the last step, as a share of learning_rate
    warmup: Share = 0.05  # share of the steps in which the learning rate rises
    gradient_clip: PositiveFloat = 1.0  # the largest norm of the gradient; a longer one is scaled down to it
    gradient_norm: Literal["l2", "largest"] = "l2"  # "largest": of the absolute values
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # auto: bf16-mixed where a GPU has it, else 32-true
    compile: bool = False  # torch.compile for the trained parts: minutes at the start, for speed on a GPU
    graphs: bool = False  # with compile, on one GPU and accumulate=1: these parts are captured as CUDA graphs
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU, where there is one
    devices: Positive = 1  # GPUs of each machine; with several, also torchrun or srun may start the processes
    num_nodes: Positive = 1  # machines that train together
    workers: NotNegative = 0  # processes that read and decode images; 0: the training's own
    log_every: Positive = 50  # steps between lines of the log
    logger: Literal["none", "tensorboard", "csv", "wandb"] = "none"  # who gets these lines besides metrics.jsonl
    evaluate_every: Positive = 2500  # steps between evaluations, each of which also writes a checkpoint
    evaluate_images: NotNegative = 0  # images of the validation split in an evaluation; 0: all
    trace_images: NotNegative = 0  # first images of that split whose maps each evaluation keeps, in training.npz; 0: none
    protocol: Literal["dias", "dias-v1", "spot", "oclf", "videosaur"] = "dias"  # of the scores that choose the best checkpoint
