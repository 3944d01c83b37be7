"""Your own images: every kind of picture and mask, what can be wrong with them, and conversions that are stopped."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import lmdb_file, store, summary
from dias_lab.data.convert import common, folder
from dias_lab.data.convert.common import ConversionError

HEIGHT, WIDTH = 24, 36
QUARTERS = np.kron([[0, 1], [2, 3]], np.ones((HEIGHT // 2, WIDTH // 2))).astype(np.uint8)  # four areas


def smooth() -> Image.Image:
    """A picture that JPEG hardly changes: red to the right, green downwards."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([across * 6, down * 9, 0 * down + 80], -1).astype(np.uint8))


def put(path: Path, picture: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or smooth()).save(path, **options)
    return path


def decode(blob: bytes, mode: str | None = None) -> np.ndarray:
    picture = Image.open(io.BytesIO(blob))
    return np.asarray(picture.convert(mode) if mode else picture)


def items(path: Path) -> dict[str, store.Record]:
    return {item.info["source"]["id"]: item for item in store.open(path)}


def one(tmp_path: Path, picture: Path, mask: Path | None = None) -> store.Record:
    """The record of a picture that lies in a folder of its own."""
    paths = folder.convert(picture.parent, tmp_path / "out", mask and mask.parent, validation=0, test=0)
    return store.open(paths["train"])[0]


# Splits


def test_a_plain_folder(tmp_path, capsys):
    for number in range(30):
        put(tmp_path / f"in/photo {number}.{('jpg', 'PNG', 'jpeg')[number % 3]}")
    (tmp_path / "in/.hidden.jpg").write_text("no picture")
    (tmp_path / "in/notes.txt").write_text("no picture")
    paths = folder.convert(tmp_path / "in", tmp_path / "out", progress=True)
    assert list(paths) == ["train", "validation", "test"] and "notes.txt" in capsys.readouterr().out
    found = {split: set(items(path)) for split, path in paths.items()}
    assert sorted(set.union(*found.values())) == sorted(f"photo {n}" for n in range(30)) and all(found.values())
    assert sum(map(len, found.values())) == 30
    meta = store.open(paths["train"]).meta
    assert meta["files_left_out"] == ["notes.txt"] and meta["dataset"] == "folder"
    assert items(paths["test"]).popitem()[1].segments is None
    more = folder.convert(tmp_path / "in", tmp_path / "b", validation=0.4)
    assert set(items(more["test"])) == found["test"] and set(items(more["validation"])) > found["validation"]
    put(tmp_path / "in/another.jpg")  # moves no other image
    again = folder.convert(tmp_path / "in", tmp_path / "c")
    assert all(found[split] <= set(items(path)) for split, path in again.items())


def test_folders_for_the_splits(tmp_path):
    for name in ("train/a.jpg", "train/b.jpg", "val/a.jpg", "test/c.png"):
        put(tmp_path / "in" / name)
        put((tmp_path / "masks" / name).with_suffix(".png"), Image.fromarray(QUARTERS))
    paths = folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks")
    assert [sorted(items(path)) for path in paths.values()] == [["a", "b"], ["a"], ["c"]]
    assert items(paths["validation"])["a"].info["source"]["file"] == "val/a.jpg"
    (tmp_path / "in/val/a.jpg").rename(tmp_path / "in/val/d.jpg")
    for file in ("train/a.png", "train/b.png", "test/c.png"):
        (tmp_path / "masks" / file).rename(tmp_path / "masks" / Path(file).name)
    (tmp_path / "masks/val/a.png").rename(tmp_path / "masks/d.png")
    for name in ("train", "val", "test"):
        (tmp_path / "masks" / name).rmdir()
    paths = folder.convert(tmp_path / "in", tmp_path / "b", tmp_path / "masks")  # one folder of masks for all
    assert all(item.segments for path in paths.values() for item in store.open(path))
    with pytest.raises(ConversionError, match="validation=0.1, but .*val is there"):
        folder.convert(tmp_path / "in", tmp_path / "c", validation=0.1)
    for path in (tmp_path / "in/val", tmp_path / "in/test"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    paths = folder.convert(tmp_path / "in", tmp_path / "d")
    assert [len(items(path)) for path in paths.values()] == [1, 1] and "test" not in paths


def test_stores_do_not_lie_among_the_images(tmp_path):
    """A contact sheet would be an image of the next conversion."""
    put(tmp_path / "in/a.png")
    with pytest.raises(ConversionError, match="in holds the images, and would hold the contact sheet.*Choose another folder"):
        folder.convert(tmp_path / "in", tmp_path / "in/../in")


def test_one_image_of_each_split_is_enough_and_one_less_is_not(tmp_path):
    for number in range(3):
        put(tmp_path / f"in/{number}.png")
    assert [len(items(path)) for path in folder.convert(tmp_path / "in", tmp_path / "out").values()] == [1, 1, 1]
    (tmp_path / "in/1.png").unlink()
    with pytest.raises(ConversionError, match=r"train would be empty \(images: test 1, validation 1, train 0\)"):
        folder.convert(tmp_path / "in", tmp_path / "b")


# Masks


def palette_mask(values) -> Image.Image:
    picture = Image.fromarray(values)
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    return picture


LABELS = np.array([0, 7, 3, 255], np.uint8)[QUARTERS]
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [1, 0, 1], [255, 255, 255]], np.uint8)
EXPECTED = {  # of the four quarters
    "palette": (palette_mask(LABELS), [0, 2, 1, 255]),
    "grey": (Image.fromarray(LABELS), [0, 2, 1, 255]),
    "black and white": (Image.fromarray(QUARTERS > 1), [0, 0, 1, 1]),
    "16-bit": (Image.fromarray(np.array([0, 60_000, 255, 256], np.uint16)[QUARTERS]), [0, 3, 1, 2]),
    "colours": (Image.fromarray(COLOURS[QUARTERS]), [0, 1, 2, 3]),
    "no background": (Image.fromarray(COLOURS[np.maximum(QUARTERS, 1)]), [1, 1, 2, 3]),
    "transparent": (
        Image.fromarray(np.dstack([COLOURS[QUARTERS], np.where(QUARTERS == 3, 0, 255)]).astype(np.uint8)),
        [0, 1, 2, 0],
    ),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_kinds_of_masks(tmp_path, kind):
    picture, expected = EXPECTED[kind]
    item = one(tmp_path, put(tmp_path / "in/a.jpg"), put(tmp_path / "masks/a.png", picture))
    assert (decode(item.segments) == np.array(expected)[QUARTERS]).all()
    assert item.info["things"] == {number: True for number in expected if number not in (0, 255)}


def masks_of(tmp_path: Path, **values) -> Path:
    """An image and a mask each, of these numbers in the four quarters."""
    for name, numbers in values.items():
        put(tmp_path / f"in/{name}.png")
        put(tmp_path / f"masks/{name}.png", Image.fromarray(np.array(numbers, np.uint8)[QUARTERS]))
    return tmp_path / "masks"


def converted(tmp_path: Path) -> dict[str, store.Record]:
    words = ["--masks", str(tmp_path / "masks"), "--validation", "0", "--test", "0"]
    assert main(["convert", "folder", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *words]) == 0
    return items(tmp_path / "out/train.lmdb")


BINARY = {
    "grey": lambda path: None,
    "palette": lambda path: put(path, palette_mask(np.asarray(Image.open(path)))),
    "TIFF": lambda path: (put(path.with_suffix(".tif"), Image.open(path)), path.unlink()),
}


@pytest.mark.parametrize("kind", BINARY)
def test_masks_of_0_and_255_are_one_object(tmp_path, capsys, kind):
    """As of DAVIS 2016, ISIC and DUTS; some of the masks may be empty."""
    for path in list(masks_of(tmp_path, a=[0, 255, 0, 255], b=[255, 0, 0, 0], c=[0] * 4).iterdir()):
        BINARY[kind](path)
    found = converted(tmp_path)
    assert [found[name].info["things"] for name in "abc"] == [{1: True}, {1: True}, {}]
    assert (decode(found["a"].segments) == np.array([0, 1, 0, 1])[QUARTERS]).all()
    printed = capsys.readouterr().out
    assert "no numbers but 0 and 255: 255 is taken as one object a mask, not as void" in printed
    assert "attention" not in printed and store.open(tmp_path / "out/train.lmdb").meta["number_255"] == "object"


def test_255_is_void_where_a_mask_has_other_numbers_and_is_counted_by_name(tmp_path, capsys):
    masks_of(tmp_path, a=[0, 255, 0, 255], b=[1, 0, 2, 255], c=[0, 1, 0, 1])
    found = converted(tmp_path)
    assert [found[name].info["things"] for name in "abc"] == [{}, {1: True, 2: True}, {1: True}]
    printed = capsys.readouterr().out
    assert "attention: the number 255 is void in 2 masks of" in printed and "a.png, b.png" in printed
    assert "train: of 3 images with masks 2 have void" in printed


@pytest.mark.parametrize("numbers, share", [([0, 0, 0, 0], "void 0%"), ([0, 1, 255, 255], None)])
def test_a_store_without_an_object_says_so(tmp_path, capsys, numbers, share):
    masks_of(tmp_path, a=numbers)
    converted(tmp_path)
    said = "attention: train has no object in any of its 1 images with masks"
    printed = capsys.readouterr().out
    assert (said in printed and share in printed) if share else said not in printed


def test_a_store_of_void_alone_says_so(tmp_path):
    """By other ways than a folder of masks."""
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    records = [store.Record(store.png(smooth()), labels, {"source": "x", "things": {}})]
    path = store.write(tmp_path / "train.lmdb", records, {"dataset": "toy", "split": "train"})
    [doubt] = summary.doubts([summary.summarise(path)])
    assert "train has no object" in doubt and "void 100%" in doubt


def test_smoothed_masks_are_suspected(tmp_path, capsys):
    picture = Image.fromarray((QUARTERS > 1).astype(np.uint8) * 255).rotate(30, Image.Resampling.BICUBIC)
    put(tmp_path / "in/a.png")
    put(tmp_path / "masks/a.png", picture)
    converted(tmp_path)
    assert "have fewer than 10 pixels: were the masks resized with smoothing" in capsys.readouterr().out


def test_negative_numbers_are_refused(tmp_path):
    put(tmp_path / "in/a.png")
    put(tmp_path / "masks/a.tif", Image.fromarray(QUARTERS.astype(np.int32) - 1))
    with pytest.raises(ConversionError, match="a.tif has the number -1"):
        folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", validation=0, test=0)


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_from_a_mac_and_from_elsewhere(tmp_path, forms):
    for name in ("Tür", "señal 2", "Å", "plain"):
        photo, mask = (unicodedata.normalize(form, name) for form in forms)
        put(tmp_path / f"in/{photo}.png")
        put(tmp_path / f"masks/{mask}.png", Image.fromarray(QUARTERS))
    found = items(folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", validation=0, test=0)["train"])
    assert sorted(found) == sorted(["Tür", "señal 2", "Å", "plain"]) and all(item.segments for item in found.values())
    put(tmp_path / f"in/{unicodedata.normalize('NFC' if forms[0] == 'NFD' else 'NFD', 'Tür')}.png")
    with pytest.raises(ConversionError, match="has both"):
        folder.convert(tmp_path / "in", tmp_path / "b", validation=0, test=0)


def test_all_pairs_that_do_not_fit_at_once(tmp_path):
    masks_of(tmp_path, **{name: [0, 1, 2, 3] for name in "abcde"})
    for name in "bd":
        put(tmp_path / f"masks/{name}.png", Image.new("L", (9, 9)))
    (tmp_path / "in/e.png").write_text("no picture")
    with pytest.raises(ConversionError, match="(?s)3 problems:.*b.png has .9, 9..*d.png has .9, 9..*e.png is no picture"):
        folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", validation=0, test=0)
    assert not (tmp_path / "out").exists()


def test_253_segments_and_no_more(tmp_path):
    picture = put(tmp_path / "in/a.png", Image.new("RGB", (254, 4)))
    values = np.repeat(np.arange(254, dtype=np.uint16)[None] * 200, 4, 0)
    item = one(tmp_path, picture, put(tmp_path / "masks/a.png", Image.fromarray(values)))
    assert decode(item.segments)[0].tolist() == list(range(254))
    put(tmp_path / "masks/a.png", Image.fromarray(values + 1))
    with pytest.raises(ConversionError, match="a.png has 254 segments; .*at most 253.*smoothed edges"):
        one(tmp_path, picture, tmp_path / "masks/a.png")


def test_images_without_mask(tmp_path, capsys):
    for name in ("a", "b"):
        put(tmp_path / f"in/{name}.jpg")
    put(tmp_path / "masks/b.png", Image.fromarray(QUARTERS))
    words = ["--masks", str(tmp_path / "masks"), "--validation", "0", "--test", "0"]
    assert main(["convert", "folder", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *words]) == 0
    found = items(tmp_path / "out/train.lmdb")
    assert found["a"].segments is None and found["b"].segments is not None
    assert store.open(tmp_path / "out/train.lmdb").meta["images_without_masks"] == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train ")]
    assert line.split()[1:5] == ["2", "1", "3", "3"] and (tmp_path / "out/contact_sheet.png").exists()


# Pictures


@pytest.mark.parametrize("name", ["a.bmp", "a.webp", "a.tif", "a.TIFF", "a.gif"])
def test_other_formats_become_png(tmp_path, name):
    picture = smooth().quantize(64) if name.endswith("gif") else smooth()
    path = put(tmp_path / "in" / name, picture, **({"lossless": True} if name.endswith("webp") else {}))
    item = one(tmp_path, path)
    assert item.image.startswith(b"\x89PNG") and (decode(item.image) == np.asarray(picture.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_keep_their_bytes_and_train_as_rgb(tmp_path, mode):
    from dias_lab.data.dataset import read

    path = put(tmp_path / "in/a.jpg", smooth().convert(mode), quality=95)
    item = one(tmp_path, path)
    assert item.image == path.read_bytes()
    trained = read([item], 0)[0].permute(1, 2, 0).numpy().astype(int)
    shown = summary.samples(tmp_path / "out/train.lmdb", 1)[0].image.astype(int)
    true = np.asarray(smooth().convert("L").convert("RGB") if mode == "L" else smooth(), int)
    assert (trained == shown).all() and abs(trained - true).mean() < 4


def exif(orientation: int) -> Image.Exif:
    fields = Image.Exif()
    fields[0x0112] = orientation
    return fields


SIDES = {  # the EXIF standard: which visual sides the stored first row and first column are
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_exif_turns_the_pixels(tmp_path, orientation, ending):
    """A viewer shows `smooth()` for each of the eight files."""
    row, column = SIDES[orientation]
    stored = np.asarray(smooth())
    stored = stored if row in ("top", "bottom") else stored.transpose(1, 0, 2)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = Image.fromarray(np.ascontiguousarray(stored[:, ::-1] if column in ("bottom", "right") else stored))
    path = put(
        tmp_path / f"in/a.{ending}", stored, exif=exif(orientation), **({"quality": 98} if ending == "jpg" else {})
    )
    item = one(tmp_path, path, put(tmp_path / "masks/a.png", Image.fromarray(QUARTERS)))
    assert (item.info["width"], item.info["height"]) == (WIDTH, HEIGHT)
    assert abs(decode(item.image).astype(int) - np.asarray(smooth(), int)).max() <= (12 if ending == "jpg" else 0)
    assert (decode(item.segments) == QUARTERS).all()
    assert (item.image == path.read_bytes()) == (orientation == 1)


def test_transparency_16_bits_and_grey_become_rgb(tmp_path):
    veil = smooth().convert("RGBA")
    veil.putalpha(Image.fromarray(np.where(QUARTERS == 0, 0, 255).astype(np.uint8)))
    expected = np.where((QUARTERS == 0)[..., None], 255, np.asarray(smooth()))
    assert (decode(one(tmp_path, put(tmp_path / "in/a.png", veil)).image) == expected).all()
    deep = Image.fromarray((np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 70).astype(np.uint16))
    image = decode(one(tmp_path, put(tmp_path / "in/a.png", deep)).image)
    assert (image == (np.asarray(deep) >> 8)[..., None]).all()


def test_two_pictures_in_a_jpeg_of_a_camera(tmp_path):
    path = put(tmp_path / "in/a.jpg", smooth(), format="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert one(tmp_path, path).image == path.read_bytes()


# What is wrong


def frames(path: Path, **options) -> None:
    put(path, smooth(), save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], **options)


def cut(path: Path, length: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-length])


def exchange(root: Path, old: str, new: str) -> Path:
    (root / old).unlink()
    return root / new


WRONG = {
    "b.jpg is empty": lambda root: (root / "in/b.jpg").write_bytes(b""),
    "b.jpg.* cannot be decoded .*truncated": lambda root: cut(root / "in/b.jpg"),
    "b.jpg is no picture, or its beginning is damaged": lambda root: (root / "in/b.jpg").write_text("<html>not found</html>"),
    "b.jpg is ICO; it must be one of JPEG": lambda root: put(root / "in/b.jpg", format="ICO"),
    "masks/b.png is empty": lambda root: (root / "masks/b.png").write_bytes(b""),
    "masks/b.png (cannot be decoded|is no picture)": lambda root: cut(root / "masks/b.png", 50),
    "masks/b.png is JPEG; .*changes the numbers": lambda root: put(root / "masks/b.png", format="JPEG"),
    "masks/b.png has the mode LA": lambda root: put(root / "masks/b.png", smooth().convert("LA")),
    r"masks/b.png has \(12, 12\) pixels \(width, height\), its image .*b.jpg has \(36, 24\)": lambda root: put(
        root / "masks/b.png", Image.new("L", (12, 12))
    ),
    r"b.png has \(24, 36\) .*has \(36, 24\). It fits the picture before EXIF": lambda root: (
        put(root / "in/b.jpg", smooth().transpose(Image.Transpose.ROTATE_90), exif=exif(6)),
        put(root / "masks/b.png", Image.fromarray(QUARTERS.T.copy())),
    ),
    "has both b.jpg and b.png": lambda root: put(root / "in/b.png"),
    "has both b.png and b.tif": lambda root: put(root / "masks/b.tif"),
    "no image has the name of c_mask.png; images without mask: none": lambda root: put(root / "masks/c_mask.png"),
    "no image has the name of b_mask.png; images without mask: b.jpg": lambda root: (root / "masks/b.png").rename(
        root / "masks/b_mask.png"
    ),
    "b.gif has 2 frames": lambda root: frames(exchange(root, "in/b.jpg", "in/b.gif")),
    "b.webp has 2 frames": lambda root: frames(exchange(root, "in/b.jpg", "in/b.webp")),
    "b.png has 2 frames": lambda root: frames(exchange(root, "in/b.jpg", "in/b.png")),
    "b.tif has 2 frames or pages": lambda root: frames(exchange(root, "in/b.jpg", "in/b.tif")),
    "b.tif has more than 16 bits": lambda root: put(
        exchange(root, "in/b.jpg", "in/b.tif"), Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32))
    ),
    "in holds no images .*found: nothing": lambda root: [path.unlink() for path in (root / "in").iterdir()],
    "masks holds no masks .*found: a.npy": lambda root: (
        [path.unlink() for path in (root / "masks").iterdir()], (root / "masks/a.npy").touch(),
    ),
    "masks cannot be listed .*No such file": lambda root: (root / "masks").rename(root / "elsewhere"),
    "in cannot be listed .*Not a directory": lambda root: ((root / "in").rename(root / "x"), (root / "in").touch()),
    "has val, but no train": lambda root: put(root / "in/val/a.png"),
    "has both val and validation": lambda root: [put(root / f"in/{name}/a.png") for name in ("train", "val", "validation")],
    "masks has both val and validation": lambda root: [
        put(root / name / "a.png") for name in ("in/train", "in/val", "masks/train", "masks/val", "masks/validation")
    ],
    "a are in several splits, .*ambiguous": lambda root: [put(root / f"in/{name}/a.png") for name in ("train", "val")],
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said(tmp_path, message):
    for name in "abcd":
        put(tmp_path / f"in/{name}.jpg")
        put(tmp_path / f"masks/{name}.png", Image.fromarray(QUARTERS))
    WRONG[message](tmp_path)
    with pytest.raises(ConversionError, match=message):
        folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks")
    assert not list(tmp_path.glob("out/train.lmdb")) and not list(tmp_path.glob("out/.*"))


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, capsys):
    put(tmp_path / "in/a.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["convert", "folder", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert (
        "cannot be listed (Permission denied). Name a folder that is there and that you may read"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": 1}, "validation=1;"),
        ({"test": -0.5}, "test=-0.5;"),
        ({"masks": "in"}, "cannot hold both images and masks"),
    ],
)
def test_impossible_options(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in/a.png")
    with pytest.raises(ConversionError, match=message):
        folder.convert("in", "out", **options)


# What is there already, and conversions that are stopped


def test_stores_that_do_not_fit_are_not_mixed(tmp_path):
    for number in range(6):
        put(tmp_path / f"in/{number}.png")
    paths = folder.convert(tmp_path / "in", tmp_path / "out")
    before = {path: list(store.open(path)) for path in paths.values()}
    with pytest.raises(ConversionError, match="validation.lmdb is there, .*makes no validation split.*Remove it"):
        folder.convert(tmp_path / "in", tmp_path / "out", validation=0)
    meta = {"dataset": "other", "split": "test"}
    store.write(tmp_path / "out/test.lmdb", [], meta)
    with pytest.raises(ConversionError, match="test.lmdb holds the data set other, not folder. Choose another"):
        folder.convert(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/test.lmdb").write_text("damaged")
    folder.convert(tmp_path / "in", tmp_path / "out")  # the cure
    assert {path: list(store.open(path)) for path in paths.values()} == before


def test_doubts_about_a_folder_of_stores(tmp_path):
    for number in range(4):
        put(tmp_path / f"in/{number}.png")
    folder.convert(tmp_path / "in", tmp_path / "out")
    summaries = [summary.summarise(path) for path in summary.stores_in(tmp_path / "out")]
    assert [one.split for one in summaries] == ["train", "validation", "test"] and summary.doubts(summaries) == []
    shutil.copytree(tmp_path / "out", tmp_path / "mixed")
    folder.convert(tmp_path / "in", tmp_path / "c")
    shutil.copy(tmp_path / "c/train.lmdb", tmp_path / "mixed/train.lmdb")  # the same images: no other doubt
    for split, others in {"train": "validation and test", "test": "train"}.items():
        with pytest.raises(store.StoreError, match=f"{split}.lmdb and {others} beside it come from different conversions"):
            store.verify(tmp_path / f"mixed/{split}.lmdb")
    other = folder.convert(tmp_path / "in", tmp_path / "b", validation=0, test=0)["train"]
    found = summary.doubts([summary.summarise(other), *summaries[1:]])
    assert "1 images are in both train and validation" in found[0] and "different commands" in found[-1]
    assert "- " in summary.table(summaries)  # no masks: no shares


def test_a_killed_conversion_starts_again_cleanly(tmp_path):
    for number in range(40):
        put(tmp_path / f"in/{number}.png")
    script = (
        "import sys, time\nfrom dias_lab.data.convert import folder\nfrom dias_lab.data import pictures\nreal = pictures.photo\ndef slow(path):\n"
        "    time.sleep(0.2)\n    return real(path)\n"
        "pictures.photo = slow\nfolder.convert(sys.argv[1] + '/in', sys.argv[1] + '/out')"
    )
    places = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": places})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.train.lmdb.partial-*")):  # test and validation are done
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / f"out/.validation.lmdb.partial-{process.pid}").touch()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.lmdb")) == ["test.lmdb", "validation.lmdb"]
    paths = folder.convert(tmp_path / "in", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["test.lmdb", "train.lmdb", "validation.lmdb"]
    assert sum(store.verify(path)["items"] for path in paths.values()) == 40


@pytest.mark.parametrize("command", ["verify", "open", "train", "evaluate"])
def test_splits_of_two_conversions_are_noticed(tmp_path, capsys, monkeypatch, command):
    """A second conversion, of other shares, was killed when its test split was written: images are in two splits now."""
    for number in range(20):
        put(tmp_path / f"in/{number}.png")
    paths = folder.convert(tmp_path / "in", tmp_path / "out", validation=0.2, test=0.2)
    real = store.write

    def killed(path, records, meta):
        if path.stem != "test":
            raise KeyboardInterrupt
        return real(path, records, meta)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write", killed)
        folder.convert(tmp_path / "in", tmp_path / "out", validation=0.2, test=0.6)
    marks = {split: store.Store(path).meta["conversion"] for split, path in paths.items()}
    assert marks["train"] == marks["validation"] != marks["test"]
    said = "come from different conversions.*an image may be in both. Convert the data again"
    if command == "verify":
        assert main(["verify", str(tmp_path / "out")]) == 1 and re.search(said, capsys.readouterr().err)
        assert main(["verify", str(paths["train"])]) == 1 and re.search(said, capsys.readouterr().err)
    elif command == "train":
        from dias_lab.analysis.discovery import open_stores
        from dias_lab.config import Config

        with pytest.raises(store.StoreError, match=said):
            open_stores(Config.preset("scenes", data=str(tmp_path / "out")))
    elif command == "evaluate":
        words = ["--run-dir", str(tmp_path), "--data", str(tmp_path / "out")]
        assert main(["evaluate", *words]) == 1 and re.search(said, capsys.readouterr().err)
    else:
        for path in paths.values():
            with pytest.raises(store.StoreError, match=said):
                store.open(path)
    folder.convert(tmp_path / "in", tmp_path / "out", validation=0.2, test=0.6)  # the cure
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_splits_without_a_mark_and_with_one(tmp_path, monkeypatch):
    """Stores of older versions had none; beside new ones they are of another conversion. What a script wrote has none."""
    for number in range(6):
        put(tmp_path / f"in/{number}.png")
    out, record = tmp_path / "out", store.Record(store.png(smooth()), None, {"source": "x"})
    out.mkdir()

    def write(split: str) -> Path:
        return store.write(out / f"{split}.lmdb", [record], {"dataset": "folder", "split": split})

    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA", 1)
        train, extra = write("train"), write("extra")
    write("validation")
    (out / "test.lmdb").write_text("damaged")  # says so itself
    assert len(store.open(train)) == store.verify(train)["items"] == 1
    shutil.copy(folder.convert(tmp_path / "in", tmp_path / "new")["test"], out / "test.lmdb")
    with pytest.raises(store.StoreError, match="their marks: .'train': 'of an older version', 'test': '[0-9a-f]{16}'"):
        store.open(train)
    assert len(store.open(extra)) == len(store.open(out / "validation.lmdb")) == len(store.open(write("train"))) == 1


# What the converters share


@pytest.mark.parametrize("threads", [1, 3])
def test_in_order_with_bounded_memory(threads):
    taken = []

    def numbers():
        for number in range(50):
            taken.append(number)
            yield number

    def slow_for_even(number):
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    for place, square in enumerate(common.in_order(slow_for_even, numbers(), threads)):
        assert square == place * place and len(taken) <= place + 2 * threads + 1
    with pytest.raises(ZeroDivisionError):
        list(common.in_order(lambda number: 1 // (number - 7), range(50), threads))


def test_ranked_and_numbered():
    values = np.random.default_rng(0).integers(0, 6, (17, 23)) * 1000
    distinct, places = common.ranked(values)
    expected = np.unique(values, return_inverse=True)
    assert distinct == expected[0].tolist() and (places == expected[1].reshape(values.shape)).all()
    assert (common.numbered(values, Path("x")) == values // 1000).all()
    assert (common.numbered(values + 5, Path("x")) == values // 1000 + 1).all()


def test_what_lmdb_left_is_removed_for_every_split(tmp_path):
    put(tmp_path / "in/a.png")
    (tmp_path / "out").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"out/.validation.lmdb.partial-{dead.pid}").touch()
    one(tmp_path, tmp_path / "in/a.png")
    assert os.listdir(tmp_path / "out") == ["train.lmdb"] and lmdb_file.count(tmp_path / "out/train.lmdb") == 3
