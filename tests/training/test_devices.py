"""Several devices: two processes on the CPU (gloo) train on the same batches as one, and end with the same weights."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dias_lab import runs
from dias_lab.data.dataset import Batches
from dias_lab.methods import checkpoint
from dias_lab.training.loop import fit

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from dias_lab.methods import checkpoint
from dias_lab.config import Config
from dias_lab.training.loop import fit
checkpoint.prune = lambda *arguments, **options: None
for path in sys.argv[1:]:
    fit(Config.load(path), path, progress=False)
"""
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without processes that work together")


def two(*run_dirs):
    """Train in these run directories with two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, run_dirs)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)


def weights(run_dir, step):
    return load_file(run_dir / "checkpoints" / str(step) / "weights.safetensors")


def prepared(config, run_dir):
    run_dir.mkdir()
    runs.write_json(run_dir / "config.json", config.to_dict())
    return run_dir


def stopped(run_dir, step):
    """The run as if it had been killed after the checkpoint at `step`."""
    (run_dir / "metrics.json").unlink()
    for later in (later for later in checkpoint.steps(run_dir) if later > step):
        (run_dir / "checkpoints" / str(later)).rename(run_dir / f"gone-{later}")
    assert checkpoint.steps(run_dir)[-1] == step


@pytest.mark.xdist_group("devices")
def test_two_processes_equal_one_and_runs_move_between_them(small_config, tmp_path, monkeypatch):
    """Weights, scores and logs, for every method; and a run that goes on with another number of devices, either way."""
    monkeypatch.setattr(checkpoint, "prune", lambda *arguments, **options: None)
    config = small_config.replace(steps=6, evaluate_every=3, log_every=2, evaluate_images=0)
    pair = config.replace(devices=2)
    fit(config, tmp_path / "one", progress=False)
    fit(config, tmp_path / "from one", progress=False)
    stopped(tmp_path / "from one", 3)
    runs.write_json(tmp_path / "from one" / "config.json", pair.to_dict())
    others = {name: config.replace(method=name, steps=2) for name in ("smoothsa", "spot", "dinosaur")}
    halves = [
        prepared(other.replace(devices=2, accumulate=2), tmp_path / f"two {name}") for name, other in others.items()
    ]
    two(prepared(pair, tmp_path / "two"), tmp_path / "from one", *halves)
    for run_dir in (tmp_path / "two", tmp_path / "from one"):
        same(run_dir, tmp_path / "one", 6)
    for name, other in others.items():
        fit(other, tmp_path / f"one {name}", progress=False)
        same(tmp_path / f"two {name}", tmp_path / f"one {name}", 2)
    stopped(tmp_path / "two", 3)
    fit(config, tmp_path / "two", progress=False)
    same(tmp_path / "two", tmp_path / "one", 6)


def same(run_dir, other, step):
    torch.testing.assert_close(weights(run_dir, step), weights(other, step), rtol=1e-4, atol=1e-5)
    ours, theirs = (runs.read_json(path / "metrics.json") for path in (run_dir, other))
    assert ours["scores"]["images"] == theirs["scores"]["images"] == 4
    assert ours["scores"]["decoder"] == pytest.approx(theirs["scores"]["decoder"], abs=1e-3)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    lines = [[line["step"] for line in runs.read_lines(path / "metrics.jsonl")] for path in (run_dir, other)]
    assert lines[0] == lines[1]  # one process writes


def test_slices_of_a_batch_make_up_the_whole(small_config, small_scenes):
    from dias_lab.data import store
    from dias_lab.data.draws import integer, normal

    scenes = store.open(small_scenes / "train.lmdb")
    wanted = [normal("slots", 5, 12), integer("permutation", below=9)]
    whole = Batches(scenes, small_config, requests=wanted)[5]
    parts = [Batches(scenes, small_config, places=range(i, i + 2), requests=wanted)[5] for i in (0, 2)]
    assert torch.equal(whole["image"], torch.cat([part["image"] for part in parts]))
    assert set(whole["draws"]) == {"slots", "permutation"}
    for name, all_of_them in whole["draws"].items():
        assert torch.equal(all_of_them, torch.cat([part["draws"][name] for part in parts]))


def test_processes_that_were_not_asked_for_are_refused(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, and devices x num_nodes is 1"):
        fit(small_config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
