"""docs/adding_a_method.md, followed word for word on a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dias_lab import runs
from dias_lab.trace import AttentionTrace

PROJECT = Path(__file__).parents[1]


def test_the_page_makes_a_method_that_trains_evaluates_and_traces(small_scenes, tmp_path):
    page = (PROJECT / "docs" / "adding_a_method.md").read_text()
    blocks = re.findall(r"`(dias_lab/[\w/.]+)`[^\n]*\n\n```(python|diff)\n(.*?)```", page, re.DOTALL)
    assert [kind for _, kind, _ in blocks] == ["python", "diff", "diff"]
    code = [line for _, _, text in blocks for line in text.splitlines() if line.strip()]
    assert len(code) < 100
    shutil.copytree(PROJECT / "dias_lab", tmp_path / "dias_lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name, kind, text in blocks:
        path = tmp_path / name
        if kind == "python":
            assert not path.exists()
            path.write_text(text)
            continue
        old, new = ("".join(line[1:] for line in text.splitlines(True) if line[0] in " " + mark) for mark in "-+")
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.png")

    sizes = "--backbone-size 128 --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --num-slots 4"
    more = f"--learning-rate 0.01 --batch-size 4 --log-every 2 --evaluate-every 4 --evaluate-images 2 --data {small_scenes}"
    lines = [
        f"train --method sharp --run-dir run --steps 8 {sizes} {more}",
        f"evaluate --run-dir run --data {small_scenes}",
        "trace --run-dir run --images photo.png --out maps.npz",
    ]
    code = f"from dias_lab.__main__ import main\nfor line in {lines!r}:\n    assert main(line.split()) == 0, line"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DIAS_LAB_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "3 images of test" in result.stdout
    log = [line for line in runs.read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert log[-1]["reconstruction"] < log[0]["reconstruction"] and log[-1]["entropy"] > 0
    assert log[0]["weight_entropy"] < log[-1]["weight_entropy"] == 0.1 * 7 / 8
    trace = AttentionTrace.load(tmp_path / "maps.npz")
    assert trace.about["method"] == "sharp" and trace.attention.shape[2:] == (4, 8, 8)
    np.testing.assert_allclose(trace.decoder_attention.astype(float).sum(axis=1), 1, atol=5e-3)
