"""docs/adding_a_method.md, followed word for word: on a copy of the package, and as a package of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab import runs
from dias_lab.data.convert import scenes as clips
from dias_lab.trace import AttentionTrace

PROJECT = Path(__file__).parents[2]
WHOLE = (PROJECT / "docs" / "adding_a_method.md").read_text()
CLIPS = re.search(r"## A method for clips\n.*?(?=## What)", WHOLE, re.DOTALL)[0]
PAGE = WHOLE.replace(CLIPS, "")  # on images
SIZES = "--preset shapes --backbone-size 128 --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --num-slots 4"
MORE = "--learning-rate 0.01 --batch-size 4 --log-every 2 --evaluate-every 4 --evaluate-images 2 --device cpu"


def python(code: str, tmp_path: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DIAS_LAB_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


def shell(lines: list[str], tmp_path: Path) -> str:
    """What the commands print, all of which must succeed."""
    code = f"from dias_lab.__main__ import main\nfor line in {lines!r}:\n    assert main(line.split()) == 0, line"
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    return result.stdout


def follow(blocks, tmp_path: Path):
    """Make the files, and the changes to files, that a page shows."""
    for name, kind, text in blocks:
        path = tmp_path / name
        if kind == "python":
            assert not path.exists()
            path.write_text(text)
            continue
        old, new = ("".join(line[1:] for line in text.splitlines(True) if line[0] in " " + mark) for mark in "-+")
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))


def copied(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "dias_lab", tmp_path / "dias_lab", ignore=ignored, dirs_exist_ok=True)
    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.png")
    return tmp_path


def test_the_page_makes_a_method_that_trains_evaluates_and_traces(small_scenes, tmp_path):
    blocks = re.findall(r"`(dias_lab/[\w/.]+)`[^\n]*\n\n```(python|diff)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for _, kind, _ in blocks] == ["python", "diff"]
    assert len([line for _, _, text in blocks for line in text.splitlines() if line.strip()]) < 100
    assert [line[0] for line in blocks[1][2].splitlines()] == [" ", "+"]  # one line
    follow(blocks, copied(tmp_path))
    said = shell(
        [
            f"train --method sharp --run-dir run --steps 8 {SIZES} {MORE} --data {small_scenes}",
            f"evaluate --run-dir run --data {small_scenes}",
            "trace --run-dir run --images photo.png --out maps.npz",
        ],
        tmp_path,
    )
    assert "3 images of test" in said
    log = [line for line in runs.read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert log[-1]["reconstruction"] < log[0]["reconstruction"] and log[-1]["entropy"] > 0
    assert log[0]["weight_entropy"] < log[-1]["weight_entropy"] == 0.1 * 7 / 8
    trace = AttentionTrace.load(tmp_path / "maps.npz")
    assert trace.about["method"] == "sharp" and trace.attention.shape[2:] == (4, 8, 8)
    np.testing.assert_allclose(trace.decoder_attention.astype(float).sum(axis=1), 1, atol=5e-3)


def test_the_page_makes_a_method_for_clips_that_trains_evaluates_and_streams(tmp_path):
    code, stream = re.findall(r"```python\n(.*?)```", CLIPS, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 60
    blocks = [("dias_lab/methods/steady.py", "python", code)]
    blocks.append(("dias_lab/config/__init__.py", "diff", re.search(r"```diff\n(.*?)```", CLIPS, re.DOTALL)[1]))
    assert [line[0] for line in blocks[1][2].splitlines()] == [" ", "+"]  # one line
    follow(blocks, copied(tmp_path))
    commands = [line.removeprefix("python -m dias_lab ") for line in re.search(r"```\n(python -m.*?)```", CLIPS, re.DOTALL)[1].splitlines()]
    clips.convert_clips(tmp_path / "data" / "clips", train=2, validation=1, test=1, frames=2)
    small = "--clip-frames 3 --steps 3 --batch-size 2 --log-every 1 --evaluate-every 3 --evaluate-images 1 --conditioning-images 2 --device cpu"
    shell([f"{commands[0]} {small}", *commands[1:]], tmp_path)
    log = [line for line in runs.read_lines(tmp_path / "runs" / "steady" / "metrics.jsonl") if "loss" in line]
    assert log[-1]["change"] > 0 and log[0]["weight_change"] < log[-1]["weight_change"]
    about = "import torch\nframes = torch.randint(0, 255, (3, 1, 3, 140, 130), dtype=torch.uint8)\n"
    check = "clip, given = model.prepare(frames.movedim(0, 1)), dict(draws=model.draw([0], 1))\nwhole = model(clip, **given).change\n"
    check += "from dias_lab.methods import clip as loop; loop.AT_ONCE = 1\n"
    check += "print(whole.shape, bool((whole - model(clip, **given).change).abs().max() < 1e-5), whole[0].any(dim=1).tolist())"
    result = python(f"{about}{stream}print(output.slots.shape, state.frame)\n{check}", tmp_path)
    assert "torch.Size([1, 7, 64]) 3\ntorch.Size([1, 3, 7]) True [False, True, True]" in result.stdout, result.stderr


@pytest.fixture
def outside(tmp_path) -> Path:
    """A package of somebody else's, as pip installs it: its modules, and what its pyproject.toml says of them."""
    method, fields = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    table = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1].replace("[project.entry-points.", "[").replace('"', "")
    (tmp_path / "sharp").mkdir()
    old, new = re.findall(r"```diff\n-(.*\n)\+(.*\n)```", PAGE)[0]
    assert method.count(old) == 1
    (tmp_path / "sharp/method.py").write_text(method.replace(old, new))
    (tmp_path / "sharp/fields.py").write_text(fields)
    (tmp_path / "sharp-1.0.dist-info").mkdir()
    (tmp_path / "sharp-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: sharp\nVersion: 1.0\n")
    (tmp_path / "sharp-1.0.dist-info/entry_points.txt").write_text(table)
    return copied(tmp_path)


def test_a_method_may_live_in_a_package_of_its_own(outside, small_scenes):
    train = f"train --method sharp --steps 4 {SIZES} {MORE} --data {small_scenes} --run-dir"
    shell([f"{train} run --entropy-weight 0.5", "trace --run-dir run --images photo.png --out maps.npz"], outside)
    log = [line for line in runs.read_lines(outside / "run" / "metrics.jsonl") if "loss" in line]
    assert log[-1]["weight_entropy"] == 0.5 * 3 / 4
    config = runs.read_json(outside / "run" / "config.json")
    assert (config["method"], config["entropy_weight"], config["initializer"]) == ("sharp", 0.5, "separate")
    code = "from dias_lab import Config\nfor fields in ({'entropy_weight': -1}, {'method': 'shrap'}):\n"
    code += "    try: Config.preset('shapes', **fields)\n    except ValueError as error: print(error)"
    said = python(code, outside).stdout
    assert "entropy_weight must not be negative" in said and "did you mean 'sharp'" in said


def test_a_broken_package_from_outside_is_left_out_with_a_word(outside):
    (outside / "sharp/fields.py").write_text("import nothing_of_this_name")
    found = python("from dias_lab.config import METHODS; print('sharp' in METHODS, 'dias' in METHODS)", outside)
    assert found.stdout.split() == ["False", "True"] and "'sharp' is left out" in found.stderr


def test_a_package_from_outside_takes_no_built_in_methods_place(outside):
    entries = outside / "sharp-1.0.dist-info/entry_points.txt"
    entries.write_text(entries.read_text().replace("sharp = sharp.method:Sharp", "dias = sharp.method:Sharp"))
    code = "from dias_lab.config import METHODS; print(METHODS['dias'].place)"
    assert python(code, outside).stdout.strip() == "dias_lab.methods.dias:DIAS"
