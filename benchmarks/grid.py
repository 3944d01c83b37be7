"""What the runner of grids adds to a run, beside the notebook's own kernel start and execution.

    python -m benchmarks grid

Workload: a notebook that sleeps half a second and writes its metrics.json; runs one after the other. `comparator_seconds` is a
kernel started and the same cells executed by jupyter_client in this process, which is already warm: the least that any
runner must do. `overhead` is the difference: a process of its own for papermill, checks, the saved notebook, the watch
over memory and disk, and the end of every process. The bar is 2 seconds a run. `overhead_cpu` is the same in processor
seconds of all processes, which other work on the machine changes less.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

RUNS = 5
PARAMETERS = 'run_dir: str = ""\nseed: int = 0'
CELLS = [
    "import json, pathlib, time\ntime.sleep(0.5)",
    'pathlib.Path(run_dir, "metrics.json").write_text(json.dumps({"score": seed}))',
]


def rows() -> list[dict]:
    import papermill
    import psutil

    before = os.environ.get("DIAS_LAB_ROOT")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIAS_LAB_ROOT"] = folder
        try:
            ours, least = (list(zip(*found)) for found in measure(Path(folder)))
        finally:
            os.environ.pop("DIAS_LAB_ROOT")
            if before:
                os.environ["DIAS_LAB_ROOT"] = before
    seconds, cpu = map(statistics.median, ours)
    comparator_seconds, comparator_cpu = map(statistics.median, least)
    overhead, overhead_cpu = seconds - comparator_seconds, cpu - comparator_cpu
    print(
        f"a run {seconds:.2f} s, its kernel and cells alone {comparator_seconds:.2f} s: overhead {overhead:.2f} s a run, "
        f"{overhead_cpu:.2f} s of processor time"
    )
    return [{
        "name": "grid run", "precision": None, "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "seconds": seconds, "comparator_seconds": comparator_seconds, "ratio": comparator_seconds / seconds,
        "overhead": overhead, "overhead_cpu": overhead_cpu, "flops": 0, "bytes": 0, "threads": 1,
        "versions": {"papermill": papermill.__version__, "psutil": psutil.__version__},
    }]  # fmt: skip


def measure(folder: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds and processor seconds of each run, by the grid and by the bare kernel; they take turns."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from dias_lab.book import grid, grid_run

    notebook = new_notebook(
        cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, CELLS)]
    )
    nbformat.write(notebook, folder / "unit.ipynb")
    (folder / "grid.toml").write_text(f'notebook = "unit.ipynb"\nseeds = {json.dumps(list(range(RUNS + 1)))}\n')
    ours, least = [], []
    for run in grid.read("grid.toml", "runs/g").runs:
        run.prepare()
        before = clocks()
        row = grid_run.run_one(run.folder, threads=1)
        middle = clocks()
        bare(run.folder)
        after = clocks()
        ours.append((middle[0] - before[0], middle[1] - before[1]))
        least.append((after[0] - middle[0], after[1] - middle[1]))
        if row["state"] != "done":
            raise RuntimeError(f"{row['id']}: {row['problem']}")
    return ours[1:], least[1:]  # the first warms up


def clocks() -> tuple[float, float]:
    """Wall clock, and processor time of this process and all that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)


def bare(folder: Path) -> None:
    from jupyter_client.manager import KernelManager

    manager = KernelManager()
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    for source in (f"run_dir, seed = {str(folder)!r}, 0", *CELLS):
        client.execute_interactive(source, timeout=120, output_hook=lambda message: None)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
