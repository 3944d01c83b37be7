"""What all benchmarks share besides dias_lab/training/cost.py: the machine's ceilings, and the form of a row."""

import functools
import os
import platform
import re
import resource
import statistics
from pathlib import Path

import numpy as np
import scipy
import torch

from dias_lab.training.cost import take_turns


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return (high - low) / 2 / median


@functools.cache
def ceilings(device: str, dtype: torch.dtype, threads: int) -> tuple[float, float]:
    """What the machine reaches with the threads of now: operations a second in a large matrix product, bytes in a large copy."""
    side, size = (8192, 2**30) if device == "cuda" else (1536, 2**27)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = take_turns({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, repetitions=7)
    return 2 * side**3 / min(seconds["product"]), 2 * size / min(seconds["copy"])


def row(name: str, seconds: list[float], comparator: list[float] | None = None, **facts) -> dict:
    """{name, precision, device, seconds, comparator_seconds, ratio, flops, bytes, threads, versions}, and more.

    `ratio` is that of the medians: how many times longer the comparator takes. `of_product` and `of_copy`: achieved
    operations and bytes a second, as shares of what the machine reaches in a large matrix product and a large copy.
    """
    ours = statistics.median(seconds)
    theirs = statistics.median(comparator) if comparator else None
    device, dtype = facts.pop("on", "cpu"), facts.pop("dtype", torch.float32)
    product, copy = ceilings(device, dtype, torch.get_num_threads())
    facts = {"precision": str(dtype).removeprefix("torch."), "flops": 0, "bytes": 0, **facts}
    return {
        "name": name, "device": device_name(device), "seconds": ours, "comparator_seconds": theirs,
        "ratio": theirs / ours if theirs else None, "spread": spread(seconds),
        "comparator_spread": spread(comparator) if comparator else None,
        "of_product": facts["flops"] / ours / product, "of_copy": facts["bytes"] / ours / copy,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__}, **facts,
    }  # fmt: skip


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16 by itself; elsewhere it is slower than float32."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far.

    Linux keeps that number for the program (VmHWM); what getrusage says there begins with the peak of the process that
    started this one.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
