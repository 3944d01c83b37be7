"""What headless.execute starts: one notebook in a process of its own, through papermill.

Its output is bounded: what a cell prints above a megabyte is left out of run.ipynb and the log, with a line that says so.
"""

import contextlib
import json
import logging
import os
import re
import resource
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path

from dias_lab.book.parameters import first_line, read  # before nbclient: it makes nbformat's import quick

# isort: split
import papermill
import psutil
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers
from papermill.log import logger
from traitlets.config import Config as Settings

from dias_lab import runs

TEXT_LIMIT = 2**20  # characters that one cell may print
SHOWN_LIMIT = 2**25  # characters of all figures, tables and widgets of one cell
exit_codes = []  # of kernels that died
printed, shown = Counter(), Counter()  # characters of each cell
writing = threading.Lock()  # in the scratch folder


class Client(PapermillNotebookClient):
    """papermill's client, which also bounds what is kept of a cell's output, and learns how a kernel died."""

    def papermill_execute_cells(self):
        try:
            super().papermill_execute_cells()
        except DeadKernelError:
            exit_codes.append(getattr(self.km.provisioner.process, "returncode", None))
            raise

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "stream":
            room = TEXT_LIMIT - printed[cell_index]
            printed[cell_index] += len(content["text"])
            if room <= 0:
                return None
            if len(content["text"]) > room:
                content["text"] = content["text"][:room] + f"\n[left out: all above {TEXT_LIMIT:,} characters]\n"
        elif msg["msg_type"] in ("display_data", "execute_result", "update_display_data"):
            length = sum(len(str(value)) for value in content["data"].values())
            shown[cell_index] += length
            if shown[cell_index] > SHOWN_LIMIT:
                content["data"] = {"text/plain": f"[left out: an output of {length:,} characters]"}
        return super().process_message(msg, cell, cell_index)


class Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout, log_output, input_path=None, **options):
        options.pop("execution_timeout", None)
        return Client(
            nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, log=logger, log_output=log_output, **options
        ).execute()


papermill_engines.register("dias_lab", Engine)


def main() -> int:
    """Execute what stdin's first line asks for; result.json in the scratch folder tells how far it came."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the cells' own output goes to the log as well
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out, scratch = Path(request["out_dir"], "run.ipynb"), request["scratch"]
    result, replies = {}, {}

    def note(**changes):
        result.update(changes)
        with writing:
            runs.write_json(Path(scratch, "result.json"), result)

    def started(cell, cell_index):
        note(cell=positions[cell_index])
        print(f"--- cell {result['cell'] + 1}: {first_line(cell)}", flush=True)

    nodes = read(request["notebook"]).cells
    parameters_at = next(i for i, cell in enumerate(nodes) if "parameters" in cell.metadata.get("tags", []))
    injected = [parameters_at] if request["parameters"] else []  # papermill's cell counts as the one before it
    positions = [*range(parameters_at + 1), *injected, *range(parameters_at + 1, len(nodes))]
    settings = Settings()
    settings.KernelManager.connection_file = f"{scratch}/kernel.json"  # removed with the rest, however this ends
    if os.name == "posix" and len(scratch) < 80:  # sockets in a folder of their own: no races for ports
        settings.ConnectionFileMixin.transport = "ipc"
        settings.ConnectionFileMixin.ip = f"{scratch}/socket"
    braces = str.maketrans({"{": "{{", "}": "}}"})  # papermill formats its paths
    try:
        papermill.execute_notebook(
            request["notebook"].translate(braces), str(out).translate(braces), request["parameters"],
            engine_name="dias_lab", kernel_name="python3", language="python", progress_bar=False, log_output=True,
            start_timeout=120, store_widget_state=False, on_cell_start=started, config=settings,
            on_cell_error=lambda cell, cell_index, execute_reply: replies.update({cell_index: execute_reply["content"]}),
        )  # fmt: skip
    except PapermillExecutionError:
        pass  # the saved notebook tells more, and knows which errors its exercises want
    except Exception as error:  # the kernel died, or never came
        note(ename=type(error).__name__, evalue=str(error), peak_memory=_peak_of_kernel())
        if exit_codes:
            note(exit_code=exit_codes[-1])
        raise
    note(**_judge(out, positions, replies), peak_memory=_peak_of_kernel())
    return 0 if result.get("finished") else 1


def _peak_of_kernel() -> int:
    """Bytes, exact, also when it was killed: the system remembers the largest of the children that ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _judge(out: Path, positions: list[int], replies: dict) -> dict:
    """Finished, the first unexpected error, or the first cell left out. Only the kernel's replies tell of a failing magic."""
    notebook = remove_error_markers(read(out))
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or not cell.source.strip() or "skip-execution" in tags:
            continue
        error = next((output for output in cell.outputs if output.output_type == "error"), replies.get(index))
        if error and "raises-exception" not in tags:
            if error["ename"] == "SystemExit" and error["evalue"] in ("", "0", "None"):  # the notebook ends itself
                break
            text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.get("traceback", [])))
            line = re.search(rf"Cell In\[{cell.execution_count}\], line (\d+)", text)
            said = {"evalue": error["evalue"] + " (of a magic)" * (error["ename"] == "UsageError")}
            return {"ename": error["ename"], **said, "cell": positions[index], "line": int(line[1]) if line else None}
        if cell.execution_count is None:
            return {"ename": "Unfinished", "evalue": "this cell was not executed", "cell": positions[index]}
    runs.write_text(out, json.dumps(notebook, indent=1, ensure_ascii=False))
    return {"finished": True}


def _end_with_parent() -> None:
    """When whoever asked for this execution is killed, nothing of it stays behind."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    writing.acquire()  # for good: nothing makes the scratch folder anew
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=5)
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
