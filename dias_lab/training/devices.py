"""Where a training runs: precision, one device or several, and what each process of several does.

Every process holds the whole model and takes its slice of the global batch, whose content and random numbers follow from
(seed, step, place) alone; gradients are averaged. So any number of devices trains on the same batches, to rounding.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger, TensorBoardLogger
from lightning_fabric.strategies import DDPStrategy

from dias_lab.config import Config

LOGGERS = {"none": [], "csv": [], "tensorboard": ["tensorboard"], "wandb": ["wandb", "lightning"]}  # packages that they need


def launch(config: Config, loggers: list | None = None) -> Fabric:
    """Fabric on the devices of `config`; further processes of this machine start here, unless torchrun or srun did it."""
    alone = config.devices * config.num_nodes == 1
    strategy = "auto" if alone else DDPStrategy(broadcast_buffers=False)
    number = {"devices": config.devices, "num_nodes": config.num_nodes}
    fabric = Fabric(accelerator=config.device, strategy=strategy, precision=precision(config), loggers=loggers, **number)
    if not alone:
        fabric.launch()
    return fabric


def loggers(config: Config, run_dir: Path) -> list:
    """What the first process tells the lines of metrics.jsonl as well; each start of a run has a folder of its own there."""
    if config.logger == "none" or rank(config) > 0:
        return []
    if config.logger == "wandb":
        from wandb.integration.lightning.fabric import WandbLogger
        return [WandbLogger(run_dir.name, run_dir)]
    csv = config.logger == "csv"
    return [CSVLogger(run_dir, "csv", flush_logs_every_n_steps=1) if csv else TensorBoardLogger(run_dir, "tensorboard")]


def precision(config: Config) -> str:
    """What `precision="auto"` is on this machine: bf16 with full-precision weights on a GPU that has it."""
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if uses_gpu(config) and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def uses_gpu(config: Config) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


@contextlib.contextmanager
def threads(known: dict, config: Config):
    """In here a run that goes on has the number of torch's threads that its last checkpoint knows; a line says if it can't."""
    here = torch.get_num_threads()
    wanted, workers = known.get("threads", here), known.get("workers", config.workers)
    kept = wanted <= max(here, os.cpu_count() or 1)
    if not kept or (wanted > 1 and bool(workers) != bool(config.workers)):  # workers read with one thread each
        was, now = f"{wanted} threads and {workers} workers", f"{wanted if kept else here} and {config.workers}"
        print(f"a resumed run will equal an unbroken one to rounding only: it had {was}, and has {now}", flush=True)
    torch.set_num_threads(wanted if kept else here)
    try:
        yield
    finally:
        torch.set_num_threads(here)


@contextlib.contextmanager
def deterministic(fabric: Fabric):
    """On a GPU the same step gives the same bits in here; see `deterministically`.

    Several devices take torch's other ways from the start where it knows no deterministic one, and torch warns: a step
    whose gradients they exchange can't be done again by one of them.
    """
    if fabric.device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, memory = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=fabric.world_size > 1)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which would write every tensor twice
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = memory


def deterministically(step: Callable):
    """What `step()` gives. Where torch knows no deterministic way for a part of it, it is done again, and this is said."""
    try:
        return step()
    except RuntimeError as error:
        if "deterministic" not in str(error) or torch.is_deterministic_algorithms_warn_only_enabled():
            raise
        print(f"a resumed run will equal an unbroken one to rounding only: {str(error).splitlines()[0]}", flush=True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        return step()


def aside(config: Config, look: Callable):
    """What `look()` finds out about a model between two steps; compiled parts run as written, since batches are others."""
    with torch.compiler.set_stance("force_eager") if config.compile else contextlib.nullcontext():
        return deterministically(look)


def rank(config: Config) -> int:
    """This process's number among those of a training, before it is launched: torchrun, Fabric and srun say it."""
    if config.devices * config.num_nodes == 1:  # whatever else srun starts beside it
        return 0
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0))


def check(config: Config):
    """Whether the devices have the precision, can share the batch, and capture it in graphs: ValueError says why not."""
    gpu, world = uses_gpu(config), config.devices * config.num_nodes
    if missing := [name for name in LOGGERS[config.logger] if importlib.util.find_spec(name) is None]:
        raise ValueError(f"the logger {config.logger!r} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if config.graphs and not (config.compile and gpu and world == config.accumulate == 1):
        raise ValueError(
            "graphs captures the parts that compile=True compiles, on one GPU and accumulate=1: a second part would "
            f"overwrite what the first one left. Here compile is {config.compile}, accumulate {config.accumulate}, "
            f"devices {world}, and there is {'a' if gpu else 'no'} GPU"
        )
    if config.batch_size % (world * config.accumulate):
        there = f"{world} device{'s' * (world > 1)} and accumulate={config.accumulate}"
        fitting = [n for n in range(1, config.batch_size + 1) if config.batch_size % (n * config.accumulate) == 0]
        raise ValueError(
            f"batch_size {config.batch_size} is that of all devices together, and {there} do not divide it; with this "
            f"accumulate, {', '.join(map(str, fitting)) or 'no number of'} devices would"
        )
    if (started := int(os.environ.get("WORLD_SIZE", world))) != world:
        raise ValueError(f"{started} processes were started, and devices x num_nodes is {world}: say --devices")
    if config.num_nodes > 1 and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise ValueError("several nodes need torchrun or srun, which tell each process its place")
    if gpu and config.devices > torch.cuda.device_count():
        raise ValueError(f"devices is {config.devices}, and this machine has {torch.cuda.device_count()} GPUs")
    if config.precision == "16-mixed" and not gpu:
        raise ValueError('precision "16-mixed" needs a GPU; a CPU has "32-true" and "bf16-mixed"')


def places(config: Config, fabric: Fabric) -> range:
    """This process's places in the global batch."""
    share = config.batch_size // fabric.world_size
    return range(fabric.global_rank * share, (fabric.global_rank + 1) * share)


def out_of_memory(config: Config, peak: Callable[[int], int], memory: int) -> str:
    """What to tell whose GPU is too small. `peak(n)`: bytes that a step of n images needs; `memory`: bytes there are."""
    at_once = config.batch_size // (config.devices * config.num_nodes * config.accumulate)
    text = (
        f"the GPU's {memory / 1e9:.1f} GB are too little for {at_once} images at once (batch_size {config.batch_size}, "
        f"accumulate {config.accumulate}) with num_slots {config.num_slots}"
    )
    try:
        one, two = peak(1), peak(2)
    except torch.cuda.OutOfMemoryError:
        return f"{text}, and for two at once: a smaller backbone_size or decoder is needed"
    most = 2 + math.floor((0.9 * memory - two) / max(two - one, 1))  # a tenth is left for what the allocator wastes
    fits = [n for n in range(1, at_once) if at_once % n == 0 and n <= most]
    if not fits:
        return f"{text}; a smaller backbone_size or decoder is needed"
    accumulate = config.accumulate * at_once // fits[-1]
    return f"{text}. By two trials about {min(most, at_once)} would fit: accumulate={accumulate} trains on the same batches"
