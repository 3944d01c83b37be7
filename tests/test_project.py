"""The project's own rules: imports run downwards, notebooks are clean, the files around the package agree."""

import contextlib
import functools
import importlib
import io
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from dias_lab.__main__ import main
from dias_lab.book.page import slug

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dias_lab"
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").glob("*.md"))]
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert "injected-parameters" not in tags
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "run nbstripout --keep-id on it"
        assert "papermill" not in cell.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_every_parameter(path):
    from papermill import inspect_notebook

    from dias_lab.book import parameters

    assert set(inspect_notebook(str(path))) == set(parameters.declared(path))
    parameters.check(path, {})


def test_environment_file_installs_the_project():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    pip = lines[lines.index("  - pip:") + 1 :]
    assert [line.strip() for line in pip] == ["- -e .[test]"]


def test_lock_pins_every_dependency_and_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|@ |^-|/", text, re.MULTILINE)
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert not names - set(pinned), "run make lock"
    assert len(text.splitlines()) == text.count("==") - text.count(" == '") - text.count("_version =="), "exact pins only"


def test_every_dependency_is_used():
    """By name, in the package's code, in the tests' or in the Makefile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = [ROOT / "Makefile", *PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / ".ci").iterdir()]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in files)))
    imported = {"mistune": "markdown_mistune", "scikit-learn": "sklearn", "pillow": "PIL", "pytest-xdist": "xdist_group"}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted}
    assert not {name for name in names if imported.get(name, name.replace("-", "_")) not in words}


def test_the_command_gives_its_status():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["dias-lab"].partition(":")
    main = getattr(importlib.import_module(module), function)
    assert main(["--help"]) == 0 and main(["nonsense"]) == 2  # a console script exits with what it returns


def test_readme_is_short_and_opens_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert 0 <= text.find("make run") < text.find("make test") < 300
    lines = text.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 120
    assert len(re.findall(r"!\[.+\]\(docs/.+\.gif\)", text)) == 1 and (ROOT / "docs/film.gif").stat().st_size < 2_000_000
    for words in ("before its first step", "k-means", "n = 3", "protocol dias"):  # what training adds is not hidden
        assert words in " ".join(text.split())
    assert {link for link in re.findall(r"\]\((notebooks/\d.*?)\)", text)} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("[01]*.ipynb")
    }


def test_readme_has_the_numbers_of_the_docs():
    docs = (ROOT / "docs/learning.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| ([\d.]+)[^|]*\| ([\d.]+)[^|]*\| ([\d.]+)[^|]*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 7
    for ari, fg_ari, mbo in rows:
        assert re.search(rf"\| {ari}\b[^|]*\| {fg_ari}\b[^|]*\| {mbo}\b", docs), (ari, fg_ari, mbo)


def prose(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix == ".ipynb":
        return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    return path.read_text()


def broken(path: Path) -> list[str]:
    """The relative links that lead to no file, or to no heading of it."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", prose(path), flags=re.DOTALL | re.MULTILINE)):
        address, _, anchor = link.partition("#")
        target = path.parent / address if address else path
        if re.match(r"https?:|attachment:", link):
            continue
        headings = re.findall(r"^#+ (.+)$", prose(target), re.MULTILINE) if anchor and target.is_file() else []
        if not target.exists() or (anchor and slug(anchor) not in map(slug, headings)):
            found.append(link)
    return found


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# What's new?\n[a](b.md) [b](a.md#whats-new) [c](#old) [d](https://x.org)\n```\n[e](f.md)\n```\n")
    assert broken(tmp_path / "a.md") == ["b.md", "#old"]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert broken(path) == []


@pytest.fixture(scope="module")
def options_of():
    """The options that a command's help names; None where there is no such command."""

    @functools.cache
    def options(*command: str) -> set[str] | None:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            try:
                status = main([*command, "--help"])
            except SystemExit as stop:
                status = stop.code
        shown = " ".join(out.getvalue().split())
        if status not in (0, None) or f"usage: python -m dias_lab {' '.join(command)} " not in shown:
            return None
        return set(re.findall(r"--[a-z][\w-]*", shown)) | ({"--from"} if command == ("train",) else set())

    return options


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist(path, options_of):
    """What a page tells to type: the command, its options, the target of make, the script."""
    text, wrong = prose(path).replace("\\\n", " "), []
    for line in re.findall(r"python -m dias_lab ([a-z][^\n`#]*)", text):
        words = line.split()
        command = words[: 2 if words[0] in ("grid", "convert") and words[1:] else 1]
        known = options_of(*command)
        wrong += [line] if known is None else [f"{line}: {option}" for option in re.findall(r"--[a-z][\w-]*", line) if option not in known]
    for line in re.findall(r"make run ARGS='([^\n`#]*)'", text):
        wrong += [option for option in re.findall(r"(?<!\S)--[a-z][\w-]*", line) if option not in options_of("run")]
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    wrong += [f"make {name}" for name in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE) if name not in targets]
    wrong += [name for name in re.findall(r"python (docs/\w+\.py)", text) if not (ROOT / name).exists()]
    assert not wrong


def test_a_command_that_does_not_exist_is_found(options_of):
    assert options_of("trian") is None and options_of("grid", "strat") is None and options_of("convert", "cocoo") is None
    assert "--num-slots" in options_of("train") and "--num-slotz" not in options_of("train")


def test_the_citation_is_of_this_version():
    import yaml

    citation, project = yaml.safe_load((ROOT / "CITATION.cff").read_text()), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"].replace("_", "-"), citation["version"], citation["license"]) == (project["name"].replace("_", "-"), project["version"], project["license"])
    assert citation["authors"] == [{"name": "the dias_lab authors"}] and citation["cff-version"] == "1.2.0"


def test_the_shipped_model_is_small_and_says_how_it_was_made():
    from dias_lab import Config, runs, shipped

    folder = PACKAGE / "shipped"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 4_000_000
    made = runs.read_json(folder / "metrics.json")
    assert "python -m dias_lab train --preset scenes" in made["command"] and len(made["seeds"]) == len(made["curves"]) == 3
    assert shipped().config == Config.load(folder) == Config.preset("scenes", seed=made["seeds"][0])
    assert made["protocol"] == made["scores"]["protocol"] == "dias"


def test_the_shipped_models_are_those_of_the_steps_that_their_folders_say():
    from dias_lab import runs, shipped

    for kind, folder in (("scenes", PACKAGE / "shipped"), ("clips", PACKAGE / "shipped" / "clips")):
        made = runs.read_json(folder / "metrics.json")
        assert shipped(kind).trained_steps == made.get("best_step", made.get("best_steps", [None])[0])
    with pytest.raises(ValueError, match="scenes, clips"):
        shipped("photos")


def test_the_shipped_model_of_clips_keeps_toys_in_their_slots():
    """On unseen clips: above the image model, which starts each frame anew, and above its own twin before training."""
    from dias_lab import Config, shipped
    from dias_lab.data.scenes import SPLITS, clip
    from dias_lab.metrics import video_scores

    model, found = shipped("clips"), {}
    assert model.config == Config.preset("clips", seed=model.config.seed, parent="dias_lab/shipped")
    pictures, segments = (torch.from_numpy(np.stack(one)) for one in zip(*(clip(SPLITS["test"] + n, 12) for n in range(4))))
    for name, one in (("clips", model), ("untrained", model.untrained()), ("alone", shipped())):
        seen = pictures.permute(0, 1, 4, 2, 3)  # [B F 3 H W]
        trace = one.trace(seen if one.config.clip_frames else seen.flatten(0, 1), seed=model.config.seed)
        predicted = torch.from_numpy(trace.segments_of("decoder").astype(int)).unflatten(0, segments.shape[:2])
        found[name] = {key: value.mean().item() for key, value in video_scores(predicted, segments.int()).items()}
    for other in ("untrained", "alone"):
        assert found["clips"]["video_fg_ari"] > found[other]["video_fg_ari"] + 0.2
        assert found["clips"]["switches"] < found[other]["switches"]


def test_the_shipped_model_has_learned_to_find_the_objects_of_unseen_scenes():
    """Above its twin before training, and above every clustering, told the best number or threshold, in FG-ARI and mBO."""
    from dias_lab import runs, shipped
    from dias_lab.data.scenes import SPLITS, scene
    from dias_lab.metrics import segmentation_scores

    made = runs.read_json(PACKAGE / "shipped" / "metrics.json")
    decoder, last, first = (made["mean"][f"{name} map"] for name in ("decoder", "last", "first"))
    twin = [made["untrained"][f"{name} map"] for name in ("decoder", "last")]
    groupings = [made["mean"]["k-means"], *made["clustering_by_hindsight"].values()]
    for metric, least in {"ARI": 70, "FG-ARI": 60, "mBO": 70}.items():
        assert decoder[metric] > max(least, *(one[metric] + 25 for one in twin)) and last[metric] > first[metric]
        assert metric == "ARI" or decoder[metric] > max(scores[metric] for scores in groupings)
    images, segments = map(np.stack, zip(*(scene(SPLITS["test"] + number) for number in range(24))))
    model, images = shipped(), torch.from_numpy(images).permute(0, 3, 1, 2)
    found = {}
    for name, one in (("trained", model), ("untrained", model.untrained())):
        predicted = torch.from_numpy(one.trace(images, seed=made["seeds"][0]).segments_of("decoder").astype(int))
        scores = segmentation_scores(predicted, torch.from_numpy(segments).int())
        found[name] = {title: 100 * scores[key].mean().item() for key, title in (("ari", "ARI"), ("fg_ari", "FG-ARI"), ("mbo", "mBO"))}
    for metric, value in found["trained"].items():
        assert abs(value - decoder[metric]) < 10 < value - found["untrained"][metric]  # 24 scenes are a small sample


def test_stores_and_outputs_are_ignored_and_the_package_is_not():
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")

    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False).returncode == 0

    assert all(ignored(path) for path in ("data/coco/train.lmdb", "runs/x/run.ipynb", "site/index.html", ".venv/x"))
    assert not any(ignored(path) for path in ("data/README.md", "dias_lab/data/store.py", "notebooks/00_tour.ipynb"))
