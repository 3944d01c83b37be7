"""One optimiser step: forward, losses, backward, clip, update. On a GPU nothing in it waits for the device.

Adam with a linear warm-up from 0 and a cosine down, gradients clipped by their norm, as in the release of DIAS
(Genera1Z/DIAS). A batch may be taken in `config.accumulate` parts, whose gradients add up to those of the whole
(but for a codebook's, which each part draws to its own nearest locations).
"""

import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dias_lab.config import Config
from dias_lab.methods.task import Task
from dias_lab.training import devices

SCALER_PATIENCE = 50  # steps in a row that fp16's gradient scaler may skip
COMPILER = "inductor"


def learning_rate(step: int, config: Config) -> float:
    """Linear from 0 over the warm-up, then a cosine down to `final_learning_rate` of the peak at `config.steps`."""
    warmup = int(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    share = (step - warmup) / max(config.steps - warmup, 1)
    low = config.learning_rate * config.final_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * share))


class Learner:
    """A task's model, its optimiser, and one step of both.

    A step whose loss or gradient is not finite changes no weight, and `bad_step` names it. On a GPU the host learns of it
    only when it looks at `bad_step`; the device holds back all updates from there on, so nothing is lost by looking late.
    """

    def __init__(self, task: Task, fabric: Fabric, fused: bool | None = None):
        """`fused`: one kernel updates all parameters, and skips the update by itself. By default on a GPU (not in fp16)."""
        self.task, self.model, self.config, self.fabric = task, task.model, task.config, fabric
        config = task.config
        if config.compile:
            for part in task.compiled():
                part.compile(backend=COMPILER, dynamic=False, mode="reduce-overhead" if config.graphs else None)
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)  # fp16's
        self.fused = (fabric.device.type == "cuda" and self.scaler is None) if fused is None else fused
        self.adam = torch.optim.Adam(task.parameter_groups(), lr=config.learning_rate, fused=self.fused or None)
        self.wrapped, self.optimizer = fabric.setup(self.model, self.adam)
        self.places = devices.places(config, fabric)
        self.weights, self.skipped = {}, 0
        self.first_bad = torch.full((), -1, device=fabric.device)
        self.seen = torch.zeros(2, device=fabric.device)  # loss and gradient norm of the first bad step
        self.data = task.begin(fabric)  # what it is trained on

    def prepare(self, batch: dict) -> tuple[dict, dict]:
        """What the model takes, on its device: its inputs, and the step's random numbers."""
        return self.task.prepare(batch, self.places)

    def update(self, batch: dict, step: int) -> dict[str, Tensor]:
        """One optimiser step on this process's part of the batch; its losses as tensors on the device."""
        config = self.config
        if config.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # nobody reads the graphs' outputs of the step before any more
        inputs, draws = batch["prepared"] if "prepared" in batch else self.prepare(batch)
        self.model.progress = step / config.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group["share"]
        self.optimizer.zero_grad()
        values = {}
        for number, part in enumerate(self.parts(inputs, draws), start=1):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < config.accumulate):
                for name, value in self.gradients(*part).items():
                    values[name] = values.get(name, 0) + value.detach() / config.accumulate
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False,
            norm_type=2.0 if config.gradient_norm == "l2" else math.inf,
        )  # fmt: skip
        if self.may_update(values["loss"], norm, step):
            self.optimizer.step()
        return {**values, "gradient_norm": norm.detach()}

    def gradients(self, inputs: dict, draws: dict) -> dict[str, Tensor]:
        """Forward and backward pass over a part of the batch, whose share of the gradients is added."""
        output = self.wrapped(**inputs, draws=draws)
        losses, self.weights = self.task.losses(output, self.model.progress)
        loss = sum(self.weights[name] * losses[name] for name in losses)
        self.fabric.backward(loss / self.config.accumulate)
        return {"loss": loss, **losses, **self.task.measured(output)}

    def parts(self, inputs: dict, draws: dict) -> list[tuple[dict, dict]]:
        """The batch in `config.accumulate` equal parts, one after the other."""
        if self.config.accumulate == 1:
            return [(inputs, draws)]
        size = len(self.places) // self.config.accumulate

        def cut(given: dict, first: int) -> dict:
            return {name: None if value is None else value[first : first + size] for name, value in given.items()}

        return [(cut(inputs, first), cut(draws, first)) for first in range(0, len(self.places), size)]

    def may_update(self, loss: Tensor, norm: Tensor, step: int) -> bool:
        """Whether the host lets the update happen. Fused Adam is never held back by it: the device decides by itself."""
        flags = torch.stack([~torch.isfinite(loss), ~torch.isfinite(norm)]).float()
        if self.fabric.world_size > 1:  # all processes decide alike; Fabric's own all_reduce would wait for the device
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        bad = (flags > 0).any()
        if not self.fused:
            finite = not bad
            self.skipped = 0 if finite else self.skipped + 1
            if finite or (self.scaler is not None and not flags[0] and self.skipped < SCALER_PATIENCE):
                return True
        first = bad & (self.first_bad < 0)
        self.seen = torch.where(first, torch.stack([loss, norm]).detach().float(), self.seen)
        self.first_bad.masked_fill_(first, step)
        self.adam.found_inf = (self.first_bad >= 0).float()
        return self.fused

    def load_optimizer(self, state: dict):
        """Go on from an optimiser's state, wherever it was saved: whether it is fused is this machine's choice."""
        for group in state["param_groups"]:
            group["fused"] = self.fused or None
        self.optimizer.load_state_dict(state)

    def bad_step(self) -> int | None:
        """The first step whose loss or gradient was not finite: a look at the device, which waits for it."""
        first = int(self.first_bad)
        return first if first >= 0 else None


def first_non_finite(task: Task, inputs: dict, draws: dict, progress: float) -> str | None:
    """The first input, parameter, module output, loss or gradient that is not finite, by doing the step again."""
    return next((name for name, value in _step_again(task, inputs, draws, progress) if not _finite(value)), None)


def _step_again(task: Task, inputs: dict, draws: dict, progress: float) -> Iterator[tuple[str, object]]:
    """Names and values in the order in which they come about; of the module outputs, those that are not finite."""
    model, outputs = task.model, []
    yield from ((f"the {name}", value) for name, value in inputs.items())
    yield from ((f"the parameter {name}", parameter) for name, parameter in model.named_parameters())

    def look(name, module, inputs, output):
        if not _finite(output):
            outputs.append((f"the output of {name or 'the model'}", output))

    handles = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
    output = model(**inputs, draws=draws)
    for handle in handles:
        handle.remove()
    yield from outputs
    losses, weights = task.losses(output, progress)
    yield from ((f"the loss {name}", loss) for name, loss in losses.items())
    model.zero_grad()
    sum(weights[name] * losses[name] for name in losses).backward()
    yield from ((f"the gradient of {name}", parameter.grad) for name, parameter in reversed([*model.named_parameters()]))


def _finite(value) -> bool:
    """Whether all tensors of a module's output are: it is one, a tuple of some, or a dataclass."""
    values = vars(value).values() if is_dataclass(value) else value if isinstance(value, tuple) else (value,)
    return all(bool(torch.isfinite(one).all()) for one in values if isinstance(one, Tensor))
