"""The teaching notebooks' exercises: each has a solution, the solutions run, and the checks tell right from wrong."""

import re
from pathlib import Path

import nbformat
import pytest

from dias_lab.book import headless

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TEACHING = ("00_tour", "02_the_method", "04_attention_maps", "09_recognition", "10_prediction")
SMALL = {
    "00_tour": {"num_scenes": 4},
    "02_the_method": {"num_scenes": 6},
    "04_attention_maps": {"num_scenes": 10, "tries": 2},
    "10_prediction": {"worlds": 2, "steps_each": 3},
    "09_recognition": {"num_toys": 12, "head_steps": 4},
}
WRONG = {  # an answer to each exercise that a reader might give
    "0-1": "one_slot, random_slots = 1.0, 0.0",
    "0-3": "def hard_picture():\n    return np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)",
    "2-1": "def masked_attention(logits, keep):\n    return logits.softmax(dim=1) * keep[:, :, None]",
    "2-3": "def equal_shares(logits, rounds=200):\n    return logits.softmax(dim=0)",
    "3-1": "def kept_above_every_distance():\n    return 1",
    "3-3": "def threshold_without_hand(slots):\n    return 2.0",
    "4-1": "def release_floor(N):\n    return 0.0",
    "4-3": "def match(student, teacher):\n    return torch.arange(len(student))",
    "5-1": "def mean_visible(L, probability, fraction):\n    return L",
    "5-3": "def block_order(centre):\n    return torch.arange(L)[None]",
    "9-1": "def r2_of(said, real):\n    return 1 - np.square(said - real).sum() / np.square(real - real.mean(axis=0)).sum()",
    "9-3": "def nearest_class(known, labels, slots):\n    return labels[((slots[:, None] - known) ** 2).sum(axis=2).argmin(axis=1)]",
    "10-1": "def after_hit(places, speeds, radii):\n    return speeds[::-1]",  # as if both were of the same mass, and hit head-on
    "10-3": "def foreseen_by_hand(seen, radii, steps):\n    return seen[-1] + (seen[-1] - seen[-2]) * np.arange(1, steps + 1)[:, None, None]",
}
WRONG_04 = {
    "4-1": "def split_of(counts):\n    return float(1 - counts.max() / counts.sum())",
    "4-3": "def join_while_better(predicted, labels):\n    return torch.zeros_like(predicted)",
}


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def cells(name, tag) -> dict:
    """The cells with a tag, by the number of their exercise."""
    found = (cell for cell in read(name).cells if tag in cell.metadata.get("tags", []))
    return {cell.id.removeprefix(f"{tag}-"): cell.source for cell in found}


def check_of(source: str) -> str:
    assert source.count("# check\n") == 1
    return source.partition("# check\n")[2]


def text_of(cell) -> str:
    return "\n".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("name", TEACHING)
def test_every_exercise_has_a_solution_with_the_same_check(name):
    exercises, solutions = cells(name, "exercise"), cells(f"solutions/{name}", "solution")
    assert exercises and list(exercises) == list(solutions)
    for number, source in exercises.items():
        assert check_of(source) == check_of(solutions[number]), number


@pytest.mark.parametrize("name", TEACHING)
def test_every_kind_of_exercise_is_there_and_answered(name):
    heading = r"\*\*Exercise (\d+\.\d) \((check|explore|build)"
    asked, answered = (
        re.findall(heading, "\n".join(cell.source for cell in read(one).cells if cell.cell_type == "markdown"))
        for one in (name, f"solutions/{name}")
    )
    assert asked == answered and {kind for _, kind in asked} == {"check", "explore", "build"}


QUICK = ("02", "10")  # the others take ten seconds each, too


@pytest.mark.parametrize("name", [name if name[:2] in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TEACHING])
def test_solutions_run_and_checks_refuse_a_wrong_answer(name, tmp_path):
    notebook = read(f"solutions/{name}")
    wrong = {**WRONG, **WRONG_04} if name.startswith("04") else WRONG
    for cell in [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]:
        number = cell.id.removeprefix("solution-")
        source = f"{wrong[number]}\n\n\n# check\n{check_of(cell.source)}"
        bad = nbformat.v4.new_code_cell(source, id=f"wrong-{number}", metadata={"tags": ["raises-exception"]})
        notebook.cells.insert(notebook.cells.index(cell) + 1, bad)
        again = nbformat.v4.new_code_cell(cell.source, id=f"again-{number}")  # what follows uses the right answer
        notebook.cells.insert(notebook.cells.index(bad) + 1, again)
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    outcome = headless.execute(tmp_path / "notebook.ipynb", tmp_path / "out", SMALL[name], threads=1)
    assert outcome.state == "done", outcome.error["message"]

    executed = nbformat.read(tmp_path / "out" / "run.ipynb", as_version=4).cells
    for cell in executed:
        if cell.id.startswith(("solution-", "again-")):
            assert text_of(cell).startswith("right"), cell.id
        if cell.id.startswith("wrong-"):
            errors = [output.ename for output in cell.outputs if output.output_type == "error"]
            assert errors == ["AssertionError"], (cell.id, text_of(cell))


@pytest.mark.slow
@pytest.mark.xdist_group("scenes")
def test_interventions_with_live_controls(small_config, small_scenes, tmp_path):
    """What `make run` leaves out: controls, and the explorer that Python asks. Every one has its figure all the same."""
    from dias_lab import fit

    fit(small_config.replace(steps=4, evaluate_every=4), tmp_path / "run", progress=False)
    parameters = {"run_dir": str(tmp_path / "run"), "data": str(small_scenes), "num_images": 3, "sweep_images": 2, "live": True}
    outcome = headless.execute(NOTEBOOKS / "04_attention_maps.ipynb", tmp_path / "out", parameters, threads=1)
    assert outcome.state == "done", outcome.error["message"]
    executed = nbformat.read(tmp_path / "out" / "run.ipynb", as_version=4).cells
    code = [cell for cell in executed if cell.cell_type == "code"]
    kinds = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in code]
    live = [index for index, found in enumerate(kinds) if "application/vnd.jupyter.widget-view+json" in found]
    pictured = [index for index in live if "application/vnd.plotly.v1+json" not in kinds[index]]  # the cloud is its own figure
    assert len(live) == 4 and len(pictured) == 3
    for index in pictured:
        assert any("image/png" in found for found in kinds[index + 1 : index + 4])
