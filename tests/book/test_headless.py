"""One notebook through papermill: what is refused, and what a failure leaves behind."""

import contextlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell

from dias_lab import runs
from dias_lab.book import headless


def _left_behind(token_holder: str) -> list:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DIAS_LAB_ROOT") == token_holder:
                found.append(process)
    return found


def test_parameters_reach_the_cells_and_exercises_may_raise(write, tmp_path):
    stub = new_code_cell("raise NotImplementedError", metadata={"tags": ["exercise", "raises-exception"]})
    notebook = write("import sys, os", stub, "print(x, os.getcwd(), sys.executable, os.environ['OMP_NUM_THREADS'])")
    (tmp_path / "out{x} y").mkdir()
    runs.write_json(tmp_path / "out{x} y/error.json", {"old": True})
    outcome = headless.execute(notebook, "out{x} y", {"x": 3}, threads=1)
    assert (outcome.state, outcome.error) == ("done", None)
    assert sorted(path.name for path in (tmp_path / "out{x} y").iterdir()) == ["log.txt", "outcome.json", "run.ipynb"]
    executed = nbformat.read(tmp_path / "out{x} y/run.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == f"3 {tmp_path} {sys.executable} 1\n"
    assert not any("papermill-error-cell-tag" in cell.metadata.tags for cell in executed.cells)


def test_raising_cell_is_named(write, tmp_path):
    notebook = write("a = 1", "b = 2\n\nraise ValueError('not so')", "c = 3")
    outcome = headless.execute(notebook, "out", {"x": 2})
    error = runs.read_json(tmp_path / "out/error.json")
    assert outcome.state == "failed"
    assert (error["ename"], error["evalue"], error["cell"], error["line"]) == ("ValueError", "not so", 2, 3)
    assert error["message"].startswith("toy.ipynb, cell 3 of 4, line 3 (b = 2): ValueError: not so. Log: out/log.txt")
    assert runs.state(tmp_path / "out") == "failed"


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)", "os.kill(os.getppid(), 9); time.sleep(60)"])
def test_dead_process_is_a_failure(write, tmp_path, end):
    outcome = headless.execute(write("import os, time", end, "1"), "out")
    assert outcome.state == "failed"
    assert outcome.error["cell"] == 2
    assert outcome.error["ename"] in ("DeadKernelError", "Killed")
    assert _left_behind(str(tmp_path)) == []


def test_timeout_ends_every_process(write, tmp_path):
    endless = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: pass'])\nwhile True: pass"
    outcome = headless.execute(write(endless), "out", timeout=6)
    assert (outcome.error["ename"], outcome.error["cell"]) == ("Timeout", 1)
    assert _left_behind(str(tmp_path)) == []
    assert not (tmp_path / "out/lock").exists()


@pytest.mark.parametrize("end, state", [("import sys; sys.exit(0)", "done"), ("raise SystemExit", "done"), ("import sys; sys.exit(3)", "failed")])
def test_a_notebook_may_end_itself_and_says_whether_it_failed(write, end, state):
    outcome = headless.execute(write(end, "1 / 0"), "out")
    assert outcome.state == state
    assert outcome.error is None or (outcome.error["ename"], outcome.error["evalue"], outcome.error["cell"]) == ("SystemExit", "3", 1)


@pytest.mark.parametrize(
    "cells, bad, words",
    [
        (["print(1)", "%no_such_magic 3"], 2, "UsageError.*no_such_magic"),
        (["%no_such_magic 3", "print('after')"], 1, "UsageError.*no_such_magic"),
        (["%%no_such_cell_magic\nprint(1)"], 1, "UsageError.*no_such_cell_magic"),
        (["%timeit -n"], 1, "UsageError"),
    ],
)
def test_a_magic_that_fails_is_named_at_its_own_cell(write, cells, bad, words):
    outcome = headless.execute(write(*cells), "out", {"x": 2})
    assert outcome.state == "failed" and outcome.error["cell"] == bad
    assert re.search(f"toy.ipynb, cell {bad + 1} of .*{words}", outcome.error["message"])


@pytest.mark.slow
def test_kernel_that_does_not_start_is_tried_once_more(write, tmp_path, monkeypatch):
    code = f"import pathlib, runpy, sys; p = pathlib.Path({str(tmp_path)!r}, 'tries'); n = p.exists(); p.write_text('x')\n"
    code += "sys.argv = ['k', *sys.argv[1:]]; runpy.run_module('ipykernel_launcher', run_name='__main__') if n else sys.exit(1)"
    monkeypatch.setattr(headless, "KERNEL", [sys.executable, "-c", code, "-f", "{connection_file}"])
    assert headless.execute(write("1"), "out").state == "done"
    monkeypatch.setattr(headless, "KERNEL", [sys.executable, "-c", "raise SystemExit(1)", "-f", "{connection_file}"])
    outcome = headless.execute(write("1"), "out")
    assert (outcome.state, outcome.error["cell"]) == ("failed", None)
    assert "before its first cell" in outcome.error["message"]


def test_three_at_a_time_do_not_mix(write, tmp_path):
    notebook = write("assert x * 2 == 2 * x; print(x)")
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda x: headless.execute(notebook, f"out{x}", {"x": x}, threads=1), range(3)))
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
    for x in range(3):
        assert nbformat.read(tmp_path / f"out{x}/run.ipynb", as_version=4).cells[-1].outputs[0].text == f"{x}\n"


def test_notebook_may_claim_the_directory_it_runs_in(write, tmp_path):
    cell = "from dias_lab import runs\nwith runs.claim('out'):\n    runs.write_json('out/metrics.json', {})"
    assert headless.execute(write(cell), "out").state == "done"
    assert runs.state(tmp_path / "out") == "done"


def test_memory_above_the_limit_ends_the_notebook(write, tmp_path):
    greedy = "import time\nheld = [bytearray(b'x' * 50_000_000)]\nwhile True:\n    held.append(bytearray(held[0])); time.sleep(0.05)"
    outcome = headless.execute(write(greedy), "out", memory=700_000_000, timeout=120)
    assert (outcome.error["ename"], outcome.error["cell"]) == ("OutOfMemory", 1)
    assert "above its limit of 700.0 MB" in outcome.error["message"]
    assert 700_000_000 < outcome.peak_memory == outcome.error["peak_memory"] < 1_500_000_000
    assert _left_behind(str(tmp_path)) == []


def test_a_killed_kernel_is_likely_out_of_memory_and_a_crash_is_not(write):
    outcome = headless.execute(write("import os; held = bytearray(b'x' * 300_000_000); os.kill(os.getpid(), 9)"), "out")
    assert outcome.error["exit_code"] == -9 and outcome.peak_memory > 300_000_000
    assert "the kernel died: likely out of memory (SIGKILL; its peak was" in outcome.error["message"]
    outcome = headless.execute(write("import os; os._exit(3)"), "out")
    assert outcome.error["exit_code"] == 3 and "ended by its own code (exit code 3" in outcome.error["message"]


def test_disk_above_the_limit_ends_the_notebook(write, tmp_path):
    filling = "import time\nwith open('out/big', 'wb') as file:\n    while True:\n        file.write(b'x' * 1_000_000); file.flush(); time.sleep(0.02)"
    outcome = headless.execute(write(filling), "out", disk=20_000_000, timeout=120)
    assert (outcome.error["ename"], outcome.error["cell"]) == ("DiskFull", 1)
    full = headless.execute(write("with open('/dev/full', 'w') as file:\n    file.write('x')"), "full")
    assert full.error["ename"] == "OSError" and "No space left" in full.error["evalue"]


def test_output_is_bounded(write, tmp_path):
    shout = "for _ in range(1000):\n    print('x' * 100_000)\nprint('end')"
    notebook = write(shout, "from IPython.display import HTML\nHTML('y' * 50_000_000)", "print('next cell')")
    assert headless.execute(notebook, "out").state == "done"
    assert (tmp_path / "out/run.ipynb").stat().st_size < 3_000_000 > (tmp_path / "out/log.txt").stat().st_size
    cells = nbformat.read(tmp_path / "out/run.ipynb", as_version=4).cells
    assert "left out" in cells[1].outputs[0].text and cells[-1].outputs[0].text == "next cell\n"


def test_a_notebook_that_deletes_its_run_directory_has_failed(write, tmp_path):
    outcome = headless.execute(write("import shutil; shutil.rmtree('out')", "1"), "out")
    assert (outcome.state, outcome.error["ename"]) == ("failed", "RunDirectoryGone")
    assert runs.read_json(tmp_path / "out/error.json")["message"].startswith("toy.ipynb, cell")
    assert runs.state(tmp_path / "out") == "failed"


@pytest.mark.slow
def test_eight_at_a_time_do_not_mix(write, tmp_path):
    notebook = write("import time\nfor _ in range(20):\n    print(x, end=' ', flush=True); time.sleep(0.02)")
    for turn in range(5):
        with ThreadPoolExecutor(8) as pool:
            started = [pool.submit(headless.execute, notebook, f"out{turn}-{x}", {"x": x}, threads=1) for x in range(8)]
            outcomes = [future.result() for future in started]
        assert [outcome.error for outcome in outcomes] == [None] * 8
        for x in range(8):
            outputs = nbformat.read(tmp_path / f"out{turn}-{x}/run.ipynb", as_version=4).cells[-1].outputs
            assert "".join(output.text for output in outputs) == f"{x} " * 20
    assert _left_behind(str(tmp_path)) == []
