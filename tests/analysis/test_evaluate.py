"""Evaluation: scores over classes where the store knows them, and several runs in one table."""

import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dias_lab import __main__, fit, runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.analysis.evaluate import METRICS, evaluate, score
from dias_lab.config import method_class
from dias_lab.data import store
from dias_lab.methods import build, checkpoint, segments_from
from dias_lab.metrics import segmentation_scores

LABELS = np.kron(np.array([[0, 1, 2, 3]]), np.ones((128, 32))).astype(np.uint8)  # background, two cats, a dog
CLASSES = np.where(LABELS == 2, 1, LABELS)  # both cats are one


@pytest.fixture
def animals(tmp_path):
    """Three images: of known classes, of unknown ones, and without masks."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    info = {"source": "a test", "things": {1: True, 2: True, 3: True}}
    records = [
        store.Record(buffer.getvalue(), LABELS, info | {"classes": {1: 17, 2: 17, 3: 18}}),
        store.Record(buffer.getvalue(), LABELS, info),
        store.Record(buffer.getvalue(), None, {"source": "a test"}),
    ]
    meta = {"dataset": "animals", "split": "test", "classes": {17: "cat", 18: "dog"}}
    return store.open(store.write(tmp_path / "test.lmdb", records, meta))


def test_evaluation_is_deterministic_and_written_beside_the_run(small_config, small_scenes, tmp_path):
    fit(small_config.replace(steps=5), whole := tmp_path / "run", progress=False)
    first = evaluate(whole, small_scenes / "test.lmdb")
    again = evaluate(checkpoint.load_model(whole), small_scenes / "test.lmdb")
    assert first.scores == again.scores and len(first.images) == 3
    written = runs.read_json(whole / "scores" / "test-dias.json")
    assert written["decoder"] == first.scores["decoder"] and written["protocol"] == "dias"
    part = evaluate(whole, small_scenes / "test.lmdb", limit=1)  # stands apart from the whole
    assert runs.read_json(whole / "scores" / "test-dias-first1.json")["images"] == part.scores["images"] == 1
    assert runs.read_json(whole / "scores" / "test-dias.json")["images"] == 3
    assert {"seed", "step", "device", "data", "seconds", "commit"} <= written["about"].keys()
    records = store.open(small_scenes / "test.lmdb").fingerprint()[:16]
    assert written["about"]["records"] == records and set(pd.read_csv(whole / "scores" / "test-dias.images.csv")["records"]) == {records}
    assert evaluate(whole, small_scenes / "test.lmdb", "spot").scores["decoder"]["mbo"] != first.scores["decoder"]["mbo"]
    with pytest.raises(ValueError, match="did you mean 'dias'"):
        evaluate(whole, small_scenes / "test.lmdb", "diass")


@pytest.mark.parametrize("protocol", ["dias", "dias-v1", "spot"])
def test_mbo_over_classes(small_config, animals, protocol):
    model = build(small_config).eval()
    evaluation = evaluate(model, animals, protocol, seed=0)
    batch = torch.from_numpy(np.stack([LABELS]))
    image = np.asarray(Image.open(io.BytesIO(animals[0].image)))
    output = model(model.normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]), draws=model.draw([0], 0))
    predicted = segments_from(output.decoder_attention, 128)
    expected = segmentation_scores(predicted, batch, protocol, classes=torch.from_numpy(CLASSES)[None])
    found = evaluation.images["decoder.mbo_class"]
    assert found[0] == pytest.approx(float(expected["mbo_class"])) and found[0] != evaluation.images["decoder.mbo"][0]
    assert np.isnan(found[1])
    assert evaluation.scores["decoder"]["mbo_class"] == pytest.approx(float(np.nanmean(found)))


def test_a_model_in_training_goes_on_training_when_an_evaluation_fails(small_config, small_scenes):
    model = build(small_config).train()
    with pytest.raises(ValueError, match="did you mean 'dias'"):
        evaluate(model, small_scenes / "test.lmdb", "diass")
    assert model.training
    evaluate(model, small_scenes / "test.lmdb", limit=1)
    assert model.training


def test_no_classes_no_column(small_config, small_scenes):
    scores = evaluate(build(small_config).eval(), small_scenes / "test.lmdb").scores
    assert "mbo_class" not in scores["decoder"]


def test_any_predictor_is_scored_image_by_image(small_config, small_scenes, tmp_path):
    scenes = store.open(small_scenes / "test.lmdb")

    def predict(batch):
        brightness = batch["image"].float().mean(dim=(1, 2, 3))
        return {"true": batch["segments"], "brightness": brightness, "nothing": torch.zeros_like(batch["segments"])}

    table = score(predict, scenes, small_config.replace(batch_size=2))
    assert table["item"].tolist() == [0, 1, 2] and (table["true.ari"] == 1).all() and (table["nothing.ari"] == 0).all()
    names = [f"{name}.{metric}" for name in ("true", "nothing") for metric in METRICS]
    assert set(table) == {"item", "brightness", *names} and table["brightness"].nunique() == 3
    assert len(score(predict, scenes, small_config, limit=2)) == 2
    empty = store.open(store.write(tmp_path / "empty.lmdb", [], {"dataset": "none", "split": "test"}))
    with pytest.raises(ValueError, match="empty.lmdb is empty"):
        score(predict, empty, small_config)


def test_several_runs_have_mean_and_deviation(small_config, small_scenes, tmp_path, capsys):
    paths = []
    for seed in (1, 2, 3):
        config = small_config.replace(seed=seed)
        paths.append(tmp_path / str(seed))
        paths[-1].mkdir()
        runs.write_json(paths[-1] / "config.json", config.to_dict())
        checkpoint.save(paths[-1], 1, build(config), {}, {})
    command = ["evaluate", "--run-dir", *map(str, paths), "--data", str(small_scenes)]
    assert __main__.main(command) == 0
    text = capsys.readouterr().out
    values = [100 * runs.read_json(path / "scores" / "test-dias.json")["decoder"]["fg_ari"] for path in paths]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert "3 images of test, protocol dias" in text and "n = 3 runs" in text
    assert __main__.main([*command, "--out", str(tmp_path / "x.json")]) == 2
    assert __main__.main(["evaluate", "--data", str(small_scenes)]) == 2


def test_a_checkpoint_is_chosen_by_the_methods_own_map(small_config):
    dias, vqdino = (Discovery(small_config.replace(method=name)) for name in ("dias", "vqdino"))
    scores = {"decoder": dict.fromkeys(METRICS, 0.2), "last": dict.fromkeys(METRICS, 0.4) | {"fg_ari": math.nan}}
    assert dias.selection(scores) == pytest.approx(0.2) and vqdino.selection(scores) == pytest.approx(0.4)
    assert math.isnan(vqdino.selection({"last": dict.fromkeys(METRICS, math.nan)}))
    assert (method_class("vqdino").evaluated_map, method_class("dias").evaluated_map) == ("last", "decoder")
