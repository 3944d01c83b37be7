"""What a notebook may take of the machine: wall-clock time, memory and disk, watched while it runs.

Memory is that of all its processes together. On Linux it is the resident memory, and only where that is above the
limit the proportional one (PSS), which counts a page that several processes share once. It is sampled: what grows and
is gone within a tenth of a second is not stopped.
"""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from dias_lab.files import folder_size, size

FREE_DISK = 200 * 2**20  # bytes that stay free, so that what happened can still be written down


def watch(process: subprocess.Popen, folder: Path, seconds=None, memory=None, disk=None) -> tuple[dict | None, int]:
    """Wait until the process ends (None) or passes a limit (which one, as `ename` and `evalue`); and its peak of memory.

    memory: bytes of all its processes together; disk: bytes in the folder. None: no limit.
    """
    start, looked, peak, over = time.monotonic(), 0.0, 0, None
    while not over:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1 if memory else 0.5)
            break
        now, used = time.monotonic(), _memory(process.pid, memory or float("inf"))
        peak = max(peak, used)
        if seconds is not None and now - start >= seconds:
            over = "Timeout", f"stopped after {seconds} s"
        elif memory and used > memory:
            over = "OutOfMemory", f"stopped at {size(used)} of memory, above its limit of {size(memory)}"
        elif now - looked > 2:
            looked, over = now, _disk(folder, disk)
    return over and {"ename": over[0], "evalue": over[1]}, peak


def _memory(pid: int, limit: float) -> int:
    """Bytes of a process and all that it started; exactly only where they seem to be above the limit."""
    tree = []
    with contextlib.suppress(psutil.Error):  # it has just ended
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    used = _sum(tree, "rss")
    return min(used, _sum(tree, "pss")) if used > limit else used


def _sum(tree: list[psutil.Process], kind: str) -> int:
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            info = process.memory_info() if kind == "rss" else process.memory_full_info()
            total += getattr(info, kind, info.rss)  # only Linux knows the proportional one
    return total


def _disk(folder: Path, limit: int | None) -> tuple[str, str] | None:
    with contextlib.suppress(OSError):  # the run directory is gone: headless.execute tells that
        if (free := shutil.disk_usage(folder).free) < FREE_DISK:
            return "DiskFull", f"stopped because only {size(free)} are free on the disk of {folder}"
        if limit is not None and (used := folder_size(folder)) > limit:
            return "DiskFull", f"stopped with {size(used)} in {folder}, above its limit of {size(limit)}"
    return None
