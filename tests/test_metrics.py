import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from dias_lab.metrics import PROTOCOLS, segmentation_scores

path = Path(__file__).parents[1] / "benchmarks" / "metrics.py"
spec = importlib.util.spec_from_file_location("benchmarks_metrics", path)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture
def maps():
    """Predicted 0..4 and true 0..6, void and overlap, as int64 [3 9 11]."""
    random = np.random.default_rng(0)
    predicted = random.integers(0, 5, (3, 9, 11))
    true = random.choice([0, 1, 2, 3, 4, 5, 6, 254, 255], (3, 9, 11))
    agree = random.random(true.shape) < 0.6
    return np.where(agree & (true < 5), true, predicted), true


def score(predicted, true, protocol="dias", **arguments):
    """Scores of one image, given as nested lists or [H W]."""
    scores = segmentation_scores(np.array(predicted)[None], np.array(true)[None], protocol, **arguments)
    return {name: value.item() for name, value in scores.items()}


def slow_iou(predicted, true, labels, counted):
    """IoU [N S] by boolean masks; `counted` are the pixels that belong to a predicted area."""
    segments = [(predicted == slot) & counted for slot in np.unique(predicted)]
    return np.array([
        [(segment & (true == label)).sum() / (segment | (true == label)).sum() for label in labels]
        for segment in segments
    ])  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_equal_scikit_learn_and_plain_masks(maps, protocol):
    rules = PROTOCOLS[protocol]
    scores = segmentation_scores(*maps, protocol)
    for image, (predicted, true) in enumerate(zip(*maps, strict=True)):
        if rules.overlap == "void":
            true = np.where(true == 254, 255, true)
        if rules.void == "background":
            true = np.where(true == 255, 0, true)
        labelled = true < 254
        things = labelled & (true > 0)
        assert scores["ari"][image].item() == pytest.approx(adjusted_rand_score(true[labelled], predicted[labelled]))
        assert scores["fg_ari"][image].item() == pytest.approx(adjusted_rand_score(true[things], predicted[things]))
        labels = range(0 if rules.background_in_iou else 1, 7)
        in_area = labelled | (true == 255) if rules.void_in_predicted_area else labelled
        iou = slow_iou(predicted, true, labels, in_area)
        assert scores["mbo"][image].item() == pytest.approx(iou.max(axis=0).mean())
        matched = iou[linear_sum_assignment(iou, maximize=True)].sum() / len(labels)
        assert scores["miou"][image].item() == pytest.approx(matched)


@pytest.mark.parametrize(
    "name, protocol, expected",  # ARI, FG-ARI, mBO and mIoU with background, mBO and mIoU without, x100
    [
        ("A", "dias", (49.80, 50.37, 44.61, 40.12, 41.05, 37.50)),
        ("A", "dias-v1", (49.80, 50.37, 44.61, 40.12, 41.05, 37.50)),
        ("A", "spot", (49.80, 50.37, 44.61, 40.12, 41.05, 37.50)),
        ("A", "oclf", (49.80, 50.37, 44.61, 40.12, 41.05, 37.50)),
        ("A", "videosaur", (49.80, 50.37, 44.61, 40.12, 41.05, 37.50)),
        ("B", "dias", (48.17, 51.99, 42.35, 37.74, 39.66, 36.25)),
        ("B", "dias-v1", (41.13, 51.99, 42.29, 37.68, 39.66, 36.25)),
        ("B", "spot", (41.13, 51.99, 42.29, 37.68, 39.66, 36.25)),
        ("B", "videosaur", (41.13, 51.99, 42.29, 37.68, 39.66, 36.25)),
        ("B", "oclf", (48.17, 51.99, 45.57, 40.51, 42.71, 38.96)),
        ("C", "dias", (42.92, 32.04, 20.87, 12.51, 18.69, 10.34)),
        ("C", "spot", (42.92, 32.04, 20.87, 12.51, 18.69, 10.34)),
        ("D", "dias", (66.56, 71.34, 65.48, 63.22, 56.74, 53.93)),  # the release prints ARI 92.06: its overflow
        ("D", "spot", (66.56, 71.34, 65.48, 63.22, 56.74, 53.93)),
    ],
)
def test_releases_agree_on_shared_maps(agreement_sets, name, protocol, expected):
    """Means over 50 random maps, as the published evaluations gave them on the same maps."""
    with_background, without = (
        segmentation_scores(*agreement_sets(name), replace(PROTOCOLS[protocol], background_in_iou=choice))
        for choice in (True, False)
    )
    scores = [with_background[key] for key in ("ari", "fg_ari", "mbo", "miou")] + [without["mbo"], without["miou"]]
    assert [len(score) for score in scores] == [50] * 6
    assert [100 * score.mean().item() for score in scores] == pytest.approx(expected, abs=0.02)


@pytest.fixture(scope="module")
def agreement_sets():
    settings = {
        "A": dict(num_objects=6),
        "B": dict(num_objects=6, void=0.08),
        "C": dict(num_objects=20),
        "D": dict(num_objects=3, background=0.88, noise=0.08),
    }
    made = {}

    def make(name):
        if name not in made:
            random = np.random.default_rng(0)
            pairs = [benchmark.scene(random, **settings[name]) for _ in range(50)]
            made[name] = tuple(np.stack(maps).astype(np.uint8) for maps in zip(*pairs, strict=True))
        return made[name]

    return make


def test_sixteen_pixels():
    true = [[0] * 6 + [1] * 5 + [2] * 5]
    predicted = [[0] * 5 + [1] * 4 + [2] * 4 + [3] * 3]
    scores = score(predicted, true)
    assert scores["ari"] == pytest.approx(0.4715596, abs=1e-6)
    assert scores["fg_ari"] == pytest.approx(0.25, abs=1e-6)
    assert scores["mbo"] == scores["miou"] == pytest.approx(0.6444444, abs=1e-6)


def test_one_cluster_scores_no_ari():
    """At 256x256 the product of pair counts passes 2**63; the release's int64 makes this 0.9767."""
    true = np.zeros((256, 256), int)
    true[100:140, 60:100] = 1
    scores = score(np.zeros_like(true), true)
    assert scores["ari"] == 0
    assert scores["fg_ari"] == 1  # one object, and it lies in a single cluster
    clip = np.tile(true, (24, 1))
    assert score(np.zeros_like(clip), clip)["ari"] == 0


def test_a_clip_is_one_tall_image(maps):
    predicted, true = maps
    clip = segmentation_scores(predicted.reshape(1, 27, 11), true.reshape(1, 27, 11))
    labelled = true < 254
    assert clip["ari"].item() == pytest.approx(adjusted_rand_score(true[labelled], predicted[labelled]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_labels_have_no_meaning(maps, protocol):
    predicted, true = maps
    renamed = np.array([7, 65535, 0, 3, 2])[predicted]
    objects = np.arange(256)
    objects[1:7] = [253, 1, 5, 9, 2, 3]
    before, after = (
        segmentation_scores(predicted, true, protocol),
        segmentation_scores(renamed, objects[true], protocol),
    )
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_every_image_is_scored_alone(maps):
    together = segmentation_scores(*maps)
    for image in range(3):
        alone = segmentation_scores(maps[0][image : image + 1], maps[1][image : image + 1])
        for name in together:
            assert alone[name].item() == together[name][image].item()


def test_images_pass_through_in_order_when_they_do_not_fit_at_once(maps, monkeypatch):
    whole = segmentation_scores(*maps)
    monkeypatch.setattr("dias_lab.metrics.CHUNK_PIXELS", 200)  # two images, then one
    for name, value in segmentation_scores(*maps).items():
        assert value.tolist() == whole[name].tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_segments_score_one(protocol):
    true = np.arange(64).reshape(8, 8) // 13
    assert set(score(true, true, protocol).values()) == {1}


def test_unmatched_true_segments_count_zero():
    true = np.arange(20).reshape(4, 5) + 1  # one pixel each, no background
    scores = score(true > 10, true)
    assert scores["mbo"] == pytest.approx(0.1)
    assert scores["miou"] == pytest.approx(2 * 0.1 / 20)


def test_without_background_ari_is_fg_ari(maps):
    predicted, true = maps
    scores = segmentation_scores(predicted, np.where(true == 0, 1, true))
    torch.testing.assert_close(scores["ari"], scores["fg_ari"])


@pytest.mark.parametrize(
    "protocol, ari, fg_ari, mbo",
    [
        ("dias", 0, np.nan, 0.5),
        ("dias-v1", 0, np.nan, 0.5),
        ("spot", 0, 1, np.nan),
        ("oclf", 0, 1, np.nan),
        ("videosaur", 0, np.nan, np.nan),
    ],
)
def test_without_foreground(protocol, ari, fg_ari, mbo):
    true = np.zeros((4, 4), int)
    scores = score(np.arange(16).reshape(4, 4) // 8, true, protocol)
    expected = dict(ari=ari, fg_ari=fg_ari, mbo=mbo, miou=mbo)
    assert scores == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "protocol, ari, fg_ari, mbo",
    [
        ("dias", np.nan, np.nan, np.nan),
        ("dias-v1", 0, np.nan, 0.5),
        ("spot", 0, 1, np.nan),
        ("oclf", 1, 1, np.nan),
        ("videosaur", 0, np.nan, np.nan),
    ],
)
def test_all_void(protocol, ari, fg_ari, mbo):
    scores = score(np.arange(16).reshape(4, 4) // 8, np.full((4, 4), 255), protocol)
    assert scores == pytest.approx(dict(ari=ari, fg_ari=fg_ari, mbo=mbo, miou=mbo), nan_ok=True)


@pytest.mark.parametrize("protocol, mbo", [("dias", 0.75), ("dias-v1", 1), ("spot", 1), ("oclf", 1), ("videosaur", 1)])
def test_void_enlarges_the_predicted_area_in_one_protocol_only(protocol, mbo):
    true = np.array([[0] * 4, [1] * 4, [255] * 4])
    scores = score(np.where(true == 255, 0, true), true, protocol)  # perfect, and background where void is
    assert scores["ari"] == scores["fg_ari"] == 1
    assert scores["mbo"] == scores["miou"] == mbo


@pytest.mark.parametrize("protocol, mbo", [("dias", 1 / 2), ("oclf", 1), ("spot", 1)])
def test_overlap_is_void_or_ignored(protocol, mbo):
    true = np.array([[1] * 4, [254] * 4])
    scores = score(np.zeros((2, 4), int), true, protocol)
    assert scores["ari"] == scores["fg_ari"] == 1
    assert scores["mbo"] == mbo


def test_classes_merge_the_objects_of_a_kind():
    predicted = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    true = np.array([[0, 0, 0, 0], [1, 1, 2, 2]])
    classes = np.array([[[0, 0, 0, 0], [7, 7, 7, 7]]])
    scores = score(predicted, true, "spot", classes=classes)
    assert scores["mbo"] == 0.5 and scores["mbo_class"] == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_any_integer_type(maps, device, dtype):
    tensors = [torch.from_numpy(labels).to(dtype).to(device) for labels in maps]
    reference = segmentation_scores(*maps)
    for name, value in segmentation_scores(*tensors).items():
        assert value.dtype == torch.float64 and value.device.type == "cpu"
        assert value.tolist() == reference[name].tolist()


def test_one_hot_comparator_agrees(agreement_sets):
    predicted, true = (torch.from_numpy(labels[:4]).long().flatten(1) for labels in agreement_sets("A"))
    usual = benchmark.one_hot_scores(*(benchmark.one_hot(labels).double() for labels in (predicted, true)))
    scores = segmentation_scores(predicted.view(4, 256, 256), true.view(4, 256, 256))
    for name in scores:
        torch.testing.assert_close(scores[name], usual[name])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(protocol="dais"), "'dais'; did you mean 'dias'"),
        (dict(true=np.zeros((2, 3, 5), int)), r"predicted is \[2, 3, 4\], true is \[2, 3, 5\]"),
        (dict(classes=np.zeros((1, 3, 4), int)), r"classes is \[1, 3, 4\]"),
        (dict(predicted=np.zeros((2, 3, 4))), "predicted must be integer.*float64"),
        (dict(predicted=np.zeros((3, 4), int)), r"\[B H W\].*\[3, 4\]"),
        (dict(predicted=np.zeros((0, 3, 4), int), true=np.zeros((0, 3, 4), int)), r"\[0, 3, 4\]"),
        (dict(predicted=np.full((2, 3, 4), -1)), "predicted has label -1 in image 0"),
        (dict(predicted=np.array([0, 65536])[:, None, None].repeat(3, 1).repeat(4, 2)), "65536 in image 1"),
        (dict(true=np.full((2, 3, 4), 300)), "true has label 300 in image 0, outside 0 to 255"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = dict(predicted=np.zeros((2, 3, 4), int), true=np.ones((2, 3, 4), int)) | change
    with pytest.raises(ValueError, match=message):
        segmentation_scores(**arguments)
