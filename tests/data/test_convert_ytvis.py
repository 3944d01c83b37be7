"""YouTube-VIS: polygons, run lengths and nulls, overlaps, one segment a track, the peers' splits, contradictory tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from dias_lab.data import pictures, store
from dias_lab.data.convert import ytvis
from dias_lab.data.convert.common import ConversionError
from dias_lab.trace import OVERLAP

HEIGHT, WIDTH, FRAMES = 20, 30, 4


def square(left: int, top: int = 5, side: int = 8) -> np.ndarray:
    covered = np.zeros((HEIGHT, WIDTH), np.uint8)
    covered[top : top + side, left : left + side] = 1
    return covered


def compressed(covered: np.ndarray) -> dict:
    code = masks.encode(np.asfortranarray(covered))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def listed(covered: np.ndarray) -> dict:
    flat = covered.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}


def polygon(left: int, top: int = 5, side: int = 8) -> list:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def table(videos: int = 4) -> dict:
    """In each video track 12 moves right as run lengths, track 3 is seen at the beginning and lies over it in frame 1."""
    found = {"info": {}, "videos": [], "annotations": [], "categories": [{"id": 7, "name": "ape"}, {"id": 40, "name": "zebra"}]}
    for number in range(1, videos + 1):
        names = [f"v{number}/{5 * frame:05d}.jpg" for frame in range(FRAMES)]
        found["videos"].append({"id": number, "width": WIDTH, "height": HEIGHT, "length": FRAMES, "file_names": names})
        moving = [compressed(square(0)), listed(square(4)), compressed(square(8)), listed(square(12))]
        for track, category, shapes in ((12, 40, moving), (3, 7, [polygon(20), polygon(10), None, None])):
            one = {"id": 100 * number + track, "video_id": number, "category_id": category, "iscrowd": 0, "segmentations": shapes}
            found["annotations"].append(one | {"height": HEIGHT, "width": WIDTH, "bboxes": [None] * FRAMES, "areas": [None] * FRAMES})
    return found


def layout(root: Path, made: dict, place: str = "train/instances.json", photos: str = "train/JPEGImages") -> Path:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(made))
    for name in (name for video in made["videos"] for name in video["file_names"]):
        (root / photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / photos / name)
    return root


def items(path: Path) -> list[store.Record]:
    return list(store.open(path))


def labels(record: store.Record) -> np.ndarray:
    return np.asarray(pictures.decoded(record.segments))


def test_a_track_is_one_segment_and_overlap_is_none(tmp_path):
    path = ytvis.convert(layout(tmp_path / "in", table(1)), tmp_path / "out")["train"]
    found, meta = items(path), store.open(path).meta
    assert meta["kind"] == "video" and [item.info["frame"] for item in found] == [0, 1, 2, 3]
    assert {item.info["clip"] for item in found} == {"1"} and found[2].info["source"]["file"] == "train/JPEGImages/v1/00010.jpg"
    first, second = square(20), square(0)  # track 103 is segment 1, track 112 is segment 2
    assert (labels(found[0]) == first + 2 * second).all()
    both = square(10) & square(4)
    assert (labels(found[1]) == np.where(both, OVERLAP, square(10) + 2 * square(4))).all() and both.any()
    assert (labels(found[3]) == 2 * square(12)).all()
    assert [item.info["classes"] for item in found] == [{1: 7, 2: 40}] * 2 + [{2: 40}] * 2
    assert {int(key): box for key, box in found[3].info["boxes"].items()} == {2: [12, 5, 20, 13]}
    assert store.verify(path)["items"] == FRAMES


def test_a_track_in_no_frame_keeps_its_place(tmp_path):
    made = table(1)
    made["annotations"][1]["segmentations"] = [None, [], None, None]
    found = items(ytvis.convert(layout(tmp_path / "in", made), tmp_path / "out")["train"])
    assert all((labels(item) == 2 * square(4 * at)).all() and item.info["things"] == {2: True} for at, item in enumerate(found))


def test_a_frame_that_exif_turns_is_stored_upright_with_its_boxes(tmp_path):
    root, upside_down = layout(tmp_path / "in", table(1)), Image.Exif()
    upside_down[pictures.ORIENTATION] = 3
    for path in root.rglob("*.jpg"):
        Image.open(path).save(path, exif=upside_down)
    last = items(ytvis.convert(root, tmp_path / "out")["train"])[3]
    assert (labels(last) == 2 * square(12)[::-1, ::-1]).all()
    assert last.info["boxes"] == {2: [WIDTH - 20, HEIGHT - 13, WIDTH - 12, HEIGHT - 5]}


def clips_of(paths: dict) -> dict[str, list[int]]:
    return {split: sorted({int(item.info["clip"]) for item in items(path)}) for split, path in paths.items()}


def test_splits(tmp_path, monkeypatch):
    root = layout(tmp_path / "in", table(6))
    found = clips_of(ytvis.convert(root, tmp_path / "a"))
    assert sorted(sum(found.values(), [])) == [1, 2, 3, 4, 5, 6] and all(found.values())
    monkeypatch.setattr(ytvis, "LAST", 2)
    found = clips_of(ytvis.convert(root, tmp_path / "b", splits="peers", validation=0))
    assert found == {"train": [1, 2, 3, 4], "test": [5, 6]}
    monkeypatch.setattr(ytvis, "LAST", 6)
    with pytest.raises(ConversionError, match="has 6 videos, and the last 6 are for test"):
        ytvis.convert(root, tmp_path / "d", splits="peers")
    layout(root, table(2), "valid.json", "valid/JPEGImages")
    found = clips_of(ytvis.convert(root, tmp_path / "c", splits="lists", validation=0.5))
    assert found["test"] == [1, 2] and len(found["validation"]) == 3


def test_hq_has_tables_of_its_own_and_the_frames_of_2019(tmp_path):
    made = table(4)
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
        part = made | {"videos": [made["videos"][number - 1] for number in numbers],
                       "annotations": [one for one in made["annotations"] if one["video_id"] in numbers]}  # fmt: skip
        layout(tmp_path / "in", part, f"ytvis_hq-{split}.json")
    found = clips_of(ytvis.convert(tmp_path / "in", tmp_path / "out", "hq", "lists"))
    assert found == {"train": [1, 2], "validation": [3], "test": [4]}


def test_all_contradictions_are_listed_at_once(tmp_path):
    made = table(4)
    made["annotations"][0]["segmentations"] = [None]
    made["annotations"][1]["segmentations"][0] = {"size": [HEIGHT, WIDTH], "counts": [3, 4]}
    made["annotations"][2]["category_id"] = 99
    made["annotations"][3]["video_id"] = 77
    made["annotations"][4]["id"] = made["annotations"][5]["id"]
    made["annotations"][6]["segmentations"][1] = [[0, 0, 1e9, 0, 5, 5]]
    del made["annotations"][7]["segmentations"]
    made["videos"].append({"id": 9, "width": WIDTH, "height": HEIGHT, "file_names": []})
    root = layout(tmp_path / "in", made)
    (root / "train/JPEGImages/v2/00005.jpg").unlink()
    Image.new("RGB", (9, 9)).save(root / "train/JPEGImages/v3/00005.jpg")
    with pytest.raises(ConversionError) as caught:
        ytvis.convert(root, tmp_path / "out")
    for message in (
        "tracks of other lengths than their videos: track 112 of video 1: 1 masks, 4 frames", "cannot be drawn", "its runs are of 7 pixels",
        "unknown categories: 99", "annotates videos that it does not list: 77", "annotation ids twice: 303", "far outside the image",
        "has annotations that lack a field or have it of another type: annotations[7] (id 403) segmentations", "videos without frames: 9",
        "misses files: train/v2/00005.jpg", "states other sizes than the files have",
    ):  # fmt: skip
        assert message in str(caught.value), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, message", [
    ("[]", "is not YouTube-VIS annotations"), ('{"videos": []}', "it has no list of annotations or categories"), ("{", "is not YouTube-VIS"),
])  # fmt: skip
def test_other_tables_are_refused(tmp_path, content, message):
    root = layout(tmp_path / "in", table(1))
    (root / "train/instances.json").write_text(content)
    with pytest.raises(ConversionError, match=message):
        ytvis.convert(root, tmp_path / "out")


@pytest.mark.parametrize("option, message", [({"splits": "peer"}, "choose one of shares, peers"), ({"year": "2020"}, "2019, 2021")])
def test_options_that_are_none_are_refused(tmp_path, option, message):
    with pytest.raises(ConversionError, match=message):
        ytvis.convert(layout(tmp_path / "in", table(1)), tmp_path / "out", **option)


def test_what_is_missing_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConversionError, match="train.json is missing. Expected in .*train/instances.json"):
        ytvis.convert(tmp_path / "in", tmp_path / "out")
    (layout(tmp_path / "in", table(1)) / "train/JPEGImages/v1/00010.jpg").write_bytes(b"x")
    with pytest.raises(ConversionError, match="00010.jpg is no picture"):
        ytvis.convert(tmp_path / "in", tmp_path / "out")
