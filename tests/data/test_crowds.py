"""Crowd regions and overlap: each protocol scores the binary masks of COCO's annotations as its source does.

The sources, from reference code that was read, not copied: SPOT takes crowds as masks, the pixels of two masks are
ignored, and an image without any scores 1; OCLF scores alike; VideoSAUR leaves crowds out, then ignores the pixels of two
masks, and leaves out images that have no masks to begin with, so one whose masks overlap throughout scores 1.
"""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from dias_lab.config import Config
from dias_lab.data import store, summary
from dias_lab.data.convert import coco
from dias_lab.data.dataset import Squares, class_table, read
from dias_lab.metrics import PROTOCOLS, segmentation_scores

SIDE = 24


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[top:bottom, left:right] = True
    return pixels


A, B, C = box(2, 2, 12, 12), box(2, 10, 12, 20), box(14, 2, 22, 9)
IMAGES = {  # of each annotation its pixels, whether it is a crowd, and its class
    "objects": [(A, 0, 1), (C, 0, 2)],
    "objects that overlap": [(A, 0, 1), (B, 0, 2), (C, 0, 1)],
    "a crowd apart": [(A, 0, 1), (C, 1, 1)],
    "a crowd over an object": [(A, 0, 1), (box(0, 0, 8, 16), 1, 1), (C, 0, 2)],
    "a crowd over all of an object": [(A, 0, 1), (box(0, 0, 13, 13), 1, 2)],
    "a crowd beneath": [(box(0, 0, 24, 14), 1, 1), (A, 0, 1), (C, 0, 1)],
    "a crowd over overlap": [(A, 0, 1), (B, 0, 2), (box(0, 0, 13, 24), 1, 1), (C, 0, 2)],
    "crowds that overlap": [(A, 1, 1), (B, 1, 1), (C, 0, 2)],
    "crowds over crowds over an object": [(A, 0, 1), (box(0, 0, 9, 24), 1, 1), (box(4, 0, 13, 24), 1, 2), (C, 0, 1)],
    "crowds alone": [(A, 1, 1), (C, 1, 2)],
    "all foreground overlaps": [(A, 0, 1), (A, 0, 2)],
    "all foreground overlaps, under a crowd": [(A, 0, 1), (A, 0, 2), (box(0, 0, 14, 14), 1, 1)],
    "crowds that overlap throughout": [(A, 1, 1), (A, 1, 2)],
    "nothing": [],
}
CROWDS_ARE_MASKS = {"spot": True, "oclf": True, "videosaur": False}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> store.Store:
    root = tmp_path_factory.mktemp("crowds")
    (root / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        images, annotations, ids = [], [], itertools.count(1)
        for number, name in enumerate(IMAGES, start=1):
            Image.new("RGB", (SIDE, SIDE), (number, 9, 9)).save(root / part / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
            for pixels, crowd, category in IMAGES[name]:
                code = masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
                shape = {"size": [SIDE, SIDE], "counts": code["counts"].decode()}
                annotations.append({
                    "id": next(ids), "image_id": number, "category_id": category, "iscrowd": crowd, "segmentation": shape,
                })  # fmt: skip
        kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        table = {"images": images, "annotations": annotations, "categories": kinds}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(table))
    paths = coco.convert(root, root / "out", validation=0, annotations="instances")
    store.verify(paths["test"])
    return store.open(paths["test"])


def by_the_source(predicted: np.ndarray, name: str, protocol: str) -> dict[str, float]:
    """The scores of binary masks [S H W], computed the sources' way."""
    kept = [pixels for pixels, crowd, _ in IMAGES[name] if CROWDS_ARE_MASKS[protocol] or not crowd]
    covers = np.array(kept).reshape(-1, SIDE, SIDE)
    valid = covers.sum(axis=0) <= 1
    true = [pixels & valid for pixels in covers if (pixels & valid).any()]
    foreground = np.any(true, axis=0) if true else np.zeros((SIDE, SIDE), bool)
    if foreground.any():
        labels = sum(number * pixels for number, pixels in enumerate(true, start=1))
        fg_ari = adjusted_rand_score(labels[foreground], predicted[foreground])
    else:
        fg_ari = 1.0 if len(covers) or protocol != "videosaur" else np.nan
    if not true:
        return {"fg_ari": fg_ari, "mbo": np.nan, "miou": np.nan}
    slots = [(predicted == slot) & valid for slot in np.unique(predicted)]
    iou = np.array([[(slot & one).sum() / (slot | one).sum() for one in true] for slot in slots])
    return {
        "fg_ari": fg_ari,
        "mbo": iou.max(axis=0).mean(),
        "miou": iou[linear_sum_assignment(iou, maximize=True)].sum() / len(true),
    }


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("protocol", CROWDS_ARE_MASKS)
def test_scores_are_those_of_the_source(opened, name, protocol):
    predicted = np.random.default_rng(len(name)).integers(0, 4, (SIDE, SIDE)) + 4 * A
    batch = Squares(opened, SIDE, 1, crowds=CROWDS_ARE_MASKS[protocol])[list(IMAGES).index(name)]
    scores = segmentation_scores(predicted[None], batch["segments"], protocol)
    for key, value in by_the_source(predicted, name, protocol).items():
        assert scores[key].item() == pytest.approx(value, nan_ok=True), key


@pytest.mark.parametrize("protocol", CROWDS_ARE_MASKS)
def test_an_evaluation_reads_the_store_as_its_protocol_does(opened, protocol):
    from dias_lab.analysis.evaluate import score

    config = Config.preset("scenes", image_size=SIDE, batch_size=5)
    predicted = np.random.default_rng(0).integers(0, 5, (SIDE, SIDE))
    table = score(lambda batch: {"x": torch.tensor(predicted).expand(len(batch["image"]), -1, -1)}, opened, config, protocol)
    for number, name in enumerate(IMAGES):
        for key, value in by_the_source(predicted, name, protocol).items():
            assert table[f"x.{key}"][number] == pytest.approx(value, nan_ok=True), (name, key)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("crowds", [True, False])
def test_no_object_is_lost_under_a_crowd(opened, name, crowds):
    """Every mask comes back, less the pixels where two that count lie on each other; and its class with it."""
    item = list(IMAGES).index(name)
    labels = read(opened, item, crowds)[1].numpy()
    kept = [(pixels, category) for pixels, crowd, category in IMAGES[name] if crowds or not crowd]
    cover = sum(pixels.astype(int) for pixels, _ in kept) if kept else np.zeros((SIDE, SIDE), int)
    assert ((labels == store.OVERLAP) == (cover > 1)).all() and ((labels == 0) == (cover == 0)).all()
    classes, info = class_table(opened[item].info, crowds).numpy(), opened[item].info
    own = [(pixels & (cover == 1), category) for pixels, category in kept]
    for pixels, category in own:
        if pixels.any():
            [segment] = np.unique(labels[pixels])
            assert (labels == segment).sum() == pixels.sum() and info["classes"][segment] == category
            assert 0 < classes[segment] < store.OVERLAP
    assert len(np.unique(classes[labels[cover == 1]])) == len({category for pixels, category in own if pixels.any()})


def test_panoptic_crowds_are_left_out_too():
    info = {"things": {1: True, 2: True, 3: False}, "crowds": {1: False, 2: True, 3: False}}
    assert store.thing_map(info)[[0, 1, 2, 3, 254, 255]].tolist() == [0, 1, 2, 0, 254, 255]
    assert store.thing_map(info, crowds=False)[[0, 1, 2, 3, 254, 255]].tolist() == [0, 1, 0, 0, 254, 255]


def test_what_is_under_crowds_counts_as_overlap_and_not_as_segments(opened):
    one = summary.summarise(opened.path)
    shown = [read(opened, item)[1].numpy() for item in range(len(opened))]
    assert one.overlap == pytest.approx(np.mean([labels == store.OVERLAP for labels in shown]))
    assert one.marked["overlap"] == sum((labels == store.OVERLAP).any() for labels in shown)
    own = [set(np.unique(labels)) - {0, store.OVERLAP} for labels in shown]
    assert one.segments == one.things == sum(map(len, own)) == store.verify(opened.path)["segments"]
    [sample] = summary.samples(opened.path, 1)
    assert set(np.unique(sample.segments)) <= {0, 1, 2, store.OVERLAP}


def test_older_stores_cannot_be_scored_without_crowds(tmp_path, monkeypatch):
    """They painted crowds over what was beneath."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    records = [store.Record(image.getvalue(), np.zeros((8, 8), np.uint8), {"source": "x", "things": {}})]
    for schema, annotations, fails in ((1, "instances", True), (1, "panoptic", False), (2, "instances", False)):
        monkeypatch.setattr(store, "SCHEMA", schema)
        meta = {"dataset": "coco", "split": "test", "annotations": annotations}
        path = store.write(tmp_path / f"{schema}{annotations}.lmdb", records, meta)
        assert len(Squares(store.open(path), 8, 1)) == 1
        if fails:
            with pytest.raises(store.StoreError, match="does not say what is beneath its crowds.*Convert"):
                Squares(store.open(path), 8, 1, crowds=False)
        else:
            Squares(store.open(path), 8, 1, crowds=False)


@pytest.mark.parametrize("beneath", [{9: 1}, {1: 9}, {1: 254}])
def test_what_is_beneath_must_be_in_the_map(beneath):
    labels = np.ones((8, 8), np.uint8)
    info = {"source": "x", "things": {1: True}, "beneath": beneath}
    with pytest.raises(store.StoreError, match="info.'beneath'. is"):
        store.pack(store.Record(store.png(Image.new("RGB", (8, 8))), labels, info))


def test_which_protocols_know_crowds():
    """DIAS scores panoptic masks, where a crowd is one thing; objects that overlap throughout leave nothing to score."""
    assert {name for name, rules in PROTOCOLS.items() if rules.crowds} == {"dias", "dias-v1", "spot", "oclf"}
    predicted, true = np.zeros((1, 4, 6), int), np.full((1, 4, 6), store.OVERLAP)
    true[0, 0] = 0
    found = {name: segmentation_scores(predicted, true, name)["fg_ari"].item() for name in PROTOCOLS}
    assert {name for name, value in found.items() if value == 1} == {"spot", "oclf", "videosaur"}
    assert all(np.isnan(found[name]) for name in ("dias", "dias-v1"))
