"""One training on several GPUs of a Slurm cluster, by submitit. Edit the first lines, then: python docs/slurm_training.py

Slurm starts a process for each GPU, and each finds its place in Slurm's environment. A job that meets its time limit, or is
preempted, goes back into the queue, and the training goes on from its last checkpoint.
"""

import submitit

from dias_lab import Config

NODES, GPUS = 2, 4  # of each node; together they must divide the batch
RUN_DIR = "runs/coco-slurm"
CONFIG = Config.preset("coco", devices=GPUS, num_nodes=NODES, workers=6)


class Train:
    def __call__(self, config: dict, run_dir: str):
        from dias_lab.training.loop import fit

        return fit(Config(**config), run_dir, progress=False)

    def checkpoint(self, config: dict, run_dir: str):
        return submitit.helpers.DelayedSubmission(Train(), config, run_dir)


if __name__ == "__main__":
    executor = submitit.AutoExecutor(f"{RUN_DIR}/slurm", cluster="slurm", slurm_max_num_timeout=10)
    executor.update_parameters(
        name="dias", nodes=NODES, tasks_per_node=GPUS, gpus_per_node=GPUS, cpus_per_task=8, mem_gb=60 * GPUS, timeout_min=240
    )
    print(f"job {executor.submit(Train(), CONFIG.to_dict(), RUN_DIR).job_id}; its output is in {RUN_DIR}/slurm")
