"""Clips beside as many single images: a training step, of DIAS and of each neighbour, reading a batch, an evaluation.

    python -m benchmarks video

One thread. The preset clips (DIAS on colours, 7 slots, 256 locations) from pixels, with two iterations on every frame: four
clips of six of the built-in clips' frames. The comparator is the image method of the same numbers, backbone and decoder, on
24 single frames. A step's batches are read beforehand; its bar is 15 % more than the comparator. "video step, METHOD" is each
method as the preset has it, its own iterations, predictor and decoder, on noise, beside image DIAS as the preset has it.
Evaluated is one clip of 24 frames at both levels, beside 24 scenes; `bytes` is there the peak memory of a process that does
nothing else.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks._measure import peak_memory, row
from dias_lab import runs
from dias_lab.analysis.evaluate import evaluate
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.convert import scenes
from dias_lab.training.cost import Stepper, operations, take_turns
from dias_lab.training.loop import Training

CLIPS, FRAMES, REPETITIONS, BAR = 4, 6, 9, 15
METHODS = ("dias", "smoothsa", "videosaur", "slotcontrast", "randsfq", "tfdt", "steve")
SIZES = {"clips": dict(clip_frames=FRAMES, batch_size=CLIPS), "images": dict(clip_frames=0, batch_size=CLIPS * FRAMES)}


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scenes.convert_clips(Path(folder), train=8, validation=1, test=1, frames=CLIPS * FRAMES)
            scenes.convert(Path(folder, "scenes"), train=1, validation=1, test=CLIPS * FRAMES)
            trainings = {name: Training(one, Path(folder, name)) for name, one in configs(folder).items()}
            return [step(trainings), data(trainings), evaluation(Path(folder)), *methods()]
    finally:
        torch.set_num_threads(threads)


def configs(folder) -> dict[str, Config]:
    fields = dict(num_iterations=2, next_iterations=2, evaluation_iterations=0, cache_views=0, workers=0, device="cpu")
    return {name: Config.preset("clips", data=str(folder), **fields, **sizes) for name, sizes in SIZES.items()}


def step(trainings: dict[str, Training]) -> dict:
    batches = {name: next(one.task.batches(one.learner.places, 0)) for name, one in trainings.items()}
    steps = {name: lambda name=name, one=one: one.model.train() and one.update(batches[name]) for name, one in trainings.items()}
    return compared("video step", take_turns(steps, REPETITIONS), f"; the bar is {BAR} %", flops=operations(steps["clips"]))


def methods() -> list[dict]:
    fields = dict(cache_views=0, workers=0, device="cpu")
    steppers = {name: Stepper(Config.preset("clips", method=name, **fields, **SIZES["clips"])) for name in METHODS}
    steppers["images"] = Stepper(Config.preset("clips", **fields, **SIZES["images"]))
    seconds = take_turns({name: stepper.step for name, stepper in steppers.items()}, REPETITIONS)
    rows_ = []
    for name in METHODS:
        rate, flops = CLIPS / statistics.median(seconds[name]), operations(steppers[name].step)
        own = {"clips": seconds[name], "images": seconds["images"]}
        rows_.append(compared(f"video step, {name}", own, f"; {rate:.1f} clips/s", flops=flops, clips_a_second=rate))
    return rows_


def data(trainings: dict[str, Training]) -> dict:
    sources = {name: one.task.batches(one.learner.places, 0) for name, one in trainings.items()}
    seconds = take_turns({name: lambda source=source: next(source) for name, source in sources.items()}, REPETITIONS)
    return compared("video data", seconds)


def evaluation(folder: Path) -> dict:
    evaluations = {name: subject(folder, name) for name in SIZES}
    seconds = take_turns(evaluations, REPETITIONS)
    call, environment = [sys.executable, "-m", "benchmarks.video", str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=runs.root(), env=environment, stdout=subprocess.PIPE, check=True)
    before, peak = json.loads(done.stdout.splitlines()[-1])
    told = f"; memory {peak / 1e6:.0f} MB, of which {(peak - before) / 1e6:.0f} for the evaluation"
    return compared("video evaluation", seconds, told, flops=operations(evaluations["clips"]), bytes=peak, bytes_before=before)


def subject(folder: Path, name: str):
    """A function that evaluates an untrained model on one clip of 24 frames, or on 24 images."""
    model, place = Training(configs(folder)[name], folder / name).model.eval(), folder if name == "clips" else folder / "scenes"
    opened = store.open(place / "test.lmdb")
    return lambda: evaluate(model, opened)


def compared(name: str, seconds: dict, told: str = "", **facts) -> dict:
    found = row(name, seconds["clips"], seconds["images"], frames=CLIPS * FRAMES, **facts)
    rates = [found["frames"] / found[side] for side in ("seconds", "comparator_seconds")]
    slower = 100 * (1 / found["ratio"] - 1)
    print(f"{name}: {rates[0]:.0f} frames/s of clips, {rates[1]:.0f} images/s; {slower:+.0f} % time{told}")
    return found


if __name__ == "__main__":
    evaluate_clip = subject(Path(sys.argv[1]), "clips")
    before = peak_memory()
    evaluate_clip()
    print(json.dumps([before, peak_memory()]))
