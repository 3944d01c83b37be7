"""Evaluation, baselines and object discovery on stores of frames: a row a clip, two levels, image models frame by frame."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from small_clips import LENGTHS, clip_model, frames_of, methods, reading, write_clips  # noqa: F401

from dias_lab import runs
from dias_lab.analysis import evaluate as evaluating
from dias_lab.analysis.baselines import baseline_scores, baseline_table, followed, score_table
from dias_lab.analysis.discovery import Discovery
from dias_lab.analysis.evaluate import CLIP_METRICS, METRICS, evaluate, frame_by_frame, maps_of, score, scores_text
from dias_lab.data import store
from dias_lab.methods import build, segments_from
from dias_lab.metrics import video_scores

pytestmark = pytest.mark.usefixtures("reading", "methods")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def clips(folder):
    return store.open(folder / "test.lmdb")


@pytest.fixture
def clip_config(small_config, folder):
    return small_config.replace(data=str(folder), clip_frames=3, batch_size=2, steps=4, evaluate_images=2)


def test_a_row_a_clip_at_two_levels(small_config, clips):
    def predict(batch):
        assert batch["image"].ndim == 5 and len(batch["image"]) == 1
        wrong = batch["segments"].long()
        wrong[:, 1] = torch.tensor([0, 2, 1])[wrong[:, 1]]  # what every frame shows alone is right
        brightness = batch["image"].float().mean(dim=(2, 3, 4))  # [B F]
        return {"true": batch["segments"], "wrong": wrong, "brightness": brightness, "ones": torch.ones(1)}

    table = score(predict, clips, small_config)
    assert table["item"].tolist() == [0, 1, 2] and table["name"].tolist() == list(LENGTHS)
    assert table["frames"].tolist() == list(LENGTHS.values())
    assert (table[[f"true.{metric}" for metric in CLIP_METRICS]] == 1).all(axis=None)
    assert (table["wrong.image_fg_ari"] == 1).all() and (table["wrong.video_fg_ari"] < 0.7).all()
    assert table["wrong.switches"].tolist() == [4, 4, 4] and table["true.switches"].tolist() == [0, 0, 0]
    assert table["wrong.gap"].tolist() == (1 - table["wrong.video_fg_ari"]).tolist()
    assert table["wrong.switch_rate"].tolist() == [4 / 6, 4 / 4, 4 / 8]
    assert table["brightness"].between(50, 255).all() and table["brightness"].nunique() == 3 and (table["ones"] == 1).all()
    assert len(score(predict, clips, small_config, limit=2)) == 2 and "wrong.jf" not in table
    with pytest.raises(ValueError, match="did you mean 'spot'"):
        score(predict, clips, small_config, "spott")


def test_clips_of_one_frame_are_images(small_config, tmp_path):
    single = store.open(write_clips(tmp_path, ["test"], lengths={"red": 1, "green": 1}) / "test.lmdb")
    evaluation = evaluate(build(small_config).eval(), single)
    for metric in METRICS:
        assert evaluation.scores["decoder"][f"video_{metric}"] == evaluation.scores["decoder"][f"image_{metric}"]
    assert evaluation.scores["decoder"]["gap"] == evaluation.scores["decoder"]["switches"] == 0
    assert math.isnan(evaluation.scores["decoder"]["switch_rate"]) and "n/a" in scores_text(evaluation.scores)


def test_davis_has_contours_too(small_config, tmp_path):
    davis = store.open(write_clips(tmp_path, ["validation"], "DAVIS-2017") / "validation.lmdb")
    table = score(lambda batch: {"true": batch["segments"]}, davis, small_config, limit=1)
    assert table[["true.j", "true.f", "true.jf"]].iloc[0].tolist() == [1, 1, 1]


def test_masks_for_some_frames_only(small_config, tmp_path):
    some = store.open(write_clips(tmp_path, ["test"], without_masks=[("red", 1), *(("green", i) for i in range(3))]) / "test.lmdb")
    for protocol in ("dias", "videosaur"):
        table = score(lambda batch: {"true": torch.where(batch["segments"] == 255, 0, batch["segments"])}, some, small_config, protocol)
        assert table["true.video_fg_ari"].isna().tolist() == [False, True, False] and (table["true.video_fg_ari"].dropna() == 1).all()
        assert table["frames"].tolist() == [4, 3, 5]


def test_an_image_model_sees_each_frame_alone(small_config, clips, folder):
    model = build(small_config.replace(batch_size=3)).eval()  # clips are cut into several passes
    evaluation = evaluate(model, clips, seed=7)
    images = torch.from_numpy(np.stack([np.asarray(store.pictures.opened(clips[item].image, "it")) for item in range(4)]))
    alone = model(model.normalise(images.permute(0, 3, 1, 2)), draws=model.draw(range(4), 7))
    for name, maps in (("last", alone.attention[-1]), ("decoder", alone.decoder_attention)):
        expected = video_scores(segments_from(maps, 128)[None], frames_of(0, 4)[None])
        for metric in (*CLIP_METRICS, "gap", "switches"):
            assert evaluation.images[f"{name}.{metric}"][0] == pytest.approx(expected[metric].item(), abs=1e-6), (name, metric)
    assert evaluation.images["kept"][0] == pytest.approx(alone.keep.sum(1).double().mean().item())
    error = (alone.reconstruction - alone.features).square().mean().item()
    assert evaluation.images["reconstruction"][0] == pytest.approx(error, rel=1e-4)
    again = evaluate(model, folder / "test.lmdb", seed=7)
    pd.testing.assert_frame_equal(again.images, evaluation.images)


def test_a_clip_model_sees_the_clip_from_its_own_slots(clip_config, clips):
    model = clip_model(clip_config)
    evaluation = evaluate(model, clips, seed=7)
    model.eval()
    batch = {"image": torch.from_numpy(np.stack([np.asarray(store.pictures.opened(clips[item].image, "it")) for item in range(4, 7)]))}
    image = model.normalise(batch["image"].permute(0, 3, 1, 2)[None])
    with torch.no_grad():
        output = model(image, draws=model.draw([1], 7, frames=3), frames=torch.ones(1, 3, dtype=torch.bool))
    expected = video_scores(segments_from(output.decoder_attention[0], 128)[None], frames_of(1, 3)[None])
    assert evaluation.images["decoder.video_fg_ari"][1] == pytest.approx(expected["video_fg_ari"].item(), abs=1e-6)
    assert evaluation.images["decoder.switches"][1] == expected["switches"].item()
    assert evaluation.images["kept"][1] == pytest.approx(output.keep.sum(-1).double().mean().item())
    assert len(evaluation.images) == 3 and evaluation.scores["clips"] == 3


def test_boxes_reach_a_clip_model_and_draws_are_the_clips_own(clip_config, monkeypatch):
    model, asked = clip_model(clip_config.replace(condition="boxes")).eval(), []
    pieces, draw = model.pieces, model.draw
    monkeypatch.setattr(model, "pieces", lambda image, **given: asked.append(given) or pieces(image, **given))
    monkeypatch.setattr(model, "draw", lambda places, seed, **given: asked.append((places, seed)) or draw(places, seed, **given))
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.6], [-1.0] * 4]])
    batch = {"image": torch.zeros(1, 2, 3, 128, 128, dtype=torch.uint8), "boxes": boxes, "frames": torch.ones(1, 2, dtype=torch.bool)}
    with torch.no_grad():
        found = maps_of(model, 3)(batch | {"info": {"clip": torch.tensor([5]), "item": torch.tensor([[8, 9]])}})
    assert asked[0] == ([5], 3) and torch.equal(asked[1]["boxes"], boxes)
    assert found["decoder"].shape == (1, 2, 128, 128) and found["kept"].shape == (1, 2)


def test_scores_of_clips_are_written_and_shown(small_config, clips, tmp_path):
    model = build(small_config).eval()
    evaluation = evaluate(model, clips, out=tmp_path / "x.json")
    written = runs.read_json(tmp_path / "x.json")
    assert written["clips"] == 3 and written["images"] == 12 and written["protocol"] == "dias"
    for metric in (*CLIP_METRICS, "gap", "switches", "switch_rate"):
        assert written["decoder"][metric] == pytest.approx(evaluation.images[f"decoder.{metric}"].mean())
    assert written["valid"] == dict.fromkeys(CLIP_METRICS, 3) and "ari" not in written["decoder"]
    text = scores_text(evaluation.scores)
    assert "3 clips (12 frames) of test, protocol dias" in text
    for word in ("video FG-ARI", "image FG-ARI", "image - video FG-ARI", "switch rate", "first", "last", "decoder"):
        assert word in text
    line = next(line for line in text.splitlines() if line.startswith("switches"))
    assert float(line.split()[-1]) == pytest.approx(evaluation.scores["decoder"]["switches"], abs=0.05)
    assert "± " in scores_text(evaluation.scores, evaluation.scores)
    assert evaluating.scores_name(clips, "dias", 2) == "test-dias-first2.json" and evaluating.scores_name(clips, "dias", 3) == "test-dias.json"


def test_a_store_of_images_is_refused_for_a_clip_model(clip_config, small_scenes):
    with pytest.raises(store.StoreError, match="test.lmdb holds images.*onvert"):
        evaluate(clip_model(clip_config), small_scenes / "test.lmdb")
    with pytest.raises(store.StoreError, match="train.lmdb holds images.*onvert"):
        Discovery.check(clip_config.replace(data=str(small_scenes)))
    Discovery.check(clip_config)


def test_clusters_are_named_as_in_the_frame_before():
    true = torch.from_numpy(frames_of(0, 4)).long()
    mixed = torch.stack([torch.tensor(order)[frame] for order, frame in zip(([0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]), true)])
    found = video_scores(followed(mixed, 3)[None], true[None])
    assert found["video_fg_ari"].item() == 1 and found["switches"].item() == 0
    assert video_scores(mixed[None], true[None])["switches"].item() > 0
    assert torch.equal(followed(mixed[:1], 3), mixed[:1])


@pytest.mark.parametrize("frames", [0, 3])
def test_baselines_of_clips(frames, clip_config, clips):
    model = clip_model(clip_config).eval() if frames else build(clip_config.replace(clip_frames=0)).eval()
    table = baseline_scores(model, clips, limit=2)
    assert table["name"].tolist() == ["red", "green"]
    assert (table["ceiling.video_fg_ari"] > 0.6).all() and (table["ceiling.switches"] == 0).all()
    assert (table["ceiling.video_ari"] > table["position.video_ari"]).all() and (table["k-means.image_ari"] > 0).all()
    shift = frames_of(0, 4)
    expected = video_scores(np.broadcast_to(shift[:1], shift.shape)[None].copy(), shift[None])
    assert table["held truth.video_ari"][0] == pytest.approx(expected["video_ari"].item())
    still = evaluate(model, clips, limit=2)
    assert (table["held map.image_ari"] != still.images["last.image_ari"]).any() and (table["held map.switches"] <= 12).all()
    shown = score_table(still.images, table)
    names = ["first map", "last map", "decoder map", "k-means", "position", "ceiling", "held map", "held truth"]
    assert list(shown.index) == names and not shown.isna().any(axis=None)
    assert {"video FG-ARI", "image FG-ARI", "switch rate"} <= set(shown)
    means = baseline_table([model], clips, limit=2)
    assert means.loc["ceiling", "video_ari"] == pytest.approx(table["ceiling.video_ari"].mean())


def test_numbers_and_maps_of_images_pass_as_they_are():
    predict = frame_by_frame(lambda batch: {"kept": batch["info"]["item"], "map": batch["segments"]}, 2)
    single = {"image": torch.zeros(3, 3, 4, 4), "segments": torch.ones(3, 4, 4), "info": {"item": torch.arange(3)}}
    assert predict(single)["kept"].tolist() == [0, 1, 2]
    item = torch.arange(5)[None] + 3
    clip = {"image": torch.zeros(1, 5, 3, 4, 4), "segments": torch.arange(5).view(1, 5, 1, 1).expand(1, 5, 4, 4)}
    found = predict(clip | {"frames": torch.ones(1, 5, dtype=torch.bool), "info": {"item": item, "clip": torch.zeros(1)}})
    assert torch.equal(found["kept"], item) and torch.equal(found["map"], clip["segments"])


def test_discovery_trains_on_clips(clip_config):
    task = Discovery(clip_config)
    fabric = Fabric(accelerator="cpu", devices=1)
    facts = task.begin(fabric)
    assert facts["count"] == 12
    batch = next(task.batches(range(2), 0))
    inputs, draws = task.prepare(batch, range(2))
    assert inputs["images"].shape == (2, 3, 3, 128, 128) and inputs["frames"].dtype == torch.bool
    output = task.model.train()(**inputs, draws=draws)
    losses, weights = task.losses(output, 0.5)
    assert losses.keys() == weights.keys() and all(torch.isfinite(loss) for loss in losses.values())
    kept = task.measured(output)["kept"]
    assert kept.ndim == 0 and 1 <= kept <= clip_config.num_slots
    scores = task.evaluate(fabric)
    assert scores["clips"] == 2 and task.selection(scores) == pytest.approx(
        np.mean([scores[task.model.evaluated_map][f"video_{metric}"] for metric in METRICS])
    )
    trace = task.trace(2)
    assert len(trace) == 2 * 3 and trace.about["frames"] == 3  # as long as the shortest
    assert trace.names == ["red 0", "red 1", "red 2", "green 0", "green 1", "green 2"]
    assert np.array_equal(trace.segments[3:], frames_of(1, 3))


def test_padding_is_not_measured(clip_config):
    class Output:
        keep = torch.tensor([[[True, True], [True, False], [False, False]], [[True, True]] * 3])
        frames = torch.tensor([[True, True, False], [True, True, True]])

    assert Discovery(clip_config).measured(Output)["kept"] == pytest.approx((2 + 1 + 2 + 2 + 2) / 5)


def test_features_of_clips_come_from_the_cache(clip_config, monkeypatch):
    import sys

    asked = []
    monkeypatch.setattr(sys.modules["dias_lab.data.clips"], "clip_feature_batches", lambda *given, **more: asked.append((given, more)) or "them")
    task = Discovery(clip_config.replace(cache_views=1, crop_scale=1.0))
    task.begin(Fabric(accelerator="cpu", devices=1))
    assert task.batches(range(1), 3) == "them"
    (given_store, config, backbone), more = asked[0]
    assert given_store is task.train_store and backbone is task.model.backbone and more["step"] == 3
    features = torch.rand(2, 3, 4, 8, 8).half()
    batch = {"features": features, "frames": torch.ones(2, 3, dtype=torch.bool), "info": {"step": 0}, "draws": {"slots": torch.zeros(2)}}
    inputs, _ = task.prepare(batch, range(2))
    assert inputs["images"] is None and torch.equal(inputs["features"], features.float()) and "frames" in inputs


def test_an_image_method_trains_on_frames(clip_config):
    task = Discovery(clip_config.replace(clip_frames=0))
    fabric = Fabric(accelerator="cpu", devices=1)
    task.begin(fabric)
    batch = next(task.batches(range(2), 0))
    inputs, draws = task.prepare(batch, range(2))
    assert inputs["images"].shape == (2, 3, 128, 128) and inputs.keys() == {"images"}
    assert 0 < task.measured(task.model(**inputs, draws=draws))["kept"] <= clip_config.num_slots
    scores = task.evaluate(fabric)
    own = scores[task.model.evaluated_map]
    assert scores["clips"] == 2 and task.selection(scores) == pytest.approx(np.mean([own[f"image_{metric}"] for metric in METRICS]))
    assert task.trace(2).names == ["red 0", "red 1"]


def test_selection_leaves_out_what_is_not_defined(clip_config):
    task = Discovery(clip_config)
    own = dict.fromkeys([f"video_{metric}" for metric in METRICS], 0.2) | {"video_fg_ari": math.nan, "image_ari": 1.0}
    assert task.selection({"clips": 2, task.model.evaluated_map: own}) == pytest.approx(0.2)
