"""COCO instances: masks that overlap, and the real photos with tables derived from their panoptic masks."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from dias_lab.__main__ import main
from dias_lab.data import store
from dias_lab.data.convert import coco
from dias_lab.data.convert.common import ConversionError

HEIGHT, WIDTH = 30, 40
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    filled = np.zeros((HEIGHT, WIDTH), bool)
    filled[top:bottom, left:right] = True
    return filled


def encode(filled: np.ndarray) -> dict:
    code = masks.encode(np.asfortranarray(filled.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def run_lengths(filled: np.ndarray) -> dict:
    flat = filled.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(filled.shape), "counts": [0, *counts] if flat[0] else counts}


# listed out of order: annotation 11 overlaps 7, and 5 hides all of 6
SHAPES = {
    11: (run_lengths(box(5, 5, 15, 20)), 1, 1),
    7: ([[10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]], 90, 0),
    5: (encode(box(0, 30, 4, 40)), 1, 0),
    6: (encode(box(1, 32, 3, 36)), 90, 0),
}


def make(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for part, count in (("train2017", 4), ("val2017", 3)):
        (root / part).mkdir()
        images, annotations = [], []
        for number in range(count, 0, -1):
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(root / part / f"{number:012d}.jpg")
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": WIDTH, "height": HEIGHT})
        for number, (shape, category, crowd) in SHAPES.items():
            annotations.append(
                {"id": number, "image_id": 2, "category_id": category, "iscrowd": crowd, "segmentation": shape}
            )
        table = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(table))
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017" / "unlisted.jpg")
    return root


def edit(root: Path, change) -> None:
    path = root / "annotations/instances_val2017.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def decode(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


def test_overlaps_crowds_hidden_ones_and_bare_images(tmp_path):
    root = make(tmp_path / "coco")
    paths = coco.convert(root, tmp_path / "out", validation=0.3, annotations="instances")
    test = store.open(paths["test"])
    assert [item.info["source"]["id"] for item in test] == [1, 2, 3]
    assert (decode(test[0].segments) == 0).all() and test[0].info["things"] == {}  # no annotation: all background
    item = test[1]
    polygon = masks.decode(masks.merge(masks.frPyObjects(SHAPES[7][0], HEIGHT, WIDTH))).astype(bool)
    covers = [box(0, 30, 4, 40), box(1, 32, 3, 36), polygon, box(5, 5, 15, 20)]  # annotations 5, 6, 7, 11
    true = np.zeros((HEIGHT, WIDTH), int)
    for rank, cover in zip((1, 0, 2, 3), covers, strict=True):
        true[cover] = rank
    true[np.sum(covers, axis=0) > 1] = store.OVERLAP
    true[covers[2] & covers[3]] = 4  # the crowd lies over annotation 7: not lost
    assert (decode(item.segments) == true).all() and set(np.unique(true)) == {0, 1, 2, 3, 4, store.OVERLAP}
    assert item.info["classes"] == {1: 1, 2: 90, 3: 1, 4: 90} and set(item.info["things"].values()) == {True}
    assert item.info["crowds"] == {1: False, 2: False, 3: True, 4: False} and item.info["hidden"] == [6]
    assert item.info["beneath"] == {4: 2} and store.segments_of(item.info) == {1: True, 2: True, 3: True}
    assert test.meta["classes"] == {1: "person", 90: "toothbrush"} and test.meta["photos_without_masks"] == 1
    assert test.meta["annotations"] == "instances" and "--annotations instances" in test.meta["command"]
    for path in paths.values():
        store.verify(path)


def many(table: dict) -> None:
    dots = [encode(box(n // 36, n % 36, n // 36 + 1, n % 36 + 1)) for n in range(254)]
    shapes = [
        {"id": n + 1, "image_id": 3, "category_id": 1, "iscrowd": 0, "segmentation": dot} for n, dot in enumerate(dots)
    ]
    table.update(annotations=shapes)


WRONG = {
    "not instances annotations .*images": lambda table: table.pop("images"),
    "not instances annotations .*categories": lambda table: table.pop("categories"),
    "annotates images that it does not list: 77": lambda table: table["annotations"][0].update(image_id=77),
    "uses unknown categories: 5": lambda table: table["annotations"][0].update(category_id=5),
    "has annotation ids twice: 7": lambda table: table["annotations"][0].update(id=7),
    "misses files: val2017/x.jpg": lambda table: table["images"][0].update(file_name="x.jpg"),
    "annotation 5 of image 2 has no mask that decodes": lambda table: table["annotations"][2].update(segmentation=None),
    r"its size is \[9, 9\]": lambda table: table["annotations"][2]["segmentation"].update(size=[9, 9]),
    "annotation 11 .*no mask": lambda table: table["annotations"][0]["segmentation"].update(counts=[5, 7000]),
    "annotation 7 .*no mask": lambda table: table["annotations"][1].update(segmentation=[]),
    r"image 3 has 254 segments; .*at most 253": many,
    "3.jpg 41 x 30, its file has 40 x 30": lambda table: table["images"][0].update(width=41),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said(tmp_path, message):
    root = make(tmp_path / "coco")
    edit(root, WRONG[message])
    with pytest.raises(ConversionError, match=message):
        coco.convert(root, tmp_path / "out", validation=0, annotations="instances")
    assert not list((tmp_path / "out").glob("*"))


def test_no_table_of_instances(tmp_path):
    root = make(tmp_path / "coco")
    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(
        ConversionError, match=r"instances_val2017.json is missing. Expected .*instances_\{train,val\}2017.json"
    ):
        coco.convert(root, tmp_path / "out", annotations="instances")


def test_real_photos(real_data, tmp_path):
    """Instances derived from the panoptic masks: every thing dilated, so that neighbours overlap."""
    root, true = tmp_path / "coco", {}
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part).symlink_to(real_data / "coco" / part)
        table = json.loads((real_data / f"coco/annotations/panoptic_{part}.json").read_text())
        things = {category["id"] for category in table["categories"] if category["isthing"]}
        annotations, kept = [], sorted(table["annotations"], key=lambda a: a["image_id"])[:8]
        for annotation in kept:
            pixels = np.asarray(
                Image.open(real_data / f"coco/annotations/panoptic_{part}" / annotation["file_name"]), np.int64
            )
            ids, cover = pixels @ (1, 256, 65536), 0
            labels = np.zeros(ids.shape, int)
            first = len(annotations)
            for segment in annotation["segments_info"]:
                if segment["category_id"] not in things:
                    continue
                filled = ids == segment["id"]
                filled[:, 3:] |= filled[:, :-3].copy()  # three pixels to the right
                code = masks.encode(np.asfortranarray(filled.astype(np.uint8)))
                number = len(annotations) + 1
                annotations.append({
                    "id": number, "image_id": annotation["image_id"], "category_id": segment["category_id"],
                    "iscrowd": segment["iscrowd"], "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
                })  # fmt: skip
                cover, labels = cover + filled, np.where(filled, number, labels)
            labels[cover > 1] = 0
            visible = [number for number in np.unique(labels) if number]
            numbered = sum(rank * (labels == number) for rank, number in enumerate(visible, start=1))
            true[annotation["image_id"]] = np.where(cover > 1, 254, numbered), len(annotations) - first - len(visible)
        images = [image for image in table["images"] if image["id"] in true]
        content = {"images": images, "annotations": annotations, "categories": table["categories"]}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    assert (
        main(["convert", "coco", "--root", str(root), "--out", str(tmp_path / "out"), "--annotations", "instances"])
        == 0
    )
    seen, overlapped = 0, 0
    for path in (tmp_path / "out").glob("*.lmdb"):
        for item in store.open(path):
            labels, hidden = true[item.info["source"]["id"]]
            shown = store.thing_map(item.info)[decode(item.segments)]
            assert (shown == labels).all() and len(item.info["hidden"]) <= hidden
            seen, overlapped = seen + 1, overlapped + (labels == 254).any()
    assert seen == 16 and overlapped > 5
