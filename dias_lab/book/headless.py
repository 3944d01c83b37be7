"""One notebook through papermill: checked parameters, its own process, an honest outcome.

papermill (nteract, version 2.6 and later) only warns about an unknown parameter, and marks every cell "completed" when
the kernel dies; so parameters are checked here before anything starts, and success means that the process ended well and
that every cell of the saved notebook was executed without an unexpected error. `kernel.py` is what runs in that process,
`limits.py` watches it.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil

from dias_lab import runs
from dias_lab.book.limits import watch
from dias_lab.book.parameters import check, first_line, read
from dias_lab.files import checksum, size

KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
LOG = "log.txt"
NOT_TRIED_AGAIN = ("Timeout", "Interrupted", "OutOfMemory", "DiskFull", "RunDirectoryGone")
SCRATCH = f"dias_lab-{checksum(platform.node(), 4)}-"  # then the process; containers may share the folder, not processes
_running: dict[str, subprocess.Popen] = {}  # by token; stop() ends them all


class Outcome(NamedTuple):
    state: str  # "done" or "failed"
    seconds: float
    error: dict | None  # what error.json holds; `message` is for people
    peak_memory: int = 0  # bytes, all its processes together


def execute(
    notebook, out_dir, parameters: dict | None = None, timeout=None, threads=None, memory=None, disk=None, environment=None
) -> Outcome:
    """Execute the notebook; out_dir gets run.ipynb (saved after every cell), log.txt, and outcome.json or error.json.

    timeout: seconds for the whole notebook; threads: OMP_NUM_THREADS in it; memory: bytes that all its processes may take
    together; disk: bytes that out_dir may take; environment: variables for its process. Relative paths start at
    runs.root(), which is also the working directory. Raises parameters.Refused before anything starts; runs.RunBusy
    when another process uses out_dir.
    """
    notebook, out_dir = runs.resolve(notebook), runs.resolve(out_dir)
    parameters, limits = check(notebook, parameters), (timeout, memory, disk)
    environment = (environment or {}) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    start = time.monotonic()
    with runs.claim(out_dir) as token:
        for name in ("error.json", "outcome.json"):  # of an earlier attempt
            (out_dir / name).unlink(missing_ok=True)
        for log_mode in ("wb", "ab"):
            error, peak = _attempt(notebook, out_dir, parameters, limits, environment, token, log_mode)
            if not error or error["cell"] is not None or error["ename"] in NOT_TRIED_AGAIN:
                break  # else the kernel did not start, since the machine is crowded: once more
        seconds = time.monotonic() - start
        if not error:
            runs.write_json(out_dir / "outcome.json", {"run_seconds": seconds, "peak_memory": peak, "about": runs.about()})
        else:
            with contextlib.suppress(OSError):  # no space is left: the outcome tells it all the same
                runs.write_json(out_dir / "error.json", error)
    return Outcome("failed" if error else "done", seconds, error, peak)


def stop() -> None:
    """End all notebooks that this process executes (from another thread, after Ctrl-C)."""
    for token in list(_running):
        if process := _running.pop(token, None):
            _kill(process, token)


def _attempt(notebook, out_dir, parameters, limits, environment, token, log_mode) -> tuple[dict | None, int]:
    """None, or the content of error.json; and the peak of memory."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", ignore_cleanup_errors=True) as scratch:
        kernel = {"argv": KERNEL, "display_name": "Python 3", "language": "python"}
        runs.write_json(Path(scratch, "kernels/python3/kernel.json"), kernel)
        request = {"notebook": str(notebook), "out_dir": str(out_dir), "parameters": parameters, "scratch": scratch}
        with open(out_dir / LOG, log_mode) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dias_lab.book.kernel"],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                cwd=runs.root(), env=_environment(scratch, token) | environment, start_new_session=True,
            )  # fmt: skip
        _running[token] = process
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says so
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()  # and stays open: its end tells the child that this process is gone
            over, peak = watch(process, out_dir, *limits)
        finally:
            stopped = _running.pop(token, None) is None
            _kill(process, token)
            process.stdin.close()
        result = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # it ended before it wrote that
            result = runs.read_json(Path(scratch, "result.json"))
    peak = max(peak, result.get("peak_memory", 0))
    if stopped:
        result |= {"ename": "Interrupted", "evalue": "stopped on demand"}
    elif over:
        result |= over
    elif not (out_dir / "lock").exists():
        result |= {"ename": "RunDirectoryGone", "evalue": f"{out_dir} was deleted while the notebook ran"}
        out_dir.mkdir(parents=True, exist_ok=True)
    elif process.returncode != 0 and "ename" not in result:
        result |= {"ename": "Killed", "evalue": f"the notebook's process ended by {_ending(process.returncode)}"}
    elif result.get("ename") == "DeadKernelError":
        result["evalue"] = _why_dead(result.get("exit_code"), peak)
    if "ename" not in result and result.get("finished"):
        return None, peak
    return _error(notebook, out_dir, result, result.get("exit_code", process.returncode), peak), peak


def _sweep() -> None:
    """Remove the scratch folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        process = folder.name.split("-")[2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _why_dead(code: int | None, peak: int) -> str:
    if code in (-signal.SIGKILL, None):
        machine = size(psutil.virtual_memory().total)
        return f"the kernel died: likely out of memory (SIGKILL; its peak was {size(peak)}, the machine has {machine})"
    way = "ended by its own code" if code >= 0 else "crashed"
    return f"the kernel died: it {way} ({_ending(code)}; peak of memory {size(peak)})"


def _environment(scratch: str, token: str) -> dict:
    return os.environ | {
        "DIAS_LAB_ROOT": str(runs.root()),
        runs.CLAIM_VARIABLE: token,
        "JUPYTER_PATH": scratch,  # its python3 is this interpreter, whatever else is installed under that name
        "JUPYTER_RUNTIME_DIR": scratch,
        "IPYTHONDIR": scratch,  # no start-up files of the user, no history shared between kernels
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PLOTLY_RENDERER": "plotly_mimetype",  # small; gallery.py adds the script
    }


def _kill(process: subprocess.Popen, token: str) -> None:
    """End the child, its kernel (a session of its own) and all that they started: they carry the token."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    for _ in range(20):  # again, for what was being started meanwhile
        found = []
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if other.pid != os.getpid() and other.environ().get(runs.CLAIM_VARIABLE) == token:
                    other.kill()
                    found.append(other)
        if not found:
            return
        psutil.wait_procs(found, timeout=5)


def _error(notebook: Path, out_dir: Path, result: dict, exit_code: int, peak: int) -> dict:
    """The content of error.json."""
    cells, index = read(notebook).cells, result.get("cell")
    ename, evalue = result.get("ename", "Unfinished"), result.get("evalue", "not every cell was executed")
    place = f"{notebook.name}, before its first cell"
    if index is not None:
        line = f", line {result['line']}" if result.get("line") else ""
        place = f"{notebook.name}, cell {index + 1} of {len(cells)}{line} ({first_line(cells[index])[:80]})"
    return {
        "ename": ename, "evalue": evalue, "cell": index, "line": result.get("line"), "exit_code": exit_code,
        "peak_memory": peak, "when": datetime.now(UTC).isoformat(timespec="seconds"), "log": str(out_dir / LOG),
        "message": f"{place}: {ename}: {evalue}. Log: {runs.short(out_dir / LOG)}",
    }  # fmt: skip
