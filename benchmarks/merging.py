"""Finding and merging redundant slots of a whole batch, beside scipy's clustering image by image.

    python -m benchmarks merging

Workload: 64 images, 7 and 24 slots of width 256, a third of them near copies of others; complete linkage, guard "stop". The
two must agree. Besides, the assignment of slots on the device, beside scipy's.
"""

import functools

import torch

from benchmarks._measure import device_name, row
from benchmarks._straightforward import scipy_cluster
from dias_lab.modules.matching import assign, assign_on_device
from dias_lab.modules.redundancy import cluster, merge_clusters
from dias_lab.training.cost import take_turns

IMAGES, WIDTH = 64, 256


def merge(slots, clustering):
    return merge_clusters(slots, clustering(slots, 0.05, guard="stop"))


def rows() -> list[dict]:
    on = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"on {device_name(on)}")
    found = []
    for num_slots in (7, 24):
        random = torch.Generator().manual_seed(num_slots)
        slots = torch.randn(IMAGES, num_slots, WIDTH, generator=random)
        copies = num_slots // 3
        slots[:, -copies:] = slots[:, :copies] + 0.05 * torch.randn(IMAGES, copies, WIDTH, generator=random)
        slots = slots.to(on)
        if not torch.equal(cluster(slots, 0.05, guard="stop"), scipy_cluster(slots, 0.05)):
            raise AssertionError("the clusters are not scipy's")
        ours = functools.partial(merge, slots, cluster)
        seconds = take_turns({"ours": ours, "scipy": functools.partial(merge, slots, scipy_cluster)}, repetitions=15)
        facts = {"on": on, "flops": 2 * IMAGES * num_slots**2 * WIDTH, "bytes": 2 * slots.nbytes}
        found.append(row(f"merging, {num_slots} slots", seconds["ours"], seconds["scipy"], **facts))
    score = torch.rand(IMAGES, 7, 7, dtype=torch.float64, device=on)
    functions = {"ours": lambda: assign_on_device(score), "scipy": lambda: assign(score.cpu()).to(on)}
    seconds = take_turns(functions, repetitions=15)
    return [*found, row("assignment, 7 slots", seconds["ours"], seconds["scipy"], on=on, bytes=score.nbytes)]
