"""The ordered notebooks through papermill, by the command that a user types, in a small size; and how they are written."""

import ast
import collections
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.data.convert import physics, scenes
from dias_lab.trace import AttentionTrace

PROJECT = Path(__file__).parents[2]
NOTEBOOKS = sorted((PROJECT / "notebooks").rglob("*.ipynb"))
RAN = PROJECT / "notebooks/00_tour.ipynb"
SIZES = (
    "--steps 24 --batch-size 4 --learning-rate 0.01 --slot-dim 12 --slot-mlp-dim 16 --decoder-layers 1 --evaluate-images 3 "
    "--ablation-steps 16 --log-every 4 --jobs 1"
).split()
SMALL = {  # what is no field of Config, in the copies that the tests run
    "num_scenes: int = 48": "num_scenes: int = 8",
    "train_scenes: int = 160": "train_scenes: int = 8",
    "train_steps: int = 60": "train_steps: int = 3",
    "num_images: int = 100": "num_images: int = 20",
    "sweep_images: int = 32": "sweep_images: int = 2",
    "hindsight_images: int = 32": "hindsight_images: int = 2",
    "scored_images: int = 48": "scored_images: int = 3",
    "calibration_images: int = 48": "calibration_images: int = 4",
    "short_steps: int = 0": "short_steps: int = 2",
    "compared_images: int = 24": "compared_images: int = 3",
    "timed_steps: int = 5": "timed_steps: int = 1",
    "scored_clips: int = 6": "scored_clips: int = 1",
    "event_clips: int = 6": "event_clips: int = 1",
    "streamed_frames: int = 30": "streamed_frames: int = 3",
    "head_steps: int = 150": "head_steps: int = 3",
    "predictor_steps: int = 80": "predictor_steps: int = 3",
    "reader_steps: int = 40": "reader_steps: int = 3",
    "scored: int = 8": "scored: int = 2",
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
    texts = {path: path.read_text() for path in notebooks.glob("[01]*.ipynb")}
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


def code_of(path: Path) -> dict[str, str]:
    """The code cells, by id."""
    return {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"}


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")


@each_notebook
def test_cells_stay_short(path):
    long = {name: count for name, source in code_of(path).items() if (count := source.count("\n") + 1) > 20}
    assert not long


def private_names(source: str) -> list[str]:
    """Names of somebody else's insides: `x._name` of anything, and `from dias_lab... import _name`."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    names += [alias.name.rpartition(".")[2] for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [name for name in names if re.match(r"_(?!_)", name)]


@each_notebook
def test_cells_call_no_private_names(path):
    found = {name: private for name, source in code_of(path).items() if (private := private_names(source))}
    assert not found


@each_notebook
def test_no_import_hides_a_field_of_config(path):
    """`Config.from_parameters(globals())` would take the function for the parameter."""
    nodes = [node for source in code_of(path).values() for node in ast.walk(ast.parse(source))]
    imported = {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not imported & set(Config.field_names())


@each_notebook
def test_intervals_are_the_packages(path):
    """Drawing at random and taking a quantile in one cell is a bootstrap by hand; dias_lab.analysis.intervals has it."""
    quantile = re.compile(r"\b(nan)?(quantile|percentile)\b")
    drawn = re.compile(r"\b(default_rng|RandomState|choice|integers|randint|resample)\b")
    assert not [name for name, source in code_of(path).items() if quantile.search(source) and drawn.search(source)]


def test_no_function_is_in_two_notebooks():
    """Neither in a notebook and its solutions, except that an exercise's function has its answer there."""
    homes = collections.defaultdict(set)
    for path in NOTEBOOKS:
        for name, source in code_of(path).items():
            if not name.startswith(("exercise-", "solution-")):
                functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, functions):
                        homes[node.name].add(str(path.relative_to(PROJECT)))
    assert len(homes) > 20
    assert not {name: sorted(places) for name, places in homes.items() if len(places) > 1}


@pytest.mark.parametrize("there", [True, False])
def test_the_tour_installs_the_package_only_where_it_is_missing(there, monkeypatch):
    """By name, without the network; and before anything of the package is imported."""
    cells, done = code_of(RAN), []
    shell = SimpleNamespace(run_line_magic=lambda *words: done.append(words))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if there or name != "dias_lab" else None)
    exec(cells["install"], {})
    assert done == ([] if there else [("pip", "install --quiet ..")])
    assert next(name for name, source in cells.items() if "dias_lab" in source) == "install"


def test_these_rules_notice():
    assert private_names("model._step(x)") == ["_step"] and private_names("from dias_lab.runs import _plain") == ["_plain"]
    assert private_names("self.__dict__, _, __version__") == []


@each_notebook
def test_notebooks_are_as_a_save_would_leave_them(path):
    """Stripped and written anew, nothing changes; so that what git shows after a save is what somebody edited."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert nbformat.writes(notebook) + "\n" == text
    installed = Path(sys.prefix, "share/jupyter/kernels/python3/kernel.json")
    name = runs.read_json(installed)["display_name"] if installed.exists() else "Python 3 (ipykernel)"
    assert notebook.metadata.kernelspec.display_name == name  # which JupyterLab writes


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with one notebook in its index, and the filter as `make` sets it up."""
    if not (shutil.which("git") and shutil.which("make")):
        pytest.skip("no git, or no make")
    for name in ("Makefile", ".gitattributes"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copy(RAN, tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    commands = "make filter", "git init -q", "make filter", f"git add {RAN.name} .gitattributes"
    for command in commands:  # the first is outside git, and must not fail there
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


def git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True).stdout


def test_a_notebook_that_ran_is_committed_as_it_was(checkout):
    path = checkout / RAN.name
    committed = path.read_bytes()
    assert git(checkout, "show", f":{path.name}") == committed
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata |= {"papermill": {"duration": 1}, "widgets": {"application/vnd.jupyter.widget-state+json": {}}}
    notebook.metadata.language_info |= {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
        "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.12.1",
    }  # fmt: skip
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count, cell.outputs = number, [nbformat.v4.new_output("stream", text="something\n" * 99)]
        cell.metadata |= {"papermill": {"status": "completed"}, "scrolled": True, "execution": {"iopub.status.busy": "now"}}
    nbformat.write(notebook, path)
    assert git(checkout, "diff") == b"" and len(path.read_bytes()) > 1000 + len(committed)
    notebook.cells[2].source += "\nmine: int = 1"
    nbformat.write(notebook, path)
    changed = [line for line in git(checkout, "diff", "-U0").decode().splitlines() if re.match(r"[+-](?![+-])", line)]
    assert len(changed) == 3 and "mine: int = 1" in changed[-1]


@pytest.mark.xdist_group("scenes")
def test_the_book_on_scenes_runs_and_is_reused(tmp_path):
    scenes.convert(tmp_path / "data" / "scenes", train=10, validation=4, test=3)
    scenes.convert_clips(tmp_path / "data" / "clips", train=1, validation=1, test=1, frames=6)
    scenes.convert(tmp_path / "data" / "toys", train=8, validation=2, test=3)
    physics.convert(tmp_path / "data" / "physics-small", train=12, validation=1, test=3, frames=25)
    small = "--fourier-dim 16 --fourier-stride 16 --num-slots 5 --decoder-heads 2 --project-dim 12 --decoder-mlp-dim 16".split()
    result = run_book(tmp_path, *small)
    assert result.returncode == 0, result.stdout + result.stderr
    (book,) = tmp_path.glob("runs/book-*")
    assert len(list(book.glob("[01]*/run.ipynb"))) == 11 and len(list(book.glob("ablation/*/metrics.json"))) == 4
    assert runs.read_json(book / "training" / "metrics.json")["steps"] == 24
    assert len(AttentionTrace.load(book / "training" / "trace.npz")) == 3
    for words in ("decoder map", "untrained: last map", "by hindsight", "position", "ceiling", "Where this model stands", "decoder over last"):
        assert words in outputs(tmp_path, "04")
    for words in ("equals SlotAttention.step", "DIAS.forward, by hand", "hiding by hand equals the decoder"):
        assert words in outputs(tmp_path, "02")
    assert "Does training find more of the things?" in outputs(tmp_path, "00")
    for words in ("calibrated on 4 training images", "merging alone", "of hindsight in"):
        assert words in outputs(tmp_path, "06")
    for words in ("2 steps: machinery, no finding", "What each gets wrong", "SmoothSA's claim here", "On photos"):
        assert words in outputs(tmp_path, "07")
    for words in ("The claim, measured", "SPOT, all nine orders"):
        assert words in outputs(tmp_path, "07")
    for words in ("carrying slots on", "What breaks identity here", "What the predictor foresees", "What the papers claim, here", "numbers are remembered"):
        assert words in outputs(tmp_path, "08")
    for words in ("slots.json says", "mean box", "The 7 nearest of a toy", "What is lost here", "read off its map"):
        assert words in outputs(tmp_path, "09")
    for words in ("hits", "When is SlotFormer better", "Is the counterfactual one", "Do slots help to answer", "exercise 10.1 waits"):
        assert words in outputs(tmp_path, "10")
    assert "from the cache" in outputs(tmp_path, "03")
    assert "widget-view" not in outputs(tmp_path, "04")  # live is False: figures instead of controls
    pages = {path.stem for path in tmp_path.glob("site/scenes-*/*.html")}
    assert {path.stem for path in (tmp_path / "notebooks").glob("[01]*.ipynb")} <= pages

    again = run_book(tmp_path, *small)
    assert again.returncode == 0 and again.stdout.count("reused") == 12
    for words in ("this grid", "the project's own results", "self-distillation helps the first map"):
        assert words in outputs(tmp_path, "05")

    shutil.copytree(tmp_path / "notebooks", tmp_path / "elsewhere" / "notebooks")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path / "elsewhere")
    for name, parameter, made in (("04", "run_dir", "training"), ("05", "ablation_dir", "ablation"), ("06", "run_dir", "training")):
        opened = begin_in_lab(tmp_path, name, parameter)
        assert opened.stdout.splitlines()[-1:] == [f"found {book / made}"], opened.stderr
    error = begin_in_lab(tmp_path / "elsewhere", "04", "run_dir").stderr.splitlines()[-1]
    assert "FileNotFoundError" in error and all(words in error for words in ("runs/training", "elsewhere", "03_training"))


def begin_in_lab(root: Path, name: str, parameter: str) -> subprocess.CompletedProcess:
    """A notebook's first cells as JupyterLab runs them, with the parameters as they stand, until they have found a run."""
    (path,) = (root / "notebooks").glob(f"{name}_*.ipynb")
    code = "\n".join(code_of(path).values())
    begun = code[: code.index("\n", code.index("runs.find("))]
    begun = f"display = print\n{begun}\nprint('found', {parameter})"
    environment = {key: value for key, value in os.environ.items() if key != "DIAS_LAB_ROOT"}
    return subprocess.run(
        [sys.executable, "-c", begun], cwd=root / "notebooks", env=environment, capture_output=True, text=True, timeout=100
    )


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
    assert "20 images of test" in outputs(tmp_path, "04") and "n = 1" in outputs(tmp_path, "04")
    page = next(tmp_path.glob("site/coco-*/04_attention_maps.html")).read_text()
    assert page.count("data:image/png") >= 4 and "Where this model stands" in page


def test_options_that_cannot_work_are_refused_before_anything_starts(tmp_path):
    for options, words in (
        (["--preset", "coco"], "convert coco"),
        (["--preset", "cocoo"], "did you mean 'coco'"),
        (["--data", tmp_path / "nothing"], "there is no"),
        (["--num-slots", "0"], "num_slots must be above 0"),
        (["--only", "0x"], "no such notebook"),
    ):
        result = run_book(tmp_path, *options)
        assert result.returncode == 2 and words in result.stderr, (options, result.stdout, result.stderr)
    assert not (tmp_path / "runs").exists()
