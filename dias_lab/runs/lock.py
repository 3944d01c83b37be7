"""Who works in a run directory: a lock file that names its process, and is void when that process is dead.

The operating system's own lock on a file beside it, which ends with its process, keeps two from holding it at once. A process
on another machine cannot be seen from here: where a Slurm job holds the lock, the queue is asked; else the lock counts
until it is deleted.
"""

import contextlib
import functools
import json
import os
import platform
import secrets
import subprocess
import time
from pathlib import Path

import psutil

from dias_lab.files import full_disk, read_object, system_lock

CLAIM_VARIABLE = "DIAS_LAB_CLAIM"  # a notebook's process inherits the claim of whoever executes it
FIELDS = {"pid": int, "started": str, "host": str, "token": str}  # of a lock that counts
PATIENCE = 0.5  # seconds that another process may take to write its name, or to leave


class RunBusy(RuntimeError):
    """Another live process works in this run directory."""


@contextlib.contextmanager
def claim(run_dir):
    """Hold the run directory against other processes; gives the claim's token.

    A lock whose process is dead is replaced, and so is one that names none. A process that was started under a claim (a
    notebook by headless.execute) shares it. Raises RunBusy when another live process holds the directory.
    """
    lock, token = Path(run_dir) / "lock", secrets.token_hex(8)
    lock.parent.mkdir(parents=True, exist_ok=True)
    other = holder(lock)
    if other and other["token"] == os.environ.get(CLAIM_VARIABLE):
        yield other["token"]
        return
    if other:
        raise _busy(lock, other)
    pid, host = os.getpid(), platform.node()
    mine = {"pid": pid, "started": _started(pid), "host": host, "token": token, "slurm": slurm_job()}
    with system_lock(lock.with_name(".lock"), PATIENCE) as held:
        other = holder(lock)  # somebody may have been faster
        if held is False or other:
            raise _busy(lock, other)
        with full_disk(lock), contextlib.suppress(FileExistsError):  # that of a faster process, where there are no system locks
            lock.unlink(missing_ok=True)
            with open(lock, "x") as file:
                file.write(json.dumps(mine))
        if (holder(lock) or {}).get("token") != token:
            raise _busy(lock, holder(lock))
        try:
            yield token
        finally:
            if (holder(lock) or {}).get("token") == token:  # deleted by hand, it may be somebody else's by now
                lock.unlink(missing_ok=True)


def _busy(lock: Path, other: dict | None) -> RunBusy:
    who = f"process {other['pid']} on {other['host']}" if other else "another process of this machine"
    return RunBusy(f"{lock.parent} is in use by {who}. Wait for it or stop it; if it is certainly gone, delete {lock}")


def holder(lock: Path) -> dict | None:
    """Who holds the lock; None when nobody does, its process is dead, or it names none: damaged, or its writer was killed."""
    try:
        content = read_object(lock, FIELDS)
    except (OSError, ValueError):
        return None
    if content["host"] != platform.node():  # its processes cannot be seen from here
        return None if _job_is_over(content.get("slurm")) else content
    return content if _started(content["pid"]) == content["started"] else None


def _started(pid: int) -> str | None:
    """When the process started, which tells it from a later one of the same number; None when it is dead."""
    try:
        if os.path.exists("/proc/self/stat"):  # ticks since the start of the machine, whose clock people may set
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if state in "ZX" else fields[18]
        return repr(psutil.Process(pid).create_time())
    except (OSError, ValueError, OverflowError, psutil.Error):  # no such process, or a number that none has
        return None


def slurm_job() -> str | None:
    """The Slurm job, or the task of an array, that this process is part of."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def slurm_states() -> dict[str, str] | None:
    """This user's jobs in Slurm's queue: id (of a task: ARRAY_TASK) -> PENDING, RUNNING, ...; None if it cannot be asked."""
    return _queue(int(time.monotonic() / 2))  # one question for many runs


@functools.lru_cache(maxsize=1)
def _queue(moment: int) -> dict[str, str] | None:
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in answer.splitlines())


def _job_is_over(job) -> bool:
    """Whether a job of another machine has certainly left the run; a requeued one meets its own old lock."""
    if not isinstance(job, str):
        return False
    if job == slurm_job():
        return True
    states = slurm_states()
    return states is not None and states.get(job) not in ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
