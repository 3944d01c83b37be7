"""Training a Task: fit(config, run_dir), on Lightning Fabric; exact resume.

The step itself is in step.py, what several devices share in devices.py. The best checkpoint is chosen on the validation
split, which is never the test split. A step is a pure function of the weights and (seed, step), so a killed run that
resumes ends with the same weights, bit for bit.
"""

import contextlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from dias_lab import runs
from dias_lab.config import Config, task_class
from dias_lab.files import sync
from dias_lab.methods import checkpoint
from dias_lab.methods.task import Task
from dias_lab.training import devices, maps, parent
from dias_lab.training.ahead import ahead
from dias_lab.training.step import Learner, first_non_finite, learning_rate

# a resumed run may have these differ (data and parent are known by what they hold, not by where they are); those of the
# second line change its weights by rounding (codebooks by a little more)
FREE_TO_CHANGE = {"data", "parent", "slots", "workers", "log_every", "trace_images", "logger"}
FREE_TO_CHANGE |= {"device", "devices", "num_nodes", "accumulate", "compile", "graphs"}

RESULT = {"steps": int, "seconds": (int, float), "best_step": int, "scores": dict}  # of metrics.json


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite."""


def fit(
    config: Config, run_dir, progress: bool = True, task: type[Task] | None = None, watch: Callable | None = None
) -> dict:  # fmt: skip
    """Train, or go on training, in `run_dir`; returns what `metrics.json` holds. A finished run is not repeated.

    `task` is what is learnt: by default, what `config.task` names. `watch(run_dir)` is called at the start, and after each
    evaluation, when its checkpoint stands. Writes config.json, metrics.jsonl, checkpoints/, with `config.trace_images`
    training.npz, and metrics.json there (`runs` says what they are). Raises ValueError where the run directory belongs to
    another config, runs.RunBusy where another process trains in it, NonFiniteError, with the batch and the weights saved,
    where a loss or gradient is not finite, and MemoryError, with what would fit, where a GPU is too small. On several
    devices every process calls this, and the first one writes and watches.
    """
    run_dir, task = runs.resolve(run_dir), task or task_class(config.task)
    check(config, run_dir, task)  # before anything is written
    first = devices.rank(config) == 0
    with runs.claim(run_dir) if first else contextlib.nullcontext():
        if (run_dir / "metrics.json").exists():
            return runs.read_object(run_dir / "metrics.json", RESULT)
        if first:
            (run_dir / "error.json").unlink(missing_ok=True)
            runs.write_json(run_dir / "config.json", config.to_dict())
        try:
            with devices.threads(checkpoint.last(run_dir), config):
                return Training(config, run_dir, task, watch if first else None).run(progress and first)
        except Exception as error:
            report = {"ename": type(error).__name__, "evalue": str(error), "traceback": traceback.format_exc()}
            if first:
                runs.write_json(run_dir / "error.json", report)
            raise


def check(config: Config, run_dir: Path, task: type[Task] | None = None):
    """Whether the training can start: ValueError or FileNotFoundError says why not."""
    task = task or task_class(config.task)
    task.check(config)
    devices.check(config)
    if config.trace_images and not hasattr(task, "trace"):
        raise ValueError(f"{task.__name__} keeps no maps of pictures: trace_images must be 0, got {config.trace_images}")
    if (run_dir / "config.json").exists():
        old, new = Config.load(run_dir).to_dict(), config.to_dict()
        changed = [name for name in new if new[name] != old[name] and name not in FREE_TO_CHANGE | config.unread()]
        if changed:
            told = "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in changed)
            raise ValueError(f"{run_dir} holds a run with another config: {told}. Choose another run directory, or delete it.")
    parent.check(config, run_dir, task)
    if hasattr(task, "records") and "records" in (data := checkpoint.last(run_dir).get("data", {})):  # also of a finished run
        checkpoint.check_data(run_dir, data, data | {"records": task.records(config)})


class Training:
    """One process's part of a run: the loop around the learner's steps, and what it leaves in the run directory."""

    def __init__(self, config: Config, run_dir: Path, task: type[Task] | None = None, watch: Callable | None = None):
        self.config, self.run_dir, self.watch = config, run_dir, watch or (lambda run_dir: None)
        self.log_file = run_dir / "metrics.jsonl"
        if config.precision == "auto":  # it stays what it was, on any machine
            config = config.replace(precision=checkpoint.last(run_dir).get("precision", "auto"))
        self.fabric = devices.launch(config, devices.loggers(config, run_dir))
        self.precision = self.fabric.strategy.precision.precision
        self.task = (task or task_class(config.task))(self.config)
        through = getattr(self.task, "through_parent", False)
        self.origin = parent.looked_through(config) if through else parent.start(self.config, self.task.model, run_dir)
        self.learner = Learner(self.task, self.fabric)
        self.learner.data |= self.origin
        self.model, self.optimizer = self.learner.model, self.learner.optimizer
        self.step, self.seconds = 0, 0.0  # updates done, and how long they took
        self.frames = 0 if through else config.clip_frames  # a place is a clip of so many; of a head it is one thing
        self.images = config.batch_size * max(1, self.frames)  # a step; of clips, frames
        self.best = {"step": 0, "score": None, "scores": {}}
        self.traced = ()  # steps whose maps were kept before this process began

    def run(self, progress: bool) -> dict:
        self.resume()
        self.model.train()
        try:
            with devices.deterministic(self.fabric):
                self.loop(progress)
        except torch.cuda.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)  # the tensors of the step that failed
            memory = torch.cuda.get_device_properties(self.fabric.device).total_memory
            raise MemoryError(devices.out_of_memory(self.config, self.peak, memory)) from error
        finally:
            for logger in self.fabric.loggers:
                logger.finalize("success")  # what it has is on the disk, however the loop ended
        return self.finish()

    def loop(self, progress: bool):
        config = self.config
        if self.step not in self.traced:
            self.keep_maps()
        self.watch(self.run_dir)
        source = ahead(self.task.batches(self.learner.places, self.step, progress), self.prepare, self.fabric.device)
        bar = tqdm(source, total=config.steps, initial=self.step, disable=not progress, unit="step", mininterval=1)
        sums, count, self.mark = {}, 0, time.perf_counter()
        for batch in bar:
            values = self.update(batch)
            self.step += 1
            count += 1
            sums = {name: sums.get(name, 0) + value for name, value in values.items()}
            due = self.step % config.evaluate_every == 0 or self.step == config.steps
            if due or self.step % config.log_every == 0:
                self.stop_if_not_finite()
                self.log(sums, count, bar)
                if due:
                    self.evaluate_and_save()
                    self.watch(self.run_dir)
                    self.tick()
                sums, count = {}, 0

    def tick(self) -> float:
        """Seconds since the last tick, added to those of the run."""
        elapsed, self.mark = time.perf_counter() - self.mark, time.perf_counter()
        self.seconds += elapsed
        return elapsed

    def prepare(self, batch) -> tuple:
        return devices.deterministically(lambda: self.learner.prepare(batch))

    def update(self, batch) -> dict:
        """One optimiser step; the losses as tensors on the device."""
        values = devices.deterministically(lambda: self.learner.update(batch, self.step))
        if not self.learner.fused:  # else the host looks when it logs: until then the device keeps the weights as they were
            self.stop_if_not_finite()
        return values

    def stop_if_not_finite(self):
        """NonFiniteError where a step was not finite. The weights are still those of that step; its batch is made anew."""
        step = self.learner.bad_step()
        if step is None:
            return
        text = "step {}: the loss is {}, the gradient norm {}".format(step, *self.learner.seen.tolist())
        if not self.fabric.is_global_zero:
            self.fabric.barrier()  # the launcher ends all processes when one has failed: the first one writes before
            raise NonFiniteError(text)
        batch = next(self.task.batches(range(self.config.batch_size), step))
        progress = self.model.progress = step / self.config.steps
        parts = self.learner.parts(*self.prepare(batch))
        culprits = (first_non_finite(self.task, *part, progress) for part in parts)
        with torch.compiler.set_stance("force_eager"):
            culprit = next(filter(None, culprits), "not found when the step was done again in full precision")
        folder = self.run_dir / "nonfinite" / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in {**batch["info"], **batch}.items() if isinstance(value, torch.Tensor)}
        checkpoint.write_tensors(folder / "batch.safetensors", tensors)
        checkpoint.write_tensors(folder / checkpoint.WEIGHTS, self.model.trained_state())
        self.fabric.barrier()
        raise NonFiniteError(
            f"{text}; the first tensor that went bad is {culprit}. The batch and the weights are in {folder}; a lower "
            "learning_rate or precision='32-true' may help."
        )

    def log(self, sums: dict, count: int, bar):
        """Means of the last `count` steps, over all devices."""
        rate, weights = count / self.tick() * self.images, {f"weight_{name}": x for name, x in self.learner.weights.items()}
        totals = self.fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="mean").tolist()
        means = {name: total / count for name, total in zip(sums, totals)}
        line = {"step": self.step, **means, "learning_rate": learning_rate(self.step - 1, self.config), **weights}
        self.write({**line, "images_per_second": rate})
        bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.0f} {'frames' if self.frames else 'images'}/s")

    def write(self, line: dict):
        """A line of metrics.jsonl, and its numbers to the logger of the user's choice."""
        if self.fabric.is_global_zero:
            runs.append_line(self.log_file, line)
            self.fabric.log_dict({name: x for name, x in runs.flat(line).items() if isinstance(x, (int, float))}, line["step"])

    def evaluate_and_save(self):
        """Scores on the validation split, then the checkpoint that they belong to."""
        scores = devices.aside(self.config, lambda: self.task.evaluate(self.fabric))
        score = self.task.selection(scores)
        if self.best["score"] is None or score > self.best["score"]:
            self.best = {"step": self.step, "score": score if score == score else None, "scores": scores}
        if self.fabric.is_global_zero:
            self.write({"step": self.step, "validation": scores})
            sync(self.log_file)  # neither the log nor the maps are ever behind their checkpoint
            self.keep_maps()
            self.save()
        self.fabric.barrier()

    def keep_maps(self):
        """The maps of the first validation images, as they are now, into training.npz."""
        if self.config.trace_images and self.fabric.is_global_zero:
            trace = devices.aside(self.config, lambda: self.task.trace(self.config.trace_images))
            maps.add(self.run_dir, self.step, trace)

    def save(self):
        state = {"optimizer": self.optimizer.state_dict(), "random": torch.get_rng_state()}
        if self.learner.scaler is not None:
            state["scaler"] = self.learner.scaler.state_dict()
        facts = {"data": self.learner.data, "precision": self.precision, "workers": self.config.workers}
        facts |= {"threads": torch.get_num_threads()}  # sums over more of them are rounded otherwise
        progress = {"best": self.best, "seconds": self.seconds, **facts}
        checkpoint.save(self.run_dir, self.step, self.model, state, progress)
        self.settle()

    def settle(self):
        """What follows from the last checkpoint: which one is best, and which are not needed."""
        runs.write_json(self.run_dir / "checkpoints" / "best.json", self.best)
        checkpoint.prune(self.run_dir, keep={self.step, self.best["step"]})

    def resume(self):
        """Go back to the last complete checkpoint: weights, optimiser, and the log up to its step."""
        there = self.fabric.broadcast(checkpoint.steps(self.run_dir))
        if there:
            state, progress = checkpoint.load(self.run_dir, there[-1], self.model)
            if lacking := {"data", "seconds", "best", "optimizer", "random"} - {*progress, *state}:
                told = f"its checkpoint {there[-1]} has no {', '.join(sorted(lacking))}"
                raise ValueError(f"{self.run_dir} is of no training that could go on: {told}")
            checkpoint.check_data(self.run_dir, progress["data"], self.learner.data)
            self.learner.load_optimizer(state["optimizer"])
            torch.set_rng_state(state["random"])
            if "scaler" in state and self.learner.scaler is not None:
                self.learner.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.best = progress["step"], progress["seconds"], progress["best"]
        self.fabric.barrier()  # nothing is removed that another process still reads
        if not self.fabric.is_global_zero:
            return
        lines = runs.read_lines(self.log_file, "step") if self.log_file.exists() else []
        kept = [line for line in lines if line["step"] <= self.step]
        self.traced = maps.rewind(self.run_dir, self.step)
        if len(kept) < len(lines):
            runs.write_lines(self.log_file, kept)
        if there:
            self.settle()  # last, when all has been read

    def peak(self, images: int) -> int:
        """Bytes of GPU memory that a step of so many images needs at most, by doing it; no weight changes."""
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with contextlib.closing(self.task.batches(range(images), self.step)) as source:
            part = self.learner.prepare(next(source))
        with torch.compiler.set_stance("force_eager"), self.fabric.no_backward_sync(self.learner.wrapped):
            self.learner.gradients(*part)
        self.optimizer.zero_grad()
        return torch.cuda.max_memory_allocated()

    def finish(self) -> dict:
        """Every process gives the result; the first one writes it."""
        result = self.result() if self.fabric.is_global_zero else None
        if result:
            runs.write_json(self.run_dir / "metrics.json", result)
        if self.fabric.world_size > 1:
            result = self.fabric.broadcast(result)
            torch.distributed.destroy_process_group()
        return result

    def result(self) -> dict:
        device = torch.cuda.get_device_name() if self.fabric.device.type == "cuda" else str(self.fabric.device)
        last = [line for line in runs.read_lines(self.log_file) if "loss" in line][-1]
        where = {"device": device, "devices": self.fabric.world_size, "precision": self.precision, **self.origin}
        return {
            "steps": self.step, "best_step": self.best["step"], "seconds": self.seconds,
            "images_per_second": self.step * self.images / max(self.seconds, 1e-9),
            "loss": {name: last[name] for name in last if name == "loss" or f"weight_{name}" in last},
            "scores": self.best["scores"],
            "about": {**runs.about(), **where, "seed": self.config.seed, "threads": torch.get_num_threads()},
        }  # fmt: skip
