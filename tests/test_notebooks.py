"""The ordered notebooks through papermill, by the command that a user types, in a small size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dias_lab import runs
from dias_lab.trace import AttentionTrace

PROJECT = Path(__file__).parents[1]
SIZES = (
    "--steps 24 --batch-size 4 --learning-rate 0.01 --slot-dim 12 --slot-mlp-dim 16 --decoder-layers 1 --evaluate-images 3 "
    "--ablation-steps 16 --log-every 4 --jobs 1"
).split()
SMALL = {  # what is no field of Config, in the copies that the tests run
    "num_scenes: int = 48": "num_scenes: int = 8",
    "train_scenes: int = 160": "train_scenes: int = 8",
    "train_steps: int = 60": "train_steps: int = 3",
    "sweep_images: int = 32": "sweep_images: int = 2",
    "scored_images: int = 48": "scored_images: int = 3",
    "calibration_images: int = 48": "calibration_images: int = 4",
    "short_steps: int = 10": "short_steps: int = 2",
    "compared_images: int = 24": "compared_images: int = 3",
    "iteration_images: int = 16": "iteration_images: int = 2",
    "gradient_images: int = 6": "gradient_images: int = 2",
    "probes: int = 24": "probes: int = 9",
    "timed_steps: int = 3": "timed_steps: int = 1",
}


def run_book(root: Path, *options) -> subprocess.CompletedProcess:
    for name in ("pyproject.toml", "notebooks", "docs"):
        if not (root / name).exists():
            (shutil.copytree if (PROJECT / name).is_dir() else shutil.copy)(PROJECT / name, root / name)
            if name == "notebooks":
                make_small(root / name)
    environment = {**os.environ, "DIAS_LAB_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dias_lab", "run", *SIZES, *map(str, options)]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=550)


def make_small(notebooks: Path):
    texts = {path: path.read_text() for path in notebooks.glob("0*.ipynb")}
    for old, new in SMALL.items():
        assert sum(text.count(old) for text in texts.values()) == 1, old
        texts = {path: text.replace(old, new) for path, text in texts.items()}
    for path, text in texts.items():
        path.write_text(text)
    small = notebooks / "grids/small.toml"  # two settings, two seeds
    small.write_text(small.read_text().partition('[[variants]]\nname = "distillation')[0])


def outputs(root: Path, name: str) -> str:
    (path,) = root.glob(f"runs/book-*/{name}*/run.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(str(output) for cell in cells if cell.cell_type == "code" for output in cell.outputs)


@pytest.mark.xdist_group("scenes")
def test_the_book_on_scenes_runs_and_is_reused(small_scenes, tmp_path):
    shutil.copytree(small_scenes, tmp_path / "data" / "scenes")
    result = run_book(tmp_path, "--fourier-dim", 16, "--fourier-stride", 16, "--num-slots", 5, "--decoder-heads", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    (book,) = tmp_path.glob("runs/book-*")
    assert len(list(book.glob("0*/run.ipynb"))) == 8 and len(list(book.glob("ablation/*/metrics.json"))) == 4
    assert runs.read_json(book / "training" / "metrics.json")["steps"] == 24
    assert len(AttentionTrace.load(book / "training" / "trace.npz")) == 3
    for words in ("decoder map", "k-means", "position", "ceiling", "Where this model stands", "decoder over last"):
        assert words in outputs(tmp_path, "04")
    for words in ("equals SlotAttention.step", "DIAS.forward, by hand", "hiding by hand equals the decoder"):
        assert words in outputs(tmp_path, "02")
    assert "Does the last map beat the first?" in outputs(tmp_path, "00")
    for words in ("calibrated on 4 training images", "merging alone", "of hindsight in"):
        assert words in outputs(tmp_path, "06")
    for words in ("2 steps: machinery, no finding", "same time: 1", "by the last iteration's map", "DIAS minus k-means"):
        assert words in outputs(tmp_path, "07")
    for words in ("The claim, measured", "SPOT, all nine orders"):
        assert words in outputs(tmp_path, "07")
    assert "from the cache" in outputs(tmp_path, "03")
    assert "widget-view" not in outputs(tmp_path, "04")  # live is False: figures instead of controls
    pages = {path.stem for path in tmp_path.glob("site/scenes-*/*.html")}
    assert {path.stem for path in (tmp_path / "notebooks").glob("0*.ipynb")} <= pages

    again = run_book(tmp_path, "--fourier-dim", 16, "--fourier-stride", 16, "--num-slots", 5, "--decoder-heads", 2)
    assert again.returncode == 0 and again.stdout.count("reused") == 9
    for words in ("this grid", "the project's own results", "The first map needs self-distillation"):
        assert words in outputs(tmp_path, "05")


@pytest.mark.xdist_group("photos")
@pytest.mark.parametrize("last", ["04", pytest.param("06", marks=pytest.mark.slow)])
def test_the_book_on_real_photos(last, real_data, tmp_path):
    result = run_book(
        tmp_path, "--preset", "coco", "--data", real_data / "coco", "--backbone", "mobilenetv2_100",
        "--backbone-weights", real_data / "weights" / "mobilenetv2_100.safetensors",
        "--backbone-arguments", '{"pad_type": "same"}', "--backbone-stage", 3, "--image-mean", 0.5, 0.5, 0.5,
        "--image-std", 0.5, "--only", "04", last,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "000000000139.jpg" in outputs(tmp_path, "04") and "k-means" in outputs(tmp_path, "04")
    assert "100 images of test" in outputs(tmp_path, "04") and "n = 1" in outputs(tmp_path, "04")
    page = next(tmp_path.glob("site/coco-*/04_attention_maps.html")).read_text()
    assert page.count("data:image/png") >= 4 and "Where this model stands" in page


def test_options_that_cannot_work_are_refused_before_anything_starts(tmp_path):
    for options, words in (
        (["--preset", "coco"], "convert coco"),
        (["--preset", "cocoo"], "did you mean 'coco'"),
        (["--data", tmp_path / "nothing"], "there is no"),
        (["--num-slots", "0"], "num_slots must be above 0"),
        (["--only", "09"], "no such notebook"),
    ):
        result = run_book(tmp_path, *options)
        assert result.returncode == 2 and words in result.stderr, (options, result.stdout, result.stderr)
    assert not (tmp_path / "runs").exists()
