"""Training: fit(config, run_dir), on Lightning Fabric; exact resume.

Adam with a linear warm-up from 0 and a cosine to a thousandth, gradients clipped by their norm, as in the release of
DIAS (Genera1Z/DIAS). The best checkpoint is chosen on the validation split, which is never the test split. A step is a
pure function of the weights and (seed, step), so a killed run that resumes ends with the same weights, bit for bit.
"""

import math
import os
import time
import traceback
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from tqdm import tqdm

from dias_lab import checkpoint, runs
from dias_lab.config import Config
from dias_lab.data import store as stores
from dias_lab.data.dataset import batches
from dias_lab.data.features import feature_batches
from dias_lab.evaluate import METRICS, evaluate
from dias_lab.methods import Method, build

FREE_TO_CHANGE = {"data", "workers", "device", "log_every"}  # a resumed run may have these differ
SCALER_PATIENCE = 50  # steps in a row that fp16's gradient scaler may skip


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite."""


def fit(config: Config, run_dir, progress: bool = True) -> dict:
    """Train, or go on training, in `run_dir`; returns what `metrics.json` holds. A finished run is not repeated.

    Writes config.json, metrics.jsonl, checkpoints/ and metrics.json there (`runs.py` says what they are). Raises
    ValueError where the run directory belongs to another config, runs.RunBusy where another process trains in it, and
    NonFiniteError, with the batch and the weights saved, where a loss or gradient is not finite.
    """
    run_dir = runs.resolve(run_dir)
    check(config, run_dir)  # before anything is written
    run_dir.mkdir(parents=True, exist_ok=True)
    with runs.claim(run_dir):
        if (run_dir / "metrics.json").exists():
            return runs.read_json(run_dir / "metrics.json")
        (run_dir / "error.json").unlink(missing_ok=True)
        runs.write_json(run_dir / "config.json", config.to_dict())
        try:
            return Training(config, run_dir).run(progress)
        except Exception as error:
            report = {"ename": type(error).__name__, "evalue": str(error), "traceback": traceback.format_exc()}
            runs.write_json(run_dir / "error.json", report)
            raise


def open_stores(config: Config) -> tuple[stores.Store, stores.Store]:
    """The training and the validation split. Raises FileNotFoundError or StoreError, naming the file."""
    folder = runs.resolve(config.data)
    return stores.open(folder / "train.lmdb"), stores.open(folder / "validation.lmdb")


def check(config: Config, run_dir: Path):
    """Whether the training can start: ValueError or FileNotFoundError says why not."""
    open_stores(config)
    if config.precision == "16-mixed" and not (torch.cuda.is_available() and config.device != "cpu"):
        raise ValueError('precision "16-mixed" needs a GPU; a CPU has "32-true" and "bf16-mixed"')
    if config.backbone_weights == "checkpoint":
        raise ValueError(
            'backbone_weights "checkpoint" is that of published models, which are not trained on; take "pretrained"'
        )
    if config.stage == 2:
        checkpoint.check_teacher_run(config)
        if config.cache_views and config.fine_tuned_blocks:
            raise ValueError(
                "cache_views keeps the features of a frozen backbone, and stage 2 fine-tunes the last blocks of its own: they "
                "would be out of date after a step. Take cache_views=0, or fine_tuned_blocks=0"
            )
    if not (run_dir / "config.json").exists():
        return
    old, new = Config.load(run_dir).to_dict(), config.to_dict()
    names = [name for name in new if new[name] != old[name] and name not in FREE_TO_CHANGE]
    if names:
        changed = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in names]
        raise ValueError(
            f"{run_dir} holds a run with another config: {'; '.join(changed)}. Choose another run directory, or delete it."
        )


def learning_rate(step: int, config: Config) -> float:
    """Linear from 0 over the warm-up, then a cosine down to `final_learning_rate` of the peak at `config.steps`."""
    warmup = int(config.warmup * config.steps)
    if step < warmup:
        return config.learning_rate * step / warmup
    share = (step - warmup) / max(config.steps - warmup, 1)
    low = config.learning_rate * config.final_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(model: Method) -> list[dict]:
    """What is trained: the decoder, a quantizer, and all else before, each at its share of the learning rate."""
    shares = {"before": model.config.aggregator_rate, "decoder": 1.0, "quantizer": model.config.quantizer_rate}
    groups = {part: {"params": [], "share": share} for part, share in shares.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.get(name.partition(".")[0], groups["before"])["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


class Training:
    """One process's part of a run: the model, the optimiser, and the loop."""

    def __init__(self, config: Config, run_dir: Path):
        self.config, self.run_dir = config, run_dir
        self.fabric = Fabric(accelerator=config.device, devices=1, precision=config.precision)
        if self.fabric.device.type == "cuda":  # the same step gives the same bits
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.train_store, self.validation_store = open_stores(config)
        self.model = build(config)
        optimizer = torch.optim.Adam(parameter_groups(self.model), lr=config.learning_rate)
        self.wrapped, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.step = 0  # updates done
        self.best = {"step": 0, "score": None, "scores": {}}
        self.seconds, self.skipped = 0.0, 0
        meta = self.train_store.meta
        self.data = {name: meta[name] for name in ("dataset", "split", "count")}
        if config.teacher_run:
            teacher = checkpoint.load_model(config.teacher_run, device="cpu")
            self.model.learn_from(teacher)
            self.data["teacher_step"] = teacher.step

    def run(self, progress: bool) -> dict:
        config = self.config
        self.resume()
        self.model.train()
        if config.cache_views:
            source = feature_batches(self.train_store, config, self.model.backbone, self.step, progress)
        else:
            source = batches(self.train_store, config, step=self.step)
        bar = tqdm(source, total=config.steps, initial=self.step, disable=not progress, unit="step", mininterval=1)
        sums, count, self.mark = {}, 0, time.perf_counter()
        for batch in bar:
            values = self.update(batch)
            self.step += 1
            count += 1
            sums = {name: sums.get(name, 0) + value for name, value in values.items()}
            due = self.step % config.evaluate_every == 0 or self.step == config.steps
            if due or self.step % config.log_every == 0:
                means = {name: float(value) / count for name, value in sums.items()}
                self.log(means, count / self.tick(), bar)
                if due:
                    self.evaluate_and_save()
                    self.tick()
                sums, count = {}, 0
        return self.finish()

    def tick(self) -> float:
        """Seconds since the last tick, added to those of the run."""
        elapsed, self.mark = time.perf_counter() - self.mark, time.perf_counter()
        self.seconds += elapsed
        return elapsed

    def update(self, batch) -> dict:
        """One optimiser step; the losses as tensors on the device."""
        config = self.config
        inputs = self.inputs(batch)
        self.model.progress = self.step / config.steps
        draws = self.model.draw(range(config.batch_size), config.seed, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config) * group["share"]
        output = self.wrapped(**inputs, draws=draws)
        losses, self.weights = self.model.losses(output, self.model.progress)
        loss = sum(self.weights[name] * losses[name] for name in losses)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=config.gradient_clip, error_if_nonfinite=False,
            norm_type=2.0 if config.gradient_norm == "l2" else math.inf,
        )  # fmt: skip
        self.check_finite(loss, norm, inputs, batch, draws)
        self.optimizer.step()
        values = {"loss": loss, **losses, "gradient_norm": norm, "kept": output.keep.float().sum(1).mean()}
        return {name: value.detach() for name, value in values.items()}

    def inputs(self, batch) -> dict:
        """What the model takes: normalised images, or features from the cache in their place."""
        if "image" in batch:
            return {"images": self.model.normalise(batch["image"])}
        return {"images": None, "features": batch["features"].to(self.model.device, non_blocking=True).float()}

    def check_finite(self, loss, norm, inputs, batch, draws):
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        self.skipped = 0 if finite else self.skipped + 1
        scaler_may_skip = self.scaler is not None and torch.isfinite(loss) and self.skipped < SCALER_PATIENCE
        if finite or scaler_may_skip:
            return
        culprit = first_non_finite(self.model, inputs, draws, self.step / self.config.steps)
        folder = self.run_dir / "nonfinite" / str(self.step)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: batch[name].contiguous() for name in ("image", "features") if name in batch}
        save_file({**tensors, "item": batch["info"]["item"]}, folder / "batch.safetensors")
        save_file({k: v.contiguous() for k, v in self.model.trained_state().items()}, folder / checkpoint.WEIGHTS)
        raise NonFiniteError(
            f"step {self.step}: the loss is {loss.item()}, the gradient norm {norm.item()}; the first tensor that "
            f"went bad is {culprit}. The batch and the weights are in {folder}; a lower learning_rate or "
            "precision='32-true' may help."
        )

    def log(self, means: dict, steps_per_second: float, bar):
        rate = steps_per_second * self.config.batch_size
        line = {"step": self.step, **means, "learning_rate": learning_rate(self.step - 1, self.config)}
        line |= {f"weight_{name}": value for name, value in self.weights.items()}
        runs.append_line(self.run_dir / "metrics.jsonl", {**line, "images_per_second": rate})
        bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.0f} images/s")

    def evaluate_and_save(self):
        """Scores on the validation split, then the checkpoint that they belong to."""
        limit = self.config.evaluate_images
        scores = evaluate(self.model, self.validation_store, self.config.protocol, limit=limit).scores
        log = self.run_dir / "metrics.jsonl"
        runs.append_line(log, {"step": self.step, "validation": scores})
        checkpoint.sync(log)  # the log is never behind its checkpoint
        score = selection_score(scores)
        if self.best["score"] is None or score > self.best["score"]:
            self.best = {"step": self.step, "score": score if score == score else None, "scores": scores}
        state = {"optimizer": self.optimizer.state_dict(), "random": torch.get_rng_state()}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        progress = {"best": self.best, "seconds": self.seconds, "data": self.data}
        checkpoint.save(self.run_dir, self.step, self.model, state, progress)
        self.settle()

    def settle(self):
        """What follows from the last checkpoint: which one is best, and which are not needed."""
        runs.write_json(self.run_dir / "checkpoints" / "best.json", self.best)
        checkpoint.prune(self.run_dir, keep={self.step, self.best["step"]})

    @property
    def scaler(self):
        """fp16's gradient scaler, or None."""
        return getattr(self.fabric._precision, "scaler", None)

    def resume(self):
        """Go back to the last complete checkpoint: weights, optimiser, and the log up to its step."""
        there = checkpoint.steps(self.run_dir)
        if there:
            state, progress = checkpoint.load(self.run_dir, there[-1], self.model)
            if progress["data"] != self.data:
                raise ValueError(
                    f"{self.run_dir} was trained on {progress['data']}, and {self.train_store.path} is {self.data}: "
                    "the steps would not be the same. Choose another run directory, or the old data and teacher."
                )
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            if "scaler" in state and self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.best = progress["step"], progress["seconds"], progress["best"]
            self.settle()
        log = self.run_dir / "metrics.jsonl"
        lines = runs.read_lines(log) if log.exists() else []
        kept = [line for line in lines if line["step"] <= self.step]
        if len(kept) < len(lines):
            runs.write_lines(log, kept)

    def finish(self) -> dict:
        device = torch.cuda.get_device_name() if self.fabric.device.type == "cuda" else str(self.fabric.device)
        last = [line for line in runs.read_lines(self.run_dir / "metrics.jsonl") if "loss" in line][-1]
        result = {
            "steps": self.step,
            "best_step": self.best["step"],
            "seconds": self.seconds,
            "images_per_second": self.step * self.config.batch_size / max(self.seconds, 1e-9),
            "loss": {name: last[name] for name in last if name == "loss" or f"weight_{name}" in last},
            "scores": self.best["scores"],
            "about": {**runs.about(), "device": device, "seed": self.config.seed, "threads": torch.get_num_threads()},
        }
        runs.write_json(self.run_dir / "metrics.json", result)
        return result


def selection_score(scores: dict) -> float:
    """What chooses the best checkpoint: the mean of the decoder map's four scores; NaN where none is defined."""
    values = [scores["decoder"][metric] for metric in METRICS]
    defined = [value for value in values if value is not None and value == value]
    return sum(defined) / len(defined) if defined else math.nan


def first_non_finite(model: Method, inputs: dict, draws, progress: float) -> str:
    """The name of the first module output, loss or parameter gradient that is not finite, by doing the step again."""
    for name, tensor in inputs.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            return f"the {name}"
    found, handles = [], []

    def look(name):
        def hook(module, inputs, output):
            tensors = output if isinstance(output, tuple) else (output,)
            if any(isinstance(t, torch.Tensor) and not torch.isfinite(t).all() for t in tensors if t is not None):
                found.append(f"the output of {name or 'the model'}")

        return hook

    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name}"
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(look(name)))
    output = model(**inputs, draws=draws)
    for handle in handles:
        handle.remove()
    losses, weights = model.losses(output, progress)
    found += [f"the loss {name}" for name, loss in losses.items() if not torch.isfinite(loss)]
    if found:
        return found[0]
    model.zero_grad()
    sum(weights[name] * losses[name] for name in losses).backward()
    gradients = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return f"the gradient of {gradients[-1]}" if gradients else "not found when the step was done again in full precision"
