"""Methods beside each other: what counts as a finished run, and the summary."""

import numpy as np
import pandas as pd
import pytest

from dias_lab import fit, runs
from dias_lab.analysis import compare
from dias_lab.analysis.baselines import baseline_scores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.methods import checkpoint

ITEMS = range(6)


def make_run(folder, variant, seed, ari, state="done", teacher="", steps=10, images=True):
    """A run directory as training, evaluation and grid leave it, without a model."""
    config = Config.preset("shapes", method="spot", seed=seed, steps=steps) if teacher else Config.preset("shapes", seed=seed, steps=steps)
    fields = config.to_dict() | ({"stage": 2, "teacher_run": str(teacher)} if teacher else {})
    runs.write_json(folder / "config.json", fields)
    if variant:
        runs.write_json(folder / "run.json", {"variant": variant, "seed": seed, "parameters": {}})
    if state == "failed":
        runs.write_json(folder / "error.json", {"ename": "MemoryError", "evalue": "too much"})
        return folder
    scores = {name: dict.fromkeys(("ari", "fg_ari", "mbo", "miou"), value) for name, value in (("first", 0.1), ("last", 0.2), ("decoder", ari))}
    lines = [{"step": 5, "images_per_second": 8.0}, {"step": 5, "validation": {"decoder": scores["decoder"]}}]
    lines += [{"step": steps, "images_per_second": 4.0}, {"step": steps, "validation": {"decoder": scores["decoder"]}}]
    runs.write_lines(folder / "metrics.jsonl", lines)
    test = {"protocol": "dias", "store": "test", "images": len(ITEMS), "kept": 5.0, **scores}
    runs.write_json(folder / "scores/test-dias.json", test)
    if images:
        noise = np.linspace(-0.05, 0.05, len(ITEMS))
        columns = {"item": ITEMS} | {f"{name}.{metric}": scores[name]["ari"] + noise for name in ("last", "decoder") for metric in scores[name]}
        runs.write_text(folder / "scores/test-dias.images.csv", pd.DataFrame(columns).to_csv(index=False))
    runs.write_json(folder / "outcome.json", {"run_seconds": 3.0, "peak_memory": 1000})
    runs.write_json(folder / "metrics.json", {"steps": steps, "seconds": 2.0})
    return folder


@pytest.fixture
def grid(tmp_path):
    folder = tmp_path / "methods"
    for seed in (42, 43, 44):
        make_run(folder / f"dias-{seed}", "DIAS", seed, 0.5 + 0.01 * (seed - 43))
        teacher = make_run(folder / f"spot-{seed}", compare.STAGE_1, seed, 0.3 + 0.01 * (seed - 43))
        make_run(tmp_path / "methods-stage2" / f"seed-{seed}", None, seed, 0.4 + 0.01 * (seed - 43), teacher=teacher)
    return folder


def test_the_summary_says_mean_spread_and_paired_difference(grid):
    found = compare.finished(grid)
    assert not found.notes and len(found.runs) == 9
    rows = compare.summary(found.runs).set_index("setting")
    assert list(rows.index) == ["DIAS", compare.STAGE_1, compare.STAGE_2] and set(rows["n"]) == {3}
    assert rows.loc["DIAS", "decoder.ari"] == pytest.approx(0.5) and rows.loc["DIAS", "decoder.ari std"] == pytest.approx(0.01)
    assert np.isnan(rows.loc["DIAS", "own.ari difference"])
    spot = rows.loc[compare.STAGE_1]
    names = [f"own.ari difference{end}" for end in (" low", "", " high")]
    assert spot[names].to_list() == pytest.approx([-0.2] * 3)  # the same for every seed and image: no spread at all
    assert spot["own.ari low"] < 0.3 < spot["own.ari high"]
    assert rows.loc["DIAS", "images"] == "6" and rows.loc["DIAS", "peak_memory"] == 1000


def test_untrained_twins_stand_beside_their_runs(small_config, tmp_path):
    for seed in (1, 2):
        folder = tmp_path / f"methods/dias-{seed}"
        fit(small_config.replace(steps=1, seed=seed), folder, progress=False)
        evaluate(folder, f"{small_config.data}/test.lmdb", limit=3)
        runs.write_json(folder / "run.json", {"variant": "DIAS", "seed": seed, "parameters": {}})
        runs.write_json(folder / "outcome.json", {})
    before = compare.summary(compare.finished(tmp_path / "methods").runs).iloc[0]
    assert np.isnan(before["own.ari untrained"]) and np.isnan(before["own.ari gain"])
    compare.score_twins(compare.finished(tmp_path / "methods").runs)
    table = compare.finished(tmp_path / "methods").runs
    row = compare.summary(table).iloc[0]
    assert row["own.mbo gain"] == pytest.approx(row["own.mbo"] - row["own.mbo untrained"])
    assert row["last.mbo gain low"] <= row["last.mbo gain"] <= row["last.mbo gain high"]
    twin = evaluate(checkpoint.load_model(table["run"].iloc[0]).untrained(), f"{small_config.data}/test.lmdb", limit=3).scores
    assert table[f"{compare.TWIN}{table['stem'].iloc[0]}.last.mbo"].iloc[0] == pytest.approx(twin["last"]["mbo"])
    (file,) = (tmp_path / "methods/dias-1/scores").glob(f"{compare.TWIN}*.json")
    changed = file.stat().st_mtime_ns
    compare.score_twins(table)
    assert file.stat().st_mtime_ns == changed


def test_runs_on_clips_are_compared_at_both_levels(small_config, few_clips, tmp_path):
    short = dict(data=str(few_clips), clip_frames=2, batch_size=2, steps=1, log_every=1, evaluate_images=1, trace_images=0)
    for number, setting in enumerate(("DIAS", "two iterations")):
        for seed in (1, 2):
            folder = tmp_path / f"clips/{number}-{seed}"
            fit(small_config.replace(seed=seed, num_iterations=3 - number, **short), folder, progress=False)
            evaluate(folder, few_clips / "test.lmdb", limit=1)
            runs.write_json(folder / "run.json", {"variant": setting, "seed": seed, "parameters": {}})
            runs.write_json(folder / "outcome.json", {})
    compare.score_twins(compare.finished(tmp_path / "clips").runs)
    found = compare.finished(tmp_path / "clips")
    assert len(found.runs) == 4 and not found.notes
    twin = runs.read_json(next((tmp_path / "clips/0-1/scores").glob(f"{compare.TWIN}*.json")))
    assert twin["clips"] == 1 and twin["images"] == 4  # the limit is of clips
    log = runs.read_lines(tmp_path / "clips/0-1/metrics.jsonl")
    pace = next(2 * 2 / line["images_per_second"] for line in log if "images_per_second" in line)  # two clips of two frames
    assert found.runs["seconds_a_step"].iloc[0] == pytest.approx(pace)
    rows = compare.summary(found.runs).set_index("setting")
    mean = found.runs.groupby("setting")["test-dias-first1.decoder.video_mbo"].mean()
    assert rows["own.video_mbo"].to_dict() == pytest.approx(mean.to_dict()) and "own.mbo" not in rows
    other = rows.loc["two iterations"]
    for level in ("video", "image"):
        gain, low, high = (other[f"own.{level}_mbo gain{end}"] for end in ("", " low", " high"))
        assert low <= gain <= high and gain == pytest.approx(other[f"own.{level}_mbo"] - other[f"own.{level}_mbo untrained"])
        assert np.isfinite(other[f"own.{level}_mbo difference"])
    assert np.isfinite(rows.loc["DIAS", "own.switches"]) and np.isfinite(other["last.gap difference"])
    floors = compare.baselines(found.runs, "dias")
    assert {"video_fg_ari", "image_fg_ari"} <= set(floors)
    text = compare.words(compare.summary(found.runs).iloc[1], floors, baseline="one frame")
    assert "video mBO" in text and "one frame (" in text and f"k-means of {small_config.num_slots} clusters in" in text


def test_both_stages_cost_what_both_stages_cost(grid):
    table = compare.finished(grid).runs
    rows = compare.summary(table).set_index("setting")
    once = rows.loc[compare.STAGE_1, "seconds_in_all"]
    assert rows.loc[compare.STAGE_2, "steps_in_all"] == 20 and rows.loc[compare.STAGE_2, "seconds_in_all"] == pytest.approx(2 * once)


def test_failed_double_and_foreign_runs_are_named_and_left_out(grid):
    make_run(grid / "smooth-42", "SmoothSA", 42, 0.9, state="failed")
    assert runs.state(grid / "smooth-42") == "failed"
    newer = make_run(grid / "dias-42-again", "DIAS", 42, 0.8)
    found = compare.finished(grid)
    dias = found.runs[(found.runs["setting"] == "DIAS") & (found.runs["seed"] == 42)]
    assert [runs.resolve(run) for run in dias["run"]] == [newer]
    assert any("SmoothSA, seed 42" in note and "too much" in note for note in found.notes)
    assert any("older run" in note for note in found.notes) and "SmoothSA" not in set(found.runs["setting"])
    other = compare.finished(grid, data=grid)
    assert other.runs.empty and any("other data" in note for note in other.notes)
    assert compare.finished(grid, protocol="spot").runs.empty


def test_each_method_is_scored_by_its_own_map_and_by_the_last(tmp_path):
    for seed in (42, 43):
        make_run(tmp_path / f"methods/dias-{seed}", "DIAS", seed, 0.5)
        other = make_run(tmp_path / f"methods/vqdino-{seed}", "VQDINO", seed, 0.4)
        runs.write_json(other / "config.json", runs.read_json(other / "config.json") | {"method": "vqdino", "merging": "none", "distillation": "none"})
    rows = compare.summary(compare.finished(tmp_path / "methods").runs).set_index("setting")
    assert rows["own"].to_dict() == {"DIAS": "decoder", "VQDINO": "last"}
    assert rows["own.ari"].to_list() == pytest.approx([0.5, 0.2]) and rows["decoder.ari"].to_list() == pytest.approx([0.5, 0.4])
    assert rows.loc["VQDINO", ["own.ari difference", "last.ari difference"]].to_list() == pytest.approx([-0.3, 0])


def test_a_second_stage_without_its_teacher_is_left_out(grid, tmp_path):
    import shutil

    shutil.rmtree(grid / "spot-43")
    runs.write_text(tmp_path / "methods-stage2/broken/config.json", "{")
    found = compare.finished(grid)
    assert len(found.runs) == 7 and any("its teacher" in note and "spot-43" in note for note in found.notes)
    assert any("is not JSON" in note for note in found.notes)


def test_one_seed_has_a_difference_and_no_interval(tmp_path):
    make_run(tmp_path / "methods/dias", "DIAS", 42, 0.5)
    make_run(tmp_path / "methods/spot", compare.STAGE_1, 42, 0.3, images=False)
    row = compare.summary(compare.finished(tmp_path / "methods").runs).set_index("setting").loc[compare.STAGE_1]
    assert np.isnan(row["own.ari low"]) and np.isnan(row["decoder.ari std"])
    assert row["own.ari difference"] == pytest.approx(-0.2) and np.isnan(row["own.ari difference low"])


def test_nothing_at_all_is_no_error(tmp_path):
    found = compare.finished(tmp_path / "nowhere")
    assert found.runs.empty and not found.notes
    assert compare.summary(found.runs).empty
    make_run(tmp_path / "failed/one", "DIAS", 42, 0.5, state="failed")
    assert compare.finished(tmp_path / "failed").runs.empty and compare.finished(tmp_path / "failed").notes


def test_the_baselines_are_those_of_the_images_that_the_runs_were_scored_on(small_config, tmp_path):
    fit(small_config.replace(steps=1), tmp_path / "run", progress=False)
    table = pd.DataFrame([{"run": tmp_path / "run", "data": small_config.data, "stem": "test-dias", "test-dias.images": "3"}])
    fewer = small_config.num_slots - 1
    fit(small_config.replace(steps=1, num_slots=fewer), tmp_path / "fewer", progress=False)
    table = pd.concat([table.assign(num_slots=small_config.num_slots), table.assign(num_slots=fewer, run=tmp_path / "fewer")])
    found = compare.baselines(table, "dias")
    kinds = ("k-means", "position")
    assert list(found.index) == [f"{kinds[0]}, {fewer + 1}", f"{kinds[1]}, {fewer + 1}", "ceiling", *(f"{kind}, {fewer}" for kind in kinds)]
    assert found.notna().all(axis=None) and (found.loc["ceiling"] >= found.loc[f"position, {fewer}"]).all()
    assert (found.loc[f"k-means, {fewer}"] != found.loc[f"k-means, {fewer + 1}"]).any()
    expected = baseline_scores(checkpoint.load_model(tmp_path / "fewer"), store.open(f"{small_config.data}/test.lmdb"), limit=2)
    ours = compare.baselines(table.assign(**{"test-dias.images": "2"}), "dias").loc[f"k-means, {fewer}", "mbo"]
    assert ours == pytest.approx(expected["k-means.mbo"].mean())
