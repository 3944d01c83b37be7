"""COCO: a tiny data set in the true layout, what can be wrong with it, and the real photos if there are any."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.data import store
from dias_lab.data.convert import coco
from dias_lab.data.convert.common import divide

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 90, "name": "toothbrush", "isthing": 1},
    {"id": 200, "name": "rug-merged", "isthing": 0},
]
HEIGHT, WIDTH = 24, 31
IDS = [70_000, 5, 300]  # as listed; the store numbers them 3, 1, 2
TABLE = "annotations/panoptic_{}.json"


def masks() -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.int64)  # 0: not annotated
    ids[:8], ids[8:16, :20], ids[20:, 25:] = IDS
    return ids


def colours(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def make(root: Path, train: int = 40, val: int = 3) -> Path:
    """As many images a part, ids 1 to n in descending order, and one photo more that has no masks."""
    for part, count in (("train2017", train), ("val2017", val)):
        folder = root / "annotations" / f"panoptic_{part}"
        folder.mkdir(parents=True)
        (root / part).mkdir()
        images, annotations = [], []
        for number in range(count, -1, -1):
            pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(root / part / f"{number:012d}.jpg")
            if number == 0:
                continue
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": WIDTH, "height": HEIGHT})
            colours(masks()).save(folder / f"{number:012d}.png")
            segments = [
                {"id": segment, "category_id": category["id"], "iscrowd": int(category["id"] == 90)}
                for segment, category in zip(IDS, CATEGORIES, strict=True)
            ]
            annotations.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": segments})
        table = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / TABLE.format(part)).write_text(json.dumps(table))
    return root


def edit(root: Path, change, part: str = "val2017") -> None:
    path = root / TABLE.format(part)
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def decode(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


def ids(path: Path) -> list[int]:
    return [item.info["source"]["id"] for item in store.open(path)]


def test_segments_things_crowds_and_void(tmp_path):
    root = make(tmp_path / "coco")
    paths = coco.convert(root, tmp_path / "out")
    assert paths == {split: tmp_path / "out" / f"{split}.lmdb" for split in ("train", "validation", "test")}
    assert sorted(os.listdir(tmp_path / "out")) == ["test.lmdb", "train.lmdb", "validation.lmdb"]
    test = store.open(paths["test"])
    assert ids(paths["test"]) == [1, 2, 3]
    item = test[1]
    assert item.image == (root / "val2017/000000000002.jpg").read_bytes()
    assert item.info == {
        "source": {"id": 2, "file": "val2017/000000000002.jpg"},
        "width": WIDTH,
        "height": HEIGHT,
        "things": {1: True, 2: False, 3: True},
        "classes": {1: 90, 2: 200, 3: 1},
        "crowds": {1: True, 2: False, 3: False},
    }
    true = np.full((HEIGHT, WIDTH), store.VOID)
    for rank, segment in enumerate(sorted(IDS), start=1):
        true[masks() == segment] = rank
    assert (decode(item.segments) == true).all()
    meta = test.meta
    assert meta["classes"] == {1: "person", 90: "toothbrush", 200: "rug-merged"}
    assert (meta["dataset"], meta["split"], meta["count"], meta["photos_without_masks"]) == ("coco", "test", 3, 1)
    assert meta["command"].startswith("python -m dias_lab convert coco --root ")
    for path in paths.values():
        store.verify(path)


def test_the_validation_split_follows_from_the_ids_alone(tmp_path):
    root = make(tmp_path / "coco")
    paths = coco.convert(root, tmp_path / "a", validation=0.2)
    train, validation = ids(paths["train"]), ids(paths["validation"])
    assert sorted(train + validation) == list(range(1, 41)) and 2 <= len(validation) <= 16
    edit(root, lambda table: table["annotations"].reverse(), "train2017")
    edit(root, lambda table: table["annotations"].pop(), "train2017")  # one image fewer moves no other
    again = coco.convert(root, tmp_path / "b", validation=0.2)
    assert set(ids(again["validation"])) <= set(validation) and set(ids(again["train"])) <= set(train)
    larger = coco.convert(root, tmp_path / "c", validation=0.5)
    assert set(ids(again["validation"])) < set(ids(larger["validation"]))
    none = coco.convert(root, tmp_path / "d", validation=0)
    assert sorted(none) == ["test", "train"] and len(ids(none["train"])) == 39
    with pytest.raises(coco.ConversionError, match="validation.lmdb is there.*Remove it"):
        coco.convert(root, tmp_path / "c", validation=0)


def test_the_held_out_share_of_the_whole_of_coco():
    train, held = divide("coco", range(100_000), 0.05)
    assert abs(len(held) / 100_000 - 0.05) < 0.003 and sorted(train + held) == list(range(100_000))
    assert len(divide("coco", range(40), 1e-9)[1]) == 1  # a small set still gets its one image


def test_a_limit(tmp_path, capsys):
    paths = coco.convert(make(tmp_path / "coco"), tmp_path / "out", validation=0.5, limit=2, progress=True)
    assert [len(ids(path)) for path in paths.values()] == [2, 2, 2]
    assert ids(paths["test"]) == [1, 2]
    captured = capsys.readouterr()
    assert "coco train: 100%" in captured.err and "1 photos of val2017 are not in panoptic_val2017.json" in captured.out


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_categories_from_their_own_file(tmp_path, folder):
    root = make(tmp_path / "coco")
    edit(root, lambda table: table.pop("categories"))
    with pytest.raises(coco.ConversionError, match="panoptic_val2017.json .*panoptic_coco_categories.json"):
        coco.convert(root, tmp_path / "out")
    (root / folder / "panoptic_coco_categories.json").write_text(json.dumps(CATEGORIES))
    assert store.open(coco.convert(root, tmp_path / "out")["test"]).meta["classes"][90] == "toothbrush"


def test_an_image_where_nothing_is_annotated(tmp_path):
    root = make(tmp_path / "coco")
    edit(root, lambda table: table["annotations"][0].update(segments_info=[]))
    colours(0 * masks()).save(root / "annotations/panoptic_val2017/000000000003.png")
    item = store.open(coco.convert(root, tmp_path / "out")["test"])[2]
    assert item.info["things"] == {} and (decode(item.segments) == store.VOID).all()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-150])


def add_segment(**fields):
    segment = {"id": 9, "category_id": 1, "iscrowd": 0} | fields
    return lambda root: edit(root, lambda table: table["annotations"][1]["segments_info"].append(segment))


def many_segments(root: Path) -> None:
    segments = [{"id": number, "category_id": 1, "iscrowd": 0} for number in range(1, 255)]
    edit(root, lambda table: table["annotations"][1].update(segments_info=segments))


PHOTO, MASK = "val2017/000000000002.jpg", "annotations/panoptic_val2017/000000000002.png"
WRONG = {
    "coco is missing. Expected in .*; found in": lambda root: shutil.rmtree(root),
    "train2017 is missing. Expected .*annotations": lambda root: shutil.rmtree(root / "train2017"),
    "panoptic_val2017.json is missing": lambda root: (root / TABLE.format("val2017")).unlink(),
    "Unpack panoptic_val2017.zip there": lambda root: shutil.move(
        root / "annotations/panoptic_val2017", root / "annotations/panoptic_val2017.zip"
    ),
    "not panoptic annotations .*Fetch": lambda root: cut(root / TABLE.format("val2017")),
    "not panoptic annotations .*images": lambda root: edit(root, lambda table: table.pop("images")),
    "that lack a field .*annotations.0. segments_info": lambda root: edit(
        root, lambda t: t["annotations"][0].pop("segments_info")
    ),
    "misses files: .*val2017/000000000002.jpg": lambda root: (root / PHOTO).unlink(),
    "misses files: .*000000000002.png": lambda root: (root / MASK).unlink(),
    "annotates images that it does not list: 3": lambda root: edit(root, lambda table: table["images"].pop(0)),
    r"twice: 2": lambda root: edit(root, lambda t: t["annotations"].append(t["annotations"][1])),
    r"unknown categories: 7": add_segment(category_id=7),
    "has segments twice: 5 of image 2": add_segment(id=5),
    "has segments that are no objects: image 2": lambda root: edit(root, lambda t: t["annotations"][1]["segments_info"].append(7)),
    "iscrowd that are neither 0 nor 1: 9 of image 2 'no'": add_segment(iscrowd="no"),
    "isthing is neither 0 nor 1: 90": lambda root: edit(root, lambda t: t["categories"][1].update(isthing="0")),
    "has category ids twice: 1": lambda root: edit(root, lambda t: t["categories"][1].update(id=1)),
    r"has image ids twice: 1 \(": lambda root: edit(root, lambda t: t["images"][0].update(id=1)),
    "lists masks twice: 000000000003.png": lambda root: edit(
        root, lambda t: t["annotations"][1].update(file_name="000000000003.png")
    ),
    "lists files twice: val2017/000000000003.jpg": lambda root: edit(
        root, lambda t: t["images"][1].update(file_name="000000000003.jpg")
    ),
    r"out of range: 16777216": add_segment(id=1 << 24),
    r"out of range: 0": add_segment(id=0),
    r"2.png lacks the segments \[9\]": add_segment(),
    r"2.png .* has \[9\], which are not in": lambda root: colours(masks() + 9 * (masks() == 0)).save(root / MASK),
    r"2.png lacks the segments \[5\]": lambda root: colours(masks() * (masks() != 5)).save(root / MASK),
    "image 2 has 254 segments; .*at most 253": many_segments,
    "2.png 24 x 31, its image 31 x 24": lambda root: colours(masks().T).save(root / MASK),
    "2.png has the mode L; a mask of colours has one of RGB": lambda root: Image.fromarray(masks().astype(np.uint8)).save(root / MASK),
    "2.png is empty.*fetch": lambda root: cut(root / MASK),
    "2.jpg.*image cannot be decoded.*Fetch": lambda root: cut(root / PHOTO),
    "2.jpg is no picture": lambda root: (root / PHOTO).write_text("<html>not found</html>"),
    "2.jpg 31 x 24, its file has 12 x 12": lambda root: Image.new("RGB", (12, 12)).save(root / PHOTO),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path, message):
    root = make(tmp_path / "coco", train=4)
    WRONG[message](root)
    with pytest.raises(coco.ConversionError, match=message) as caught:
        coco.convert(root, tmp_path / "out", validation=0)
    assert str(root) in str(caught.value)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_a_failed_conversion_keeps_the_old_stores(tmp_path):
    root = make(tmp_path / "coco")
    paths = coco.convert(root, tmp_path / "out", validation=0.3)
    before = {path: path.read_bytes() for path in paths.values()}
    for path in (root / "val2017").iterdir():
        cut(path)
    with pytest.raises(coco.ConversionError):
        coco.convert(root, tmp_path / "out", validation=0.3)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": 1}, "validation=1;"),
        ({"validation": -0.1}, "validation=-0.1;"),
        ({"annotations": "stuff"}, "annotations='stuff'; choose one of panoptic, instances"),
        ({"validation": 1 - 1e-9}, r"coco of .*train would be empty \(images: test 1, validation 2, train 0\)"),
        ({"limit": 0}, "limit=0;"),
    ],
)
def test_impossible_options(tmp_path, options, message):
    with pytest.raises(coco.ConversionError, match=message):
        coco.convert(make(tmp_path / "coco", train=2, val=1), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("DIAS_LAB_REAL_DATA" not in os.environ, reason="no real data")
def test_real_photos(tmp_path):
    root = Path(os.environ["DIAS_LAB_REAL_DATA"]) / "coco"
    paths = coco.convert(root, tmp_path)
    counts = {split: store.verify(path) for split, path in paths.items()}
    both = [counts["train"][key] + counts["validation"][key] for key in ("items", "segments", "things")]
    assert both == [100, 1111, 746]
    assert [counts["test"][key] for key in ("items", "segments", "things")] == [100, 1078, 712]
    crowds = {
        split: sum(sum(item.info["crowds"].values()) for item in store.open(path)) for split, path in paths.items()
    }
    assert (crowds["train"] + crowds["validation"], crowds["test"]) == (6, 5)
    assert all(store.open(path).meta["photos_without_masks"] == 28 for path in paths.values())
    table = json.loads((root / TABLE.format("val2017")).read_text())
    areas = {a["image_id"]: sorted(s["area"] for s in a["segments_info"]) for a in table["annotations"]}
    for item in store.open(paths["test"]):
        labels = decode(item.segments)
        assert sorted(np.bincount(labels[labels < store.VOID])[1:].tolist()) == areas[item.info["source"]["id"]]
