"""Who works in a run directory: claims, and locks of dead processes."""

import os
import subprocess
import sys
import time

import pytest

from dias_lab import runs

HOLD = "import sys, time; from dias_lab import runs\nwith runs.claim(sys.argv[1]): print('held', flush=True); time.sleep(60)"


def test_claim_excludes_live_processes_and_forgets_dead_ones(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        assert runs.state(tmp_path) == "running"
        with pytest.raises(runs.RunBusy, match=f"process {holder.pid} "), runs.claim(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "lock").exists()
    assert runs.state(tmp_path) == "todo"
    with runs.claim(tmp_path):
        assert runs.read_json(tmp_path / "lock")["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_of_the_same_number_does_not_hold(tmp_path):
    with runs.claim(tmp_path):
        lock = runs.read_json(tmp_path / "lock")
    runs.write_json(tmp_path / "lock", lock | {"started": "1"})
    assert runs.state(tmp_path) == "todo"


def test_half_written_lock_holds_for_a_moment(tmp_path):
    (tmp_path / "lock").touch()
    assert runs.state(tmp_path) == "running"
    os.utime(tmp_path / "lock", (time.time() - 60,) * 2)
    with runs.claim(tmp_path):
        pass


def test_claim_is_shared_with_what_was_started_under_it(tmp_path, monkeypatch):
    with runs.claim(tmp_path) as token:
        with pytest.raises(runs.RunBusy), runs.claim(tmp_path):
            pass
        monkeypatch.setenv(runs.CLAIM_VARIABLE, token)
        with runs.claim(tmp_path) as inner:
            assert inner == token
        assert (tmp_path / "lock").exists()
