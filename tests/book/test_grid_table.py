"""The table of a grid tells the truth: pairs, noise, what is missing; and Markdown, CSV and LaTeX that can be read."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from dias_lab import fit, runs
from dias_lab.analysis.evaluate import evaluate
from dias_lab.book import grid, grid_table
from dias_lab.book.parameters import Refused

PARAMETERS = 'run_dir: str = ""\nseed: int = 0\nwidth: int = 1\nkind: str = "a"'
SEEDS = (1, 2, 3)
GRID = f'notebook = "unit.ipynb"\nseeds = {list(SEEDS)}\n[axes]\nwidth = [1, 2]\nkind = ["a", "b_50%"]\n'


@pytest.fixture
def found(tmp_path, monkeypatch) -> grid.Grid:
    """A grid of four settings and three seeds, of which nothing has run."""
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell("1 + 1")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "unit.ipynb")
    (tmp_path / "grid.toml").write_text(GRID)
    return grid.read(tmp_path / "grid.toml", "runs/g")


def finish(run, ari: float, images: np.ndarray | None = None):
    """What a run leaves; with the scores of images, also those of the test split."""
    run.prepare()
    scores = {"protocol": "dias", "images": 20, "store": "validation", "decoder": {"ari": ari, "mbo": ari / 3}}
    runs.write_json(run.folder / "metrics.json", {"steps": 10, "scores": scores})
    runs.write_json(run.folder / "outcome.json", {"run_seconds": 2.0, "peak_memory": 1})
    if images is not None:
        test = {"protocol": "dias", "images": len(images), "store": "test", "decoder": {"ari": images.mean()}}
        runs.write_json(run.folder / "scores/test-dias.json", test)
        order = np.random.default_rng(run.seed).permutation(len(images))  # no file has to be sorted
        table = pd.DataFrame({"item": order, "decoder.ari": images[order]})
        runs.write_text(run.folder / "scores/test-dias.images.csv", table.to_csv(index=False))


@pytest.mark.parametrize("evil", ["a\nb", "a | b", "a\n\n# b", "![x](http://evil.example/x.png)", "[b](javascript:1)", "<script>1</script>", "a\u2028b\rc"])
def test_text_of_a_run_is_no_markup_in_the_table(found, evil):
    for run in found.runs:
        finish(run, 0.5)
    table = grid_table.table(found, metrics=["scores.decoder.ari"])
    table.frame["setting"] = [evil, *table.frame["setting"][1:]]
    lines = grid_table.markdown(table._replace(caption=f"of {evil}", notes=[evil, "second"])).split("\n")
    bare = [re.sub(r"\\.", "", line) for line in lines]
    assert [line.count("|") for line in bare[:6]] == [4] * 6 and bare[6] == ""
    assert not re.search(r"[<>\[\]\r\u2028]", "".join(bare)) and bare[-2].startswith("- second") and bare[-3].startswith("- ")


def test_the_table_pairs_seeds_and_says_what_is_noise(found):
    random = np.random.default_rng(0)
    ari = {(run.setting, run.seed): random.random() for run in found.runs}
    for run in found.runs[:-1]:
        finish(run, ari[run.setting, run.seed])
    table = grid_table.table(found, metrics=["scores.decoder.ari"])
    base, other = (np.array([ari[found.settings[row], seed] for seed in SEEDS]) for row in (0, 1))
    row = table.frame.iloc[1]
    assert row["scores.decoder.ari mean"] == pytest.approx(other.mean(), abs=1e-15)
    assert row["scores.decoder.ari std"] == pytest.approx(other.std(ddof=1), abs=1e-15)
    assert row["scores.decoder.ari difference"] == pytest.approx((other - base).mean(), abs=1e-15)
    assert (row["n"], table.frame.iloc[3]["n"]) == (3, 2)
    text = grid_table.markdown(table)
    assert "Protocol dias, 20 images of validation" in text and "difference to “width=1, kind=a”" in text
    assert f"- {found.settings[3]}, seed 3: todo" in text
    other = grid_table.table(found, baseline="width=2, kind=a")
    assert np.isnan(other.frame.iloc[2]["scores.decoder.ari difference"]) and other.metrics == ["scores.decoder.ari", "scores.decoder.mbo"]
    for wrong in ({"baseline": "width=2"}, {"metrics": ["scores.decoder.arri"]}):
        with pytest.raises(Refused, match="did you mean|there is no setting"):
            grid_table.table(found, **wrong)


def test_short_runs_on_clips_have_a_table_of_both_levels(found, small_config, few_clips):
    for run in (run for run in found.runs if run.seed == 1 and run.parameters["kind"] == "a"):
        run.prepare()
        fields = dict(clip_frames=2, batch_size=2, steps=1, evaluate_images=2, num_iterations=1 + run.parameters["width"])
        fit(small_config.replace(data=str(few_clips), **fields), run.folder, progress=False)
        runs.write_json(run.folder / "outcome.json", {"run_seconds": 2.0, "peak_memory": 1})
    table = grid_table.table(found)
    assert table.frame["setting"].tolist() == ["width=1, kind=a", "width=2, kind=a"]
    assert table.metrics[:2] == ["scores.decoder.video_ari", "scores.decoder.video_fg_ari"]
    text = grid_table.markdown(table)
    assert "Protocol dias, 2 clips (8 frames) of validation" in text and "bootstrap over seeds," in text
    titles = {"video FG-ARI", "video mBO", "image FG-ARI", "image mBO", "image - video FG-ARI", "switch rate"}
    assert titles <= {cell.strip().replace("\\", "") for cell in text.splitlines()[0].split("|")}
    for run in found.runs:
        if run.seed == 1 and run.parameters["kind"] == "a":
            evaluate(run.folder, few_clips / "test.lmdb")
    table = grid_table.table(found)
    assert table.metrics[0] == "test-dias.decoder.video_ari" and "2 clips (8 frames) of test" in table.caption
    assert "bootstrap over seeds and clips" in table.caption


def test_per_image_scores_are_paired_where_they_are(found):
    random = np.random.default_rng(0)
    hard = random.normal(0, 0.2, 30)  # of each image, alike for all
    for run in found.runs:
        better = 0.02 * (run.parameters["width"] - 1)
        finish(run, 0.5, 0.5 + hard + random.normal(0, 0.01, 30) + better)
    table = grid_table.table(found)
    assert table.metrics == ["test-dias.decoder.ari"] and "seeds and images" in table.caption
    row = table.frame.iloc[2]
    assert 0 < row["test-dias.decoder.ari low"] < 0.02 < row["test-dias.decoder.ari high"] < 0.04
    assert not grid_table.shown(table).iloc[2]["ARI"].endswith(grid_table.NOISE)
    (found.runs[-1].folder / "scores/test-dias.images.csv").unlink()  # then seeds alone are paired
    again = grid_table.table(found).frame.iloc[3]
    assert again["test-dias.decoder.ari difference"] == pytest.approx(table.frame.iloc[3]["test-dias.decoder.ari difference"])


def test_csv_holds_every_digit_and_latex_is_plain(found):
    for run in found.runs[:-1]:
        finish(run, 0.1 + run.seed / 7)
    table = grid_table.table(found, metrics=["scores.decoder.ari"])
    paths = grid_table.write(table, found.folder)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    read = pd.read_csv(found.folder / "table.csv")
    assert list(read) == list(table.frame) and (read["scores.decoder.ari mean"] == table.frame["scores.decoder.ari mean"]).all()
    latex = (found.folder / "table.tex").read_text()
    assert "\\begin{tabular}{lrr}" in latex and "\\toprule" in latex and r"kind=b\_50\% & 3 & 38.6 $\pm$ 14.3 [" in latex
    assert latex.startswith("% width=2, kind=b_50%, seed 3: todo\n") and latex.count("\\\\\n") == 1 + len(table.frame)
    assert latex.partition("\n")[2].isascii()
    cells = [line.count("|") for line in grid_table.markdown(table).splitlines() if line.startswith("|")]
    assert len(cells) == 2 + len(table.frame) and len(set(cells)) == 1


def test_a_grid_without_seeds_has_differences_and_no_interval(found):
    text = GRID.replace(f"seeds = {list(SEEDS)}\n", "")
    (runs.root() / "grid.toml").write_text(text)
    alone = grid.read(runs.root() / "grid.toml", "runs/alone")
    for number, run in enumerate(alone.runs):
        finish(run, 0.1 * number)
    shown = grid_table.shown(grid_table.table(alone, metrics=["scores.decoder.ari"]))
    assert shown["ARI"].tolist() == ["0.0", "10.0 [+10.0, no interval]", "20.0 [+20.0, no interval]", "30.0 [+30.0, no interval]"]
