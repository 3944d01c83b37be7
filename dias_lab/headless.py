"""One notebook through papermill: checked parameters, its own process, an honest outcome.

papermill (nteract, version 2.6 and later) only warns about an unknown parameter, and marks every cell "completed" when
the kernel dies; so parameters are checked here before anything starts, and success means that the process ended well and
that every cell of the saved notebook was executed without an unexpected error.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dias_lab import runs
from dias_lab.parameters import Refused, check, read

__all__ = ["Outcome", "Refused", "execute", "stop"]
KERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
LOG = "log.txt"
_running: dict[str, subprocess.Popen] = {}  # by token; stop() ends them all


class Outcome(NamedTuple):
    state: str  # "done" or "failed"
    seconds: float
    error: dict | None  # what error.json holds; `message` is for people


def execute(notebook, out_dir, parameters: dict | None = None, timeout=None, threads=None) -> Outcome:
    """Execute the notebook; out_dir gets run.ipynb (saved after every cell), log.txt, and error.json when it failed.

    timeout: seconds for the whole notebook; threads: OMP_NUM_THREADS in it. Relative paths start at runs.root(), which
    is also the working directory. Raises Refused before anything starts, runs.RunBusy when another process uses out_dir.
    """
    notebook, out_dir = runs.resolve(notebook), runs.resolve(out_dir)
    parameters = check(notebook, parameters)
    start = time.monotonic()
    with runs.claim(out_dir) as token:
        error = _attempt(notebook, out_dir, parameters, timeout, threads, token, "wb")
        if error and error["cell"] is None and error["ename"] not in ("Timeout", "Interrupted"):
            # the kernel did not start: the machine is crowded
            error = _attempt(notebook, out_dir, parameters, timeout, threads, token, "ab")
        if error:
            runs.write_json(out_dir / "error.json", error)
        else:
            (out_dir / "error.json").unlink(missing_ok=True)
    return Outcome("failed" if error else "done", time.monotonic() - start, error)


def stop() -> None:
    """End all notebooks that this process executes (from another thread, after Ctrl-C)."""
    for token in list(_running):
        if process := _running.pop(token, None):
            _kill(process, token)


def _attempt(notebook, out_dir, parameters, timeout, threads, token, log_mode) -> dict | None:
    """None, or the content of error.json."""
    with tempfile.TemporaryDirectory(prefix="dias_lab-", ignore_cleanup_errors=True) as scratch:
        kernel = {"argv": KERNEL, "display_name": "Python 3", "language": "python"}
        runs.write_json(Path(scratch, "kernels/python3/kernel.json"), kernel)
        request = {"notebook": str(notebook), "out_dir": str(out_dir), "parameters": parameters, "scratch": scratch}
        with open(out_dir / LOG, log_mode) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dias_lab.headless"],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                cwd=runs.root(), env=_environment(scratch, token, threads), start_new_session=True,
            )  # fmt: skip
        _running[token] = process
        timed_out = stopped = False
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says so
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()  # and stays open: its end tells the child that this process is gone
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            stopped = _running.pop(token, None) is None
            _kill(process, token)
            process.stdin.close()
        result = _result(scratch)
    if timed_out or stopped:
        result |= {"ename": "Timeout", "evalue": f"stopped after {timeout} s"}
        result |= {"ename": "Interrupted", "evalue": "stopped on demand"} if stopped else {}
    elif process.returncode != 0 and "ename" not in result:
        code = process.returncode
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        result |= {"ename": "Killed", "evalue": f"the notebook's process ended by {name}"}
    if "ename" not in result and result.get("finished"):
        return None
    return _error(notebook, out_dir, result, process.returncode)


def _environment(scratch: str, token: str, threads) -> dict:
    environment = os.environ | {
        "DIAS_LAB_ROOT": str(runs.root()),
        runs.CLAIM_VARIABLE: token,
        "JUPYTER_PATH": scratch,  # its python3 is this interpreter, whatever else is installed under that name
        "JUPYTER_RUNTIME_DIR": scratch,
        "IPYTHONDIR": scratch,  # no start-up files of the user, no history shared between kernels
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PLOTLY_RENDERER": "plotly_mimetype",  # small; gallery.py adds the script
    }
    return environment | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def _kill(process: subprocess.Popen, token: str) -> None:
    """End the child, its kernel (a session of its own) and all that they started: they carry the token."""
    import psutil

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


def _result(scratch: str) -> dict:
    try:
        return runs.read_json(Path(scratch, "result.json"))
    except (FileNotFoundError, ValueError):
        return {}


def _error(notebook: Path, out_dir: Path, result: dict, exit_code: int) -> dict:
    """The content of error.json."""
    cells, index = read(notebook).cells, result.get("cell")
    ename, evalue = result.get("ename", "Unfinished"), result.get("evalue", "not every cell was executed")
    place = f"{notebook.name}"
    if index is not None:
        source = (cells[index].source.strip().splitlines() or [""])[0]
        place += f", cell {index + 1} of {len(cells)}" + (f", line {result['line']}" if result.get("line") else "")
        place += f" ({source[:80]})"
    else:
        place += ", before its first cell"
    return {
        "ename": ename, "evalue": evalue, "cell": index, "line": result.get("line"), "exit_code": exit_code,
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "log": str(out_dir / LOG),
        "message": f"{place}: {ename}: {evalue}. Log: {runs.short(out_dir / LOG)}",
    }  # fmt: skip


def _child() -> int:
    """Execute what stdin's first line asks for; result.json in the scratch folder tells how far it came."""
    import logging

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config as Settings

    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the cells' own output goes to the log as well
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out, scratch = Path(request["out_dir"], "run.ipynb"), request["scratch"]
    result = {}

    def note(**changes):
        result.update(changes)
        runs.write_json(Path(scratch, "result.json"), result)

    def started(cell, cell_index):
        note(cell=positions[cell_index])
        print(f"--- cell {result['cell'] + 1}: {(cell.source.strip().splitlines() or [''])[0]}", flush=True)

    nodes = read(request["notebook"]).cells
    parameters_at = next(i for i, cell in enumerate(nodes) if "parameters" in cell.metadata.get("tags", []))
    injected = [parameters_at] if request["parameters"] else []  # papermill's cell counts as the one before it
    positions = [*range(parameters_at + 1), *injected, *range(parameters_at + 1, len(nodes))]
    settings = Settings()
    if os.name == "posix" and len(scratch) < 80:  # sockets in a folder of their own: no races for ports
        settings.ConnectionFileMixin.transport = "ipc"
        settings.ConnectionFileMixin.ip = f"{scratch}/socket"
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    try:
        papermill.execute_notebook(
            request["notebook"].translate(braces), str(out).translate(braces), request["parameters"],
            kernel_name="python3", progress_bar=False, log_output=True, start_timeout=120,
            store_widget_state=False, on_cell_start=started, config=settings,
        )  # fmt: skip
    except PapermillExecutionError:
        pass  # the saved notebook tells more, and knows which errors its exercises want
    except Exception as error:  # the kernel died, or never came
        dead = "the kernel died: out of memory, killed, or ended by its own code"
        note(ename=type(error).__name__, evalue=dead if isinstance(error, DeadKernelError) else str(error))
        raise
    note(**_judge(out, positions))
    return 0 if result.get("finished") else 1


def _judge(out: Path, positions: list[int]) -> dict:
    """What the executed notebook says: finished, or the first unexpected error, or the first cell left out."""
    from papermill.execute import remove_error_markers

    notebook = remove_error_markers(read(out))
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or not cell.source.strip() or "skip-execution" in tags:
            continue
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags:
                text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.traceback))
                line = re.search(rf"Cell In\[{cell.execution_count}\], line (\d+)", text)
                where = {"cell": positions[index], "line": int(line[1]) if line else None}
                return {"ename": output.ename, "evalue": output.evalue, **where}
        if cell.execution_count is None:
            return {"ename": "Unfinished", "evalue": "this cell was not executed", "cell": positions[index]}
    runs.write_text(out, json.dumps(notebook, indent=1, ensure_ascii=False))
    return {"finished": True}


def _end_with_parent() -> None:
    """When whoever asked for this execution is killed, nothing of it stays behind."""
    import shutil

    import psutil

    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_child())
