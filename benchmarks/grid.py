"""What the runner of grids adds to a run, beside the notebook's own kernel start and execution.

    python -m benchmarks grid

Workload: a notebook that sleeps half a second and writes its metrics.json; runs one after the other. `comparator_seconds` is a
kernel started and the same cells executed by jupyter_client in this process, which is already warm: the least that any
runner must do. `overhead` is the difference: a process of its own for papermill, checks, the saved notebook, the watch
over memory and disk, and the end of every process. The bar is 2 seconds a run.
"""

import json
import os
import platform
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
            ours, least = measure(Path(folder))
        finally:
            os.environ.pop("DIAS_LAB_ROOT")
            if before:
                os.environ["DIAS_LAB_ROOT"] = before
    overhead = statistics.median(mine - other for mine, other in zip(ours, least))
    seconds, comparator_seconds = statistics.median(ours), statistics.median(least)
    print(
        f"a run {seconds:.2f} s, its kernel and cells alone {comparator_seconds:.2f} s: overhead {overhead:.2f} s a run"
    )
    return [{
        "name": "grid run", "precision": None, "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "seconds": seconds, "comparator_seconds": comparator_seconds, "ratio": comparator_seconds / seconds,
        "overhead": overhead, "flops": 0, "bytes": 0, "threads": 1,
        "versions": {"papermill": papermill.__version__, "psutil": psutil.__version__},
    }]  # fmt: skip


def measure(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of each run, by the grid and by the bare kernel; they take turns."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    from dias_lab import grid, grid_run

    notebook = new_notebook(
        cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, CELLS)]
    )
    nbformat.write(notebook, folder / "unit.ipynb")
    (folder / "grid.toml").write_text(f'notebook = "unit.ipynb"\nseeds = {json.dumps(list(range(RUNS + 1)))}\n')
    ours, least = [], []
    for run in grid.read("grid.toml", "runs/g").runs:
        grid.prepare(run)
        start = time.perf_counter()
        row = grid_run.run_one(run.folder, threads=1)
        middle = time.perf_counter()
        bare(run.folder)
        ours.append(middle - start)
        least.append(time.perf_counter() - middle)
        if row["state"] != "done":
            raise RuntimeError(f"{row['id']}: {row['problem']}")
    return ours[1:], least[1:]  # the first warms up


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
