"""Kills at random moments, and files with random damage: each day others (DIAS_LAB_SEED=YYYYMMDD repeats those of a day).

What must hold: an interrupted training, conversion or grid ends as if nobody had disturbed it; a damaged file gives what the
sound one gives, or one sentence that names it; and nothing in a file is executed. A tenth of what was tried by hand once.
"""

import collections
import datetime
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.book import grid, grid_run
from dias_lab.config import Config
from dias_lab.data import features, store
from dias_lab.data.convert import scenes
from dias_lab.methods import build, checkpoint
from dias_lab.trace import AttentionTrace
from dias_lab.training.loop import fit

SEED = int(os.environ.get("DIAS_LAB_SEED") or datetime.date.today().strftime("%Y%m%d"))
KILLS = {"training": 6, "conversion": 5, "grid": 2}
DAMAGED = {"store": 200, "checkpoint": 240, "cache": 120, "trace": 160, "JSON": 220}  # files, each damaged once
EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]
executed = []
watching = False


def hear(event, arguments):
    if watching and event in EXECUTES:
        executed.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def audit():
    sys.addaudithook(hear)  # for good: Python has no way to remove it


@pytest.fixture
def chance(request):
    """The day's random numbers of a test."""
    return random.Random(f"{SEED} {request.node.name}")


def tell(capsys, what: str, counts: dict):
    with capsys.disabled():
        print(f"\n{what}, seed {SEED}: {', '.join(f'{number} {name}' for name, number in sorted(counts.items()))}", flush=True)


# Kills


def child(function, *arguments):
    """A process of its own, forked from one that has imported everything but runs nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dias_lab.training.loop", "dias_lab.data.convert.scenes", "dias_lab.book.grid_run"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def killed(function, *arguments, after: float):
    """Whether the process was still at work when it was killed."""
    process = child(function, *arguments)
    process.join(after)
    alive = process.exitcode is None
    process.kill()
    process.join()
    return alive


def train(run_dir: str):
    torch.set_num_threads(1)
    fit(Config.load(run_dir), run_dir, progress=False)


def duration(function, *arguments) -> float:
    """Seconds of an undisturbed call in a child."""
    start, process = time.monotonic(), child(function, *arguments)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def started(config: Config, run_dir: Path) -> Path:
    runs.write_json(run_dir / "config.json", config.to_dict())
    return run_dir


def result(run_dir: Path, config: Config) -> tuple:
    """Weights and optimiser bit for bit, the log but for its speed, and the scores. No step depends on torch's own random state."""
    model = build(config)
    state, _ = checkpoint.load(run_dir, 20, model)
    moments = [value for one in state["optimizer"]["state"].values() for value in one.values()]
    log = [{name: line[name] for name in line if name != "images_per_second"} for line in runs.read_lines(run_dir / "metrics.jsonl")]
    scores = runs.read_json(run_dir / "metrics.json")["scores"]
    return digest([*model.state_dict().values(), *moments]), log, scores, checkpoint.steps(run_dir)


def test_a_killed_training_ends_as_the_unbroken_one(small_config, tmp_path, chance, capsys):
    whole = started(small_config, tmp_path / "whole")
    child(train, str(whole)).join()  # the first child waits for the imports
    shutil.rmtree(whole)
    seconds, counts = duration(train, str(started(small_config, whole))), collections.Counter()
    for number in range(KILLS["training"]):
        run_dir = started(small_config, tmp_path / str(number))
        for _ in range(1 + number % 2):  # every other one twice
            counts["killed at work" if killed(train, str(run_dir), after=chance.uniform(0.1, seconds)) else "too late"] += 1
            assert runs.state(run_dir) in ("todo", "done")
        duration(train, str(run_dir))
        assert result(whole, small_config) == result(run_dir, small_config)
    tell(capsys, "trainings", counts)


def convert(out: str, number: int):
    scenes.convert(out, train=number, validation=8, test=8, difficulty="shapes")


def content(folder: Path) -> dict:
    """What each split holds, after `verify`."""
    found = {}
    for path in folder.glob("*.lmdb"):
        store.verify(path)
        found[path.stem] = store.open(path).fingerprint()
    return found


def test_a_killed_conversion_leaves_the_old_stores_or_says_so(tmp_path, chance, capsys):
    whole = {}
    for number in (20, 30):
        convert(str(tmp_path / f"whole{number}"), number)
        whole[number] = content(tmp_path / f"whole{number}")
    seconds, counts = duration(convert, str(tmp_path / "timed"), 30), collections.Counter()
    for number in range(KILLS["conversion"]):
        out = tmp_path / str(number)
        if number % 2:
            convert(str(out), 20)
        killed(convert, str(out), 30, after=chance.uniform(0.02, seconds))
        try:
            found = content(out) if out.exists() else {}
            assert set(found.items()) <= set(whole[20].items()) or set(found.items()) <= set(whole[30].items())
            counts["old" if found == whole[20] else "new" if found == whole[30] else "some splits, of one conversion"] += 1
        except store.StoreError as error:
            assert "different conversions" in str(error) and str(out) in str(error)
            counts["a mixture, refused"] += 1
        convert(str(out), 30)
        assert content(out) == whole[30] and sorted(path.suffix for path in out.iterdir() if path.is_file()) == [".lmdb"] * 3
    tell(capsys, "conversions", counts)


NOTEBOOK = ["import time", "from dias_lab import runs", "for step in range(4):", "    time.sleep(0.3)", "    print(step)"]
NOTEBOOK = "\n".join([*NOTEBOOK, 'runs.write_json(runs.resolve(run_dir) / "metrics.json", {"steps": 4, "result": 7 * seed})'])


def execute(root: str):
    os.environ["DIAS_LAB_ROOT"] = root
    found = grid.load(Path(root, "runs/g"))
    grid_run.execute(found, grid_run.missing(grid.status(found)), workers=2)


def test_a_killed_grid_tells_the_truth_and_goes_on(tmp_path, chance, capsys, monkeypatch):
    from nbformat.v4 import new_code_cell, new_notebook, writes

    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    first = new_code_cell('run_dir: str = ""\nseed: int = 0', metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[first, new_code_cell(NOTEBOOK)])
    (tmp_path / "unit.ipynb").write_text(writes(notebook))
    runs.write_text(tmp_path / "runs/g/grid.toml", 'notebook = "unit.ipynb"\nseeds = [1, 2, 3]\n')
    counts = collections.Counter()
    for _ in range(KILLS["grid"]):
        killed(execute, str(tmp_path), after=chance.uniform(1, 9))
        until = time.monotonic() + 20
        while any(row["state"] == "running" for row in grid.status(grid.load("runs/g"))) and time.monotonic() < until:
            time.sleep(0.1)  # the notebooks end with who asked for them
        rows = grid.status(grid.load("runs/g"))
        counts.update(f"runs {row['state']}" for row in rows)
        for run, row in zip(grid.load("runs/g").runs, rows):
            assert row["state"] in ("done", "todo", "interrupted"), row
            assert row["state"] != "done" or runs.read_json(run.folder / "metrics.json")["result"] == 7 * run.seed
    duration(execute, str(tmp_path))
    found = grid.load("runs/g")
    assert {row["state"] for row in grid.status(found)} == {"done"} and grid.stale(found) == []
    tell(capsys, "grids", counts)


# Damage


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One damage: a bit, a byte, a hole, a piece that is missing, doubled or foreign, or an end that is missing."""
    place, length = chance.randrange(len(content)), min(chance.choice([1, 4, 64, 4096]), len(content))
    kind = chance.choice(["bit", "byte", "zeros", "missing", "doubled", "foreign", "end"])
    if kind == "bit":
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if kind == "end":
        return content[:place]
    middle, after = content[place : place + length], content[place + length :]
    pieces = {"byte": chance.randbytes(1) + middle[1:], "zeros": bytes(len(middle)), "missing": b"", "doubled": 2 * middle}
    return content[:place] + pieces.get(kind, chance.randbytes(len(middle))) + after


def look(files: list[Path], read, good, number: int, chance: random.Random) -> collections.Counter:
    """Damage one of the files at a time, and read: what the sound file gives, or an error that names what is wrong."""
    global watching
    counts, whole = collections.Counter(), {file: file.read_bytes() for file in files}
    for _ in range(number):
        file = chance.choice(files)
        file.write_bytes(damaged(whole[file], chance))
        watching = True
        try:
            result = read()
            counts["without effect"] += 1
            assert good is None or result == good, f"{file.name}: another result, and no error"
        except (ValueError, OSError) as error:
            assert str(file) in str(error) or str(file.parent) in str(error), f"{file}: {error!r} names no file"
            counts["named"] += 1
        finally:
            watching = False
            file.write_bytes(whole[file])
        assert not executed
    return counts


def digest(arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)).hexdigest()


@pytest.fixture(scope="module")
def sound(small_scenes, tmp_path_factory):
    """A finished run with its data, its feature cache and a trace, all small."""
    root = tmp_path_factory.mktemp("sound")
    shutil.copytree(small_scenes, root / "data")
    config = Config.preset(
        "shapes", data=str(root / "data"), backbone_size=64, image_size=64, fourier_dim=8, fourier_stride=16, slot_dim=8, slot_mlp_dim=8,
        num_slots=3, decoder_layers=1, decoder_heads=2, steps=4, batch_size=2, log_every=2, evaluate_every=2, evaluate_images=2, device="cpu",
        cache_views=1,
    )  # fmt: skip
    fit(config, root / "run", progress=False)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    checkpoint.load_model(root / "run").trace(images, seed=1).save(root / "trace.npz")
    return root


def test_a_damaged_store_is_refused_or_gives_the_same(sound, chance, capsys):
    path = sound / "data/validation.lmdb"

    def read():
        store.verify(path)
        return [(record.image, record.segments, str(record.info)) for record in store.open(path)]

    tell(capsys, "stores", look([path], read, read(), DAMAGED["store"], chance))


def test_a_damaged_checkpoint_is_refused_or_gives_the_same(sound, chance, capsys):
    model, step = build(Config.load(sound / "run")), checkpoint.steps(sound / "run")[-1]
    folder = sound / f"run/checkpoints/{step}"

    def read():
        state, progress = checkpoint.load(sound / "run", step, model)
        moments = [value for one in state["optimizer"]["state"].values() for value in one.values()]
        return digest([*model.state_dict().values(), *moments, state["random"]]), progress

    counts = look([folder / name for name in ("weights.safetensors", "state.pt", "progress.json")], read, read(), DAMAGED["checkpoint"], chance)
    tell(capsys, "checkpoints", counts)


def test_a_damaged_cache_is_refused_or_gives_the_same(sound, chance, capsys):
    config = Config.load(sound / "run")
    model, scenes_ = build(config), store.open(sound / "data/train.lmdb")
    (folder,) = [path.parent for path in sound.glob("data/features/*/features.bin")]

    def read():
        return digest(batch["features"] for batch in features.feature_batches(scenes_, config, model.backbone))

    files = [path for path in folder.iterdir() if path.is_file()]
    tell(capsys, "feature caches", look(files, read, read(), DAMAGED["cache"], chance))


def test_a_damaged_trace_is_refused_or_gives_the_same(sound, chance, capsys):
    path, page = sound / "trace.npz", sound / "page.html"

    def read():
        trace = AttentionTrace.load(path)
        return digest([trace.images, trace.attention, trace.decoder_attention, trace.keep]), trace.names, str(trace.about)

    counts, whole = look([path], read, read(), DAMAGED["trace"], chance), path.read_bytes()
    for _ in range(10):
        path.write_bytes(damaged(whole, chance))
        code, told = main(["explore", str(path), "--out", str(page)]), capsys.readouterr().err
        assert code in (0, None) or (code == 2 and str(path) in told and len(told.splitlines()) <= 2), told
    path.write_bytes(whole)
    tell(capsys, "traces", counts)


def test_damaged_json_is_one_sentence(sound, chance, capsys):
    """It has no checksum, and another number is not noticed; but whatever there is, its reader ends well or names it."""
    run = sound / "run"
    config, counts = Config.load(run), collections.Counter()
    (run / "lock").write_text(json.dumps({"pid": 1, "started": "1", "host": "elsewhere", "token": "x", "slurm": None}))
    readers = {
        run / "config.json": lambda: Config.load(run),
        run / "checkpoints/best.json": lambda: runs.best_step(run),
        run / "metrics.json": lambda: fit(config, run, progress=False),
        run / "metrics.jsonl": lambda: runs.read_lines(run / "metrics.jsonl", "step"),
        run / "lock": lambda: runs.state(run),
    }
    for file, read in readers.items():
        kept = (run / "lock").read_bytes()
        if file.name == "metrics.json":
            (run / "lock").unlink()
        counts += look([file], read, None, DAMAGED["JSON"] // len(readers), chance)
        (run / "lock").write_bytes(kept)
    (run / "lock").unlink()
    tell(capsys, "JSON", counts)


class Harm:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_executed(sound, tmp_path):
    global watching
    harm, step = pickle.dumps(Harm(tmp_path / "harm")), checkpoint.steps(sound / "run")[-1]
    run = shutil.copytree(sound / "run", tmp_path / "run")
    state, archive = run / f"checkpoints/{step}/state.pt", io.BytesIO()
    with zipfile.ZipFile(state) as old, zipfile.ZipFile(archive, "w") as new:
        for name in old.namelist():
            new.writestr(name, harm if name.endswith("data.pkl") else old.read(name))
    (run / f"checkpoints/{step}/progress.json").write_text(json.dumps({"step": step}))  # as older versions: no checksums
    np.save(tmp_path / "object.npy", np.array([Harm(tmp_path / "harm")]), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "trace.npz", "w") as trace:
        for name in ("images", "attention", "keep", "names"):
            trace.writestr(f"{name}.npy", (tmp_path / "object.npy").read_bytes())
    model = build(Config.load(run))
    watching = True
    try:
        for content in (archive.getvalue(), harm):
            state.write_bytes(content)
            with pytest.raises(ValueError, match=f"checkpoint .*{step} cannot be read"):
                checkpoint.load(run, step, model)
        with pytest.raises(ValueError, match="trace.npz"):
            AttentionTrace.load(tmp_path / "trace.npz")
    finally:
        watching = False
    assert not executed and not (tmp_path / "harm").exists()
    pickle.loads(harm)
    assert (tmp_path / "harm").exists()  # it would have been
