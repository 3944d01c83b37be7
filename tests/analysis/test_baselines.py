"""What learns nothing: each baseline on maps whose scores are known, and on a store."""

import re
from pathlib import Path

import torch

from dias_lab.analysis.baselines import baseline_scores, ceiling_segments, cluster_segments, position_segments
from dias_lab.data import store
from dias_lab.methods import build
from dias_lab.metrics import segmentation_scores
from dias_lab.training.loop import fit


def test_baselines_do_what_their_names_say(small_config, small_scenes):
    true = torch.zeros(2, 64, 64, dtype=torch.uint8)
    true[:, 16:48, 16:48] = 1
    true[1, :8] = 255
    ceiling = segmentation_scores(ceiling_segments(true, (8, 8)), true)
    assert (ceiling["ari"] > 0.97).all()
    features = torch.nn.functional.one_hot((true[:, 4::8, 4::8] == 1).long(), 3).permute(0, 3, 1, 2).float()
    assert (segmentation_scores(cluster_segments(features, 2, 64), true)["ari"] > 0.97).all()
    tiles = position_segments((8, 8), 4, 64, 2)
    assert torch.equal(tiles[0], tiles[1]) and len(tiles.unique()) == 4
    model = build(small_config).eval()
    table = baseline_scores(model, store.open(small_scenes / "test.lmdb"))
    assert (table["ceiling.ari"] > table["position.ari"]).all() and len(table) == 3


def test_what_the_page_on_training_says_gives_the_baselines(small_config, small_scenes, tmp_path, capsys):
    fit(small_config.replace(steps=2), tmp_path / "run", progress=False)
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "baseline_table" in block)
    exec(code.replace("runs/x", str(tmp_path / "run")).replace("data/scenes", str(small_scenes)), {})
    told = capsys.readouterr().out
    assert all(word in told for word in ("decoder", "k-means, 5", "position, 5", "ceiling"))
