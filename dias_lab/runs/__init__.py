"""The run directory: where it is, who works in it, how it stands, and what its result depends on.

`places` finds folders, `lock` keeps other processes out, `status` reads a run's state off its files and makes a table of many,
`identity` hashes the code behind a result, `weights` finds a run's checkpoints. A run's state is never stored, so that a
killed process cannot leave a lie behind. The names below are what the rest of the package and the notebooks use.
"""

# ruff: noqa: F401

from dias_lab.files import append_line, read_json, read_lines, read_object, write_json, write_lines, write_text
from dias_lab.runs.identity import code_hash
from dias_lab.runs.lock import CLAIM_VARIABLE, RunBusy, claim, holder, slurm_states
from dias_lab.runs.places import PACKAGE, about, commit, find, introduction, resolve, root, short
from dias_lab.runs.status import collect, flat, row, state
from dias_lab.runs.weights import best_step, steps, weights_hash
