"""Who works in a run directory: claims, and locks of dead processes."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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


DAMAGED = [
    b"", b"7", b"null", b"[]", b"{}", b'"x"', b'{"host": "x"}', b'{"pid": "1", "started": 2}', b"{\xff", b"[" * 100_000, b'{"pid": 1' + b"0" * 5000,
    json.dumps({"pid": 10**30, "started": "1", "host": platform.node(), "token": "t"}).encode(),
    json.dumps({"pid": -1, "started": "1", "host": platform.node(), "token": "t"}).encode(),
    json.dumps({"pid": 1, "started": None, "host": "x", "token": "t"}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("age", [60, -86400])  # the clock was set back
def test_a_lock_that_names_no_process_holds_nothing(content, age, tmp_path):
    (tmp_path / "lock").write_bytes(content)
    os.utime(tmp_path / "lock", (time.time() - age,) * 2)
    assert runs.state(tmp_path) == "todo"
    with runs.claim(tmp_path):
        assert runs.state(tmp_path) == "running"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", [None, 3, ["1"], {}])
def test_another_machine_holds_until_its_lock_is_deleted(job, tmp_path):
    lock = {"pid": 1, "started": "1", "host": "another machine", "token": "t", "slurm": job}
    runs.write_json(tmp_path / "lock", lock)
    with pytest.raises(runs.RunBusy, match=f"process 1 on another machine.* delete {tmp_path / 'lock'}"), runs.claim(tmp_path):
        pass
    (tmp_path / "lock").unlink()
    with runs.claim(tmp_path):
        pass


@pytest.mark.parametrize("content", [None, b"", b'{"pid": 4194303, "started": "1", "host": "HOST", "token": "dead"}'])
def test_a_live_process_holds_whatever_became_of_its_lock_file(content, tmp_path):
    """Two that find the same dead lock must not take it away from each other."""
    with runs.claim(tmp_path):
        (tmp_path / "lock").unlink()
        if content is not None:
            (tmp_path / "lock").write_bytes(content.replace(b"HOST", platform.node().encode()))
        with pytest.raises(runs.RunBusy, match="another process of this machine"), runs.claim(tmp_path):
            pass
    with runs.claim(tmp_path):
        pass


def test_threads_that_die_with_their_locks_left_never_hold_it_at_once(tmp_path):
    inside, most = [], []

    def work(number):
        for _ in range(15):
            with contextlib.suppress(runs.RunBusy), runs.claim(tmp_path) as token:
                inside.append(number)
                most.append(len(inside))
                dead = {"pid": 2**22 - 1, "started": "1", "host": platform.node(), "token": token[::-1]}
                runs.write_json(tmp_path / "lock", dead)
                inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(most) > 6 and set(most) == {1}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_of_the_system_the_file_counts(number, tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "lock").touch()
    with runs.claim(tmp_path), pytest.raises(runs.RunBusy, match=f"process {os.getpid()} "), runs.claim(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_claim_is_shared_with_what_was_started_under_it(tmp_path, monkeypatch):
    with runs.claim(tmp_path) as token:
        with pytest.raises(runs.RunBusy), runs.claim(tmp_path):
            pass
        monkeypatch.setenv(runs.CLAIM_VARIABLE, token)
        with runs.claim(tmp_path) as inner:
            assert inner == token
        assert (tmp_path / "lock").exists()
