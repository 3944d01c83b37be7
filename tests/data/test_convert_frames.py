"""Folders of frames and DAVIS's layout: numbers, sizes, masks of some frames, splits, and what can be wrong."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import pictures, store
from dias_lab.data.convert import davis, frames
from dias_lab.data.convert.common import ConversionError, parted
from dias_lab.trace import AttentionTrace

HEIGHT, WIDTH = 20, 28


def put(path: Path, array: np.ndarray | None = None, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if array is None else array)
    if palette:
        picture.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 7)])
    picture.save(path)
    return path


def mask(*squares: tuple[int, int], size=(HEIGHT, WIDTH)) -> np.ndarray:
    """Squares of 6 pixels a side: a number, and how far from the left."""
    labels = np.zeros(size, np.uint8)
    for number, left in squares:
        labels[4:10, left : left + 6] = number
    return labels


def clip(folder: Path, numbers=range(5), form: str = "frame{}.png") -> None:
    for number in numbers:
        put(folder / form.format(number))


def items(path: Path) -> list[store.Record]:
    return list(store.open(path))


def labels(record: store.Record) -> np.ndarray:
    return np.asarray(pictures.decoded(record.segments))


def boxes(record: store.Record) -> dict[int, list[int]]:
    return {int(segment): box for segment, box in record.info["boxes"].items()}


def test_frames_are_sorted_by_number_and_clips_by_folder(tmp_path):
    clip(tmp_path / "in/b", (10, 2, 1, 33))
    clip(tmp_path / "in/a/deep", (0,), "x_{}.jpg")  # a clip of one frame
    (tmp_path / "in/.hidden").mkdir()
    put(tmp_path / "in/.hidden/0.png")
    path = frames.convert(tmp_path / "in", tmp_path / "out", validation=0, test=0)["train"]
    told = [(item.info["clip"], item.info["frame"], item.info["source"]["file"]) for item in items(path)]
    assert told == [("a/deep", 0, "a/deep/x_0.jpg"), *(("b", number, f"b/frame{number}.png") for number in (1, 2, 10, 33))]
    assert store.open(path).meta["kind"] == "video" and items(path)[0].segments is None
    assert store.verify(path)["items"] == 5


def test_names_without_rising_numbers_count_places(tmp_path):
    for name in ("left 7.png", "left.png", "right 7.png"):
        put(tmp_path / "in" / name)
    path = frames.convert(tmp_path / "in", tmp_path / "out")["train"]  # images in the root: one clip, for which there is train
    assert [(item.info["frame"], item.info["clip"]) for item in items(path)] == [(0, "in"), (1, "in"), (2, "in")]
    put(tmp_path / "one/photo.png")
    assert items(frames.convert(tmp_path / "one", tmp_path / "alone")["train"])[0].info["frame"] == 0


def test_numbers_may_be_times(tmp_path, capsys):
    clip(tmp_path / "in/a", (1_700_000_000_000_000, 1_700_000_000_033_333, 1_700_000_000_033_334))
    clip(tmp_path / "in/b", (1, 2, 10**30))
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", validation=0, test=0, progress=True)["train"])
    assert found[5].info["frame"] == 10**30 and found[2].info["frame"] == 1_700_000_000_033_334 and "lacks" not in capsys.readouterr().out


@pytest.mark.parametrize("names", [["0.1", "0.15", "0.2", "1.0"], ["1.8", "1.9", "1.10", "1.11"], ["9.05", "9.50", "10.00"]])
def test_decimals_are_times_unless_they_count(tmp_path, names):
    for name in names:
        put(tmp_path / f"in/a/{name}.png")
    found = items(frames.convert(tmp_path / "in", tmp_path / "out")["train"])
    assert [Path(item.info["source"]["file"]).stem for item in found] == names
    assert [item.info["frame"] for item in found] == ([8, 9, 10, 11] if "1.10" in names else list(range(len(names))))


def test_what_a_conversion_wrote_and_links_upwards_are_no_clips(tmp_path):
    clip(tmp_path / "in/ä é")
    (tmp_path / "in/ä é/up").symlink_to(tmp_path / "in")
    for _ in range(2):
        [path] = frames.convert(tmp_path / "in", tmp_path / "in/out").values()
        put(tmp_path / "in/out/contact_sheet.png")
        assert {item.info["clip"] for item in items(path)} == {"ä é"} and len(items(path)) == 5


def test_masks_without_frames_and_folders_between(tmp_path):
    clip(tmp_path / "in", (1,))
    clip(tmp_path / "in/a")
    put(tmp_path / "masks/a/frame0.png", mask((1, 3)))  # masks/ has none of its own, for the clip that is the root
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", 0, 0)["train"])
    assert [item.info["source"]["file"] for item in found if item.segments] == ["a/frame0.png"]
    put(tmp_path / "masks/A/frame0.png", mask((1, 3)))
    with pytest.raises(ConversionError, match="in has no frames for the masks in .*masks/A. Rename or remove"):
        frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", 0, 0)


def test_a_number_is_one_object_in_all_frames(tmp_path):
    clip(tmp_path / "in/a")
    drawn = [mask((9, 0), (7, 10)), mask((7, 12)), mask(), mask((9, 4)), mask((255, 20), (7, 1))]
    for number, labels_of in enumerate(drawn):
        put(tmp_path / f"masks/a/frame{number}.png", labels_of, palette=True)
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks")["train"])
    assert [sorted(item.info["things"]) for item in found] == [[1, 2], [1], [], [2], [1]]
    assert (labels(found[3]) == mask((2, 4))).all() and (labels(found[4]) == mask((255, 20), (1, 1))).all()
    assert boxes(found[0]) == {1: [10, 4, 16, 10], 2: [0, 4, 6, 10]} and boxes(found[2]) == {}


def test_colours_are_numbered_by_clip_too(tmp_path):
    clip(tmp_path / "in/a", range(2))
    for number, colour in enumerate(([200, 0, 0], [0, 0, 9])):
        put(tmp_path / f"masks/a/frame{number}.png", mask((1, 3 * number))[..., None] * np.array(colour, np.uint8))
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks")["train"])
    assert [list(item.info["things"]) for item in found] == [[1], [2]]


def test_masks_for_some_frames_only(tmp_path):
    clip(tmp_path / "in/a")
    clip(tmp_path / "in/b")
    for number in (0, 3):
        put(tmp_path / f"masks/a/frame{number}.png", mask((255, number)))
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", 0, 0)["train"])
    assert [item.segments is not None for item in found] == [True, False, False, True, False] + [False] * 5
    assert found[3].info["things"] == {1: True} and "things" not in found[1].info  # 0 and 255 alone: one object


def test_a_missing_number_is_said_and_the_others_stay(tmp_path, capsys):
    clip(tmp_path / "in/a", (0, 5, 15, 20, 30))
    clip(tmp_path / "in/b", (3,))
    path = frames.convert(tmp_path / "in", tmp_path / "out", validation=0, test=0, progress=True)["train"]
    assert "a lacks the frames 10, 25; the others stay" in capsys.readouterr().out
    assert [item.info["frame"] for item in items(path)] == [0, 5, 15, 20, 30, 3]


def test_frames_of_different_sizes_are_listed_all_at_once(tmp_path):
    for name in ("a", "b", "c"):
        clip(tmp_path / "in" / name)
    for name in ("a", "c"):
        put(tmp_path / f"in/{name}/frame3.png", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(ConversionError) as caught:
        frames.convert(tmp_path / "in", tmp_path / "out")
    for name in ("a", "c"):
        assert f"the frames of {name} differ in size (width x height): 4 of 28 x 20 (frame0.png), 1 of 9 x 8 (frame3.png)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def wrong(tmp_path: Path, change) -> str:
    clip(tmp_path / "in/a")
    clip(tmp_path / "masks/a", form="frame{}.png")
    for number in range(5):
        put(tmp_path / f"masks/a/frame{number}.png", mask((number + 1, 4)))
    change(tmp_path)
    with pytest.raises(ConversionError) as caught:
        frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks")
    assert not list(tmp_path.glob("out/*.lmdb"))
    return str(caught.value)


def cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    path.write_bytes(put(path, noise).read_bytes()[:-700])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda at: cut(at / "in/a/frame2.png"), "a/frame2.png.*the image cannot be decoded"),
        (lambda at: (at / "in/a/frame2.png").write_bytes(b""), "frame2.png is empty"),
        (lambda at: put(at / "masks/a/frame2.png", mask(size=(9, 9))), r"has \(9, 9\) pixels"),
        (lambda at: (at / "masks/a/frame2.png").write_bytes((at / "masks/a/frame2.png").read_bytes()[:-20]), "masks/a/frame2.png"),
        (lambda at: put(at / "masks/a/frame9.png", mask()), "no frame in .* has the names frame9"),
        (lambda at: (at / "masks/a").rename(at / "masks/b"), "has no mask for any clip"),
        (lambda at: put(at / "in/a/frame2.jpg"), "both frame2.jpg and frame2.png"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    assert re.search(message, wrong(tmp_path, change))


def test_masks_may_lie_in_the_root(tmp_path):
    clip(tmp_path / "in/a", range(2))
    put(tmp_path / "in/masks/a/frame1.png", mask((1, 3)))
    found = items(frames.convert(tmp_path / "in", tmp_path / "out", tmp_path / "in/../in/masks")["train"])
    assert [(item.info["clip"], item.segments is None) for item in found] == [("a", True), ("a", False)]


def test_a_folder_without_frames(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    with pytest.raises(ConversionError, match="has no frames .* found in .*: a"):
        frames.convert(tmp_path / "in", tmp_path / "out")


def test_each_split_has_a_clip_of_three_or_more():
    for count in range(1, 30):
        parts = parted("x", [f"clip {number}" for number in range(count)], 0.1, 0.1)
        assert list(parts) == ["test", "validation", "train"][-count:] if count != 2 else list(parts) == ["test", "train"]
        assert sorted(name for names in parts.values() for name in names) == sorted(f"clip {number}" for number in range(count))
    assert list(map(len, parted("x", [str(number) for number in range(50)], 0.2, 0.1).values())) == [5, 10, 35]
    assert parted("x", ["a", "b", "c"], 0, 0) == {"train": ["a", "b", "c"]}
    with pytest.raises(ConversionError, match="test=1.5"):
        parted("x", ["a"], 0.1, 1.5)


# DAVIS


def davis_layout(root: Path, names=("bear", "camel", "dog"), resolution: str = "480p", form=mask((1, 3), (2, 15))) -> Path:
    for name in names:
        for number in range(3):
            put(root / "JPEGImages" / resolution / name / f"{number:05d}.jpg")
            put(root / "Annotations" / resolution / name / f"{number:05d}.png", form, palette=form.max() < 255)
    return root


@pytest.mark.parametrize("resolution", ["480p", ""])
def test_davis_of_2017_has_several_objects_and_lists(tmp_path, resolution, capsys):
    root = davis_layout(tmp_path / "in", ("a", "b", "c", "d", "e"), resolution)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("a\nc\ne\n")
    (root / "ImageSets/2017/val.txt").write_text("b\n")
    paths = davis.convert(root, tmp_path / "out", progress=True)
    found = {split: {item.info["clip"] for item in items(path)} for split, path in paths.items()}
    assert found["test"] == {"b"} and found["train"] | found["validation"] == {"a", "c", "e"} and len(found["validation"]) == 1
    assert items(paths["test"])[0].info["things"] == {1: True, 2: True}
    assert "left out, for they are in no list" in capsys.readouterr().out
    (root / "ImageSets/2017/val.txt").write_text("gone\n")
    with pytest.raises(ConversionError, match="lacks gone, which .*2017 names"):
        davis.convert(root, tmp_path / "other")


def test_davis_of_2016_has_one_object_and_lists_of_frames(tmp_path, capsys):
    root = davis_layout(tmp_path / "in", form=mask((255, 5)))
    (root / "ImageSets/480p").mkdir(parents=True)
    for split, names in (("train", ["bear", "dog"]), ("val", ["camel"])):
        lines = [f"/JPEGImages/480p/{name}/{n:05d}.jpg /Annotations/480p/{name}/{n:05d}.png" for name in names for n in range(3)]
        (root / f"ImageSets/480p/{split}.txt").write_text("\n".join(lines))
    davis.convert(root, tmp_path / "out", progress=True)
    assert "255 is taken as one object" in capsys.readouterr().out
    [first, *_] = items(tmp_path / "out/test.lmdb")
    assert first.info["things"] == {1: True} and boxes(first) == {1: [5, 4, 11, 10]}


def test_davis_without_lists_is_divided_by_sequence(tmp_path):
    root = davis_layout(tmp_path / "in")
    (root / "Annotations/480p/dog/00001.png").unlink()
    paths = davis.convert(root, tmp_path / "out")
    assert {split: len({item.info["clip"] for item in items(path)}) for split, path in paths.items()} == dict.fromkeys(paths, 1)
    assert len(paths) == 3
    bare = [item.info["source"]["id"] for path in paths.values() for item in items(path) if item.segments is None]
    assert bare == ["dog/00001"]
    with pytest.raises(ConversionError, match="JPEGImages is missing"):
        davis.convert(tmp_path, tmp_path / "other")


@pytest.mark.skipif("DIAS_LAB_REAL_DATA" not in os.environ, reason="no real data")
def test_the_six_sequences(tmp_path):
    root = Path(os.environ["DIAS_LAB_REAL_DATA"], "davis")
    if not root.exists():
        pytest.skip("no real data")
    assert main(["convert", "davis", "--root", str(root), "--out", str(tmp_path / "davis")]) == 0
    paths = {split: tmp_path / f"davis/{split}.lmdb" for split in store.SPLITS}
    counts = {split: len({item.info["clip"] for item in items(path)}) for split, path in paths.items()}
    assert counts == {"train": 4, "validation": 1, "test": 1}
    for path in paths.values():
        assert store.verify(path)["segments"] == len(items(path))  # one object, visible in all frames
    assert (tmp_path / "davis/contact_sheet.png").exists()


def test_trace_takes_folders_of_frames_as_clips(tmp_path, capsys):
    clip(tmp_path / "a", (1, 2, 10))
    clip(tmp_path / "b", range(5))
    words = ["--images", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x.npz")]
    assert main(["trace", "--shipped", "--clips", *words]) == 0
    assert "cut to 3 frames, as the shortest of them: a 3, b 5" in capsys.readouterr().out
    trace = AttentionTrace.load(tmp_path / "x.npz")
    assert trace.names == ["a 1", "a 2", "a 10", "b 0", "b 1", "b 2"] and trace.about["frames"] == 3
    assert trace.about["axes"] == "T (B F) N h w"
    assert main(["trace", "--shipped", "--clips", "--frames", "1", *words]) == 0
    assert AttentionTrace.load(tmp_path / "x.npz").names == ["a 1", "b 0"]
    with pytest.raises(ConversionError, match="gone is no video.*No such file"):
        frames.read_clip(tmp_path / "gone", 16)
