"""The runs of a grid as one Slurm job array, by submitit.

Before the time limit, and when a job is preempted, Slurm sends a signal; submitit then calls `checkpoint`, puts the job
back into the queue, and the run goes on from its own checkpoints. After `max_num_timeout` time limits (3, if [slurm] does
not say) it is given up; a preemption does not count.
"""

import os
import time
from concurrent import futures
from pathlib import Path

from dias_lab import runs
from dias_lab.book import grid, grid_run, headless
from dias_lab.book.parameters import Refused

SHARED = "name timeout_min mem_gb nodes cpus_per_task gpus_per_node tasks_per_node stderr_to_stdout".split()
DEFAULTS = {"timeout_min": 240, "cpus_per_task": 2}


class Task:
    """What a job does."""

    def __call__(self, folder: str) -> str:
        """Execute the run; gives its state. In a thread, because submitit's signals need this one."""
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        with futures.ThreadPoolExecutor(1) as pool:
            row = pool.submit(grid_run.run_one, folder, int(cores) if cores else None).result()
        if row["state"] != "done":
            raise RuntimeError(f"{row['id']}: {row['state']}: {row['problem']}")
        return row["state"]

    def checkpoint(self, folder: str):
        """End the notebook; a training in it loses what it did since its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        for _ in range(300):
            headless.stop()
            if runs.state(folder) != "running":
                break
            time.sleep(0.1)
        return DelayedSubmission(Task(), folder)


def executor(of: grid.Grid):
    """submitit's, with the grid's [slurm]; Refused for what it does not know, or where there is no Slurm."""
    import submitit

    options = DEFAULTS | {"name": of.folder.name} | of.tables.get("slurm", {})
    timeouts = options.pop("max_num_timeout", 3)
    try:
        found = submitit.AutoExecutor(of.folder / "slurm", cluster="slurm", slurm_max_num_timeout=timeouts)
        names = {name: name if name in SHARED else f"slurm_{name.removeprefix('slurm_')}" for name in options}
        found.update_parameters(**{names[name]: value for name, value in options.items()})
    except RuntimeError as error:
        raise Refused(f"{error} Without Slurm: the same command without --slurm") from None
    except (ValueError, NameError, TypeError) as error:
        raise Refused(f"{of.folder / 'grid.toml'}, [slurm]: {error}") from None
    return found


def submit(of: grid.Grid, wanted: list[str]) -> list[str]:
    """Put the runs into the queue; gives their jobs, which are also noted in slurm/jobs.jsonl."""
    slurm, chosen = executor(of), of.prepared(wanted)
    with slurm.batch():
        jobs = [slurm.submit(Task(), str(run.folder)) for run in chosen]
    for run, job in zip(chosen, jobs):
        runs.append_line(Path(of.folder, "slurm/jobs.jsonl"), {"id": run.id, "job": job.job_id})
    return [job.job_id for job in jobs]
