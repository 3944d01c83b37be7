"""What a training step costs: seconds in turns with others, and what can be counted of it, the same on every machine."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dias_lab.analysis.discovery import Discovery
from dias_lab.data import clips, dataset, features
from dias_lab.modules.conditioning import Conditioned
from dias_lab.training import devices
from dias_lab.training.step import Learner


def take_turns(functions: dict[str, Callable], repetitions: int = 7, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each repetition. They take turns, so that what else the machine does meets them alike."""
    rounds = [{name: timed(functions[name]) for name in functions} for _ in range(repetitions + warm_up)]
    return {name: [one[name] for one in rounds[warm_up:]] for name in functions}


def timed(function: Callable) -> float:
    """Seconds that a call takes, a GPU's part included."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(function: Callable) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a call, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Untaught(Discovery):
    """Object discovery whose teacher, if any, knows nothing: its steps cost the same. Its `train_store` may be None."""

    def begin(self, fabric) -> dict:
        facts = self.model.begin(untaught=True)  # first: a teacher shares the backbone, and what it is fitted to
        if isinstance(self.model.backbone, Conditioned):  # to the data, where there are any: a training's cache fits then
            self.model.backbone.fit(self.samples() if self.train_store else torch.randn(1000, len(self.model.backbone.centre)))
        self.place(fabric)
        return facts


class Stepper:
    """A method's training step on images, or on clips, again and again, without log and checkpoints."""

    def __init__(self, config, store=None):
        self.config, self.source, self.number, task = config, None, 0, Untaught(config)
        task.train_store = store
        self.learner = Learner(task, devices.launch(config))
        self.model = self.learner.model.train()
        if store is not None and config.cache_views:
            kind = clips.ClipFeatureBatches if config.clip_frames else features.FeatureBatches
            self.source = kind(store, config, features.make(store, config, self.model.backbone))
        elif store is not None:
            self.source = (clips.ClipBatches if config.clip_frames else dataset.Batches)(store, config, segments=False)

    def step(self) -> float:
        loss = self.learner.update(self.batch(), self.number)["loss"]
        self.number += 1
        return float(loss)  # waits for a GPU

    def batch(self) -> dict:
        if self.source is not None:
            return self.source[self.number]
        B, F, R = self.config.batch_size, self.config.clip_frames, self.config.image_size
        shape = (B, F, 3, R, R) if F else (B, 3, R, R)
        noise = torch.Generator().manual_seed(self.number)
        return {"image": torch.randint(256, shape, dtype=torch.uint8, generator=noise), "info": {"step": self.number}}

    def counted(self) -> dict:
        """One step, and what can be counted of it, an image or a clip: it is the same on every machine."""
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        saved, seen = {}, Counter({"passes": 0, "passes with gradients": 0})

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        def look(module, inputs, output):
            seen.update({"passes": len(inputs[0]), "passes with gradients": len(inputs[0]) * module.trained})

        backbones = {module for model in (self.model, *self.model.teacher) for module in model.backbones().values()}
        backbones |= {self.learner.task.frozen} - {None}  # a GPU's own copy
        handles = [module.register_forward_hook(look) for module in backbones]
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            counted = operations(self.step)
        for handle in handles:
            handle.remove()
        counts = {"operations": counted, "saved": sum(saved.values()), **seen}
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return {name: count / self.config.batch_size for name, count in counts.items()} | {"trained": trained}


def step_costs(configs: dict, store=None, repeats: int = 5) -> pd.DataFrame:
    """What a training step of each config costs; a row each.

    seconds (median) and images_a_second, the configs taking turns; with repeats = 0 nothing is timed. And, an image (of a
    config of clips, throughout, a clip): operations (floating point, of matrix products and convolutions, forward and
    backward), saved (bytes that wait for the backward pass), passes of the backbone, passes with gradients. `trained` is the
    number of weights that learn. `store`: where batches come from, their reading included; without one, images are noise.
    """
    steppers = {name: Stepper(config, store) for name, config in configs.items()}
    rows = {name: stepper.counted() for name, stepper in steppers.items()}
    seconds = take_turns({name: stepper.step for name, stepper in steppers.items()}, repeats, warm_up=False)
    for name, row in rows.items():
        row["seconds"] = float(np.median(seconds[name])) if repeats else np.nan
        row["images_a_second"] = configs[name].batch_size / row["seconds"]
    return pd.DataFrame(rows).T
