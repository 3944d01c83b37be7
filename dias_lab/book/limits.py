"""What a notebook may take of the machine: wall-clock time, memory and disk, watched while it runs.

Memory is that of all its processes together. On Linux it is the resident memory, and only where that is above the
limit the proportional one (PSS), which counts a page that several processes share once. It is sampled: what grows and
is gone within a tenth of a second is not stopped.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil

FREE_DISK = 200 * 2**20  # bytes that stay free, so that what happened can still be written down


class Limits(NamedTuple):
    """None: no limit."""

    seconds: float | None = None
    memory: int | None = None  # bytes, all processes of the notebook together
    disk: int | None = None  # bytes in the run directory


class Watch:
    """Waits for a process and looks at what it takes."""

    def __init__(self, process: subprocess.Popen, folder: Path, limits: Limits):
        self.process, self.folder, self.limits = process, folder, limits
        self.peak = 0  # bytes of memory

    def wait(self) -> dict | None:
        """Until the process ends: None; until it passes a limit: which one, as `ename` and `evalue`."""
        start, looked = time.monotonic(), 0.0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1 if self.limits.memory else 0.5)
                return None
            now = time.monotonic()
            if self.limits.seconds is not None and now - start >= self.limits.seconds:
                return {"ename": "Timeout", "evalue": f"stopped after {self.limits.seconds} s"}
            over = self._memory()
            if not over and now - looked > 2:
                looked, over = now, self._disk()
            if over:
                return over

    def _memory(self) -> dict | None:
        tree, limit = [], self.limits.memory or float("inf")
        with contextlib.suppress(psutil.Error):  # it has just ended
            process = psutil.Process(self.process.pid)
            tree = [process, *process.children(recursive=True)]
        used = _sum(tree, "rss")
        if used > limit:
            used = min(used, _sum(tree, "pss"))
        self.peak = max(self.peak, used)
        over = f"stopped at {size(used)} of memory, above its limit of {size(limit)}"
        return {"ename": "OutOfMemory", "evalue": over} if used > limit else None

    def _disk(self) -> dict | None:
        reason = None
        with contextlib.suppress(OSError):  # the run directory is gone: headless.execute tells that
            if (free := shutil.disk_usage(self.folder).free) < FREE_DISK:
                reason = f"stopped because only {size(free)} are free on the disk of {self.folder}"
            elif self.limits.disk is not None and (used := folder_size(self.folder)) > self.limits.disk:
                reason = f"stopped with {size(used)} in {self.folder}, above its limit of {size(self.limits.disk)}"
        return reason and {"ename": "DiskFull", "evalue": reason}


def size(count: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def folder_size(folder: Path) -> int:
    """Bytes of the files in it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _sum(tree: list[psutil.Process], kind: str) -> int:
    total = 0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            info = process.memory_info() if kind == "rss" else process.memory_full_info()
            total += getattr(info, kind, info.rss)  # only Linux knows the proportional one
    return total
