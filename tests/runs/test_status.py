"""How runs stand, read off their files, and the table of them."""

import pytest

from dias_lab import runs


def test_state_follows_the_files(tmp_path, touch):
    assert runs.state(tmp_path) == "todo"
    touch(tmp_path / "config.json", 100)
    assert runs.state(tmp_path) == "todo"
    touch(tmp_path / "error.json", 110)
    assert runs.state(tmp_path) == "failed"
    with runs.claim(tmp_path):
        assert runs.state(tmp_path) == "running"
    touch(tmp_path / "config.json", 120)  # started again, and killed
    assert runs.state(tmp_path) == "todo"
    touch(tmp_path / "metrics.json", 130)
    assert runs.state(tmp_path) == "done"
    touch(tmp_path / "error.json", 140)
    assert runs.state(tmp_path) == "failed"


@pytest.mark.parametrize("content", ["[]", "7", "null", '"text"', "{", "[" * 100_000, '{"parameters": 3}', '{"seed": [1], "variant": {}}'])
@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.json", "outcome.json", "error.json", "lock", "scores/test-dias.json"])
def test_files_of_any_content_end_in_a_row(name, content, root):
    runs.write_json(root / "runs/a/config.json", {"seed": 7, "steps": 40})
    runs.write_text(root / "runs/a" / name, content)
    table = runs.collect().set_index("run")
    assert list(table.index) == ["runs/a"] and table["state"].iloc[0] in ("todo", "done", "failed")
    if table["state"].iloc[0] == "failed" and name != "error.json":
        assert name.rpartition("/")[2] in table["problem"].iloc[0]


def test_collect_flattens_and_hides_nothing(root):
    good, bad, failed = root / "runs/a", root / "runs/grid/b", root / "runs/c"
    scores = {"protocol": "dias", "decoder": {"ari": 0.5, "miou": float("nan")}}
    for folder in (good, bad, failed):
        runs.write_json(folder / "config.json", {"seed": 7, "steps": 40, "device": "auto"})
    metrics = {"steps": 20, "seconds": 1.5, "scores": scores, "about": {"commit": "abc", "device": "cpu"}}
    runs.write_json(good / "metrics.json", metrics)
    runs.write_json(good / "scores/test-dias.json", scores | {"about": {"commit": "abc"}})
    (bad / "metrics.json").write_text("{")
    runs.write_json(failed / "error.json", {"ename": "ValueError", "evalue": "no"})
    table = runs.collect().set_index("run")
    assert list(table.index) == ["runs/a", "runs/c", "runs/grid/b"]
    row = table.loc["runs/a"]
    assert (row["state"], row["seed"], row["steps"], row["metrics.steps"]) == ("done", 7, 40, 20)
    assert row["scores.decoder.ari"] == row["test-dias.decoder.ari"] == 0.5
    assert row["test-dias.protocol"] == "dias"
    assert row["about.device"] == "cpu"
    assert table.loc["runs/grid/b", "state"] == "failed"
    assert "metrics.json" in table.loc["runs/grid/b", "problem"]
    assert table.loc["runs/c", "problem"] == "ValueError: no"
    assert runs.collect("nowhere").empty
