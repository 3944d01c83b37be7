"""VOC: a tiny development kit in the true layout, what can be wrong with it, and the real photos if there are any."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import store
from dias_lab.data.convert import voc
from dias_lab.data.convert.common import ConversionError

HEIGHT, WIDTH = 20, 27


def colormap() -> np.ndarray:
    """The kit's palette by its own definition, bit by bit; independent of the package's."""
    colours = []
    for number in range(256):
        red = green = blue = 0
        for level in range(8):
            red |= (number >> 0 & 1) << 7 - level
            green |= (number >> 1 & 1) << 7 - level
            blue |= (number >> 2 & 1) << 7 - level
            number >>= 3
        colours.append((red, green, blue))
    return np.array(colours, np.uint8)


def objects() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:9, 2:10], labels[12:18, 5:25], labels[2:5, 15:20] = 1, 2, 3
    labels[1, 2:10] = labels[11, 5:25] = 255
    return labels


def classes() -> np.ndarray:
    return np.array([0, 15, 8, 20] + [0] * 251 + [255], np.uint8)[objects()]


def save(labels: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(labels)
    picture.putpalette(colormap().tobytes())
    picture.save(path)


def make(kit: Path, year: int, train: list[str], val: list[str]) -> Path:
    folder = kit / f"VOC{year}"
    for name in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate([*train, *val, "unlabelled"]):
        pixels = np.random.default_rng([year, number]).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        if name != "unlabelled":
            save(objects(), folder / "SegmentationObject" / f"{name}.png")
            save(classes(), folder / "SegmentationClass" / f"{name}.png")
    for name, names in {"train": train, "val": val}.items():
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{one}\n" for one in names))
    return folder


TRAIN = [f"2008_{number:06d}" for number in range(10)]


@pytest.fixture
def kit(tmp_path) -> Path:
    kit = tmp_path / "VOCdevkit"
    make(kit, 2012, [*TRAIN, "2007_000032"], ["2007_000063", "2009_000001"])
    make(kit, 2007, ["000032"], ["000063", "000111"])
    return kit


def names(path: Path) -> list[str]:
    return [item.info["source"]["id"] for item in store.open(path)]


def decode(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


def test_palette():
    assert (voc.palette() == colormap()).all() and voc.palette()[255].tolist() == [224, 224, 192]


def test_the_splits_of_dias(kit, tmp_path):
    paths = voc.convert(kit.parent, tmp_path / "out", validation=0.3)
    assert list(paths) == ["train", "validation", "test"]
    assert names(paths["test"]) == ["000032", "000063", "000111"]
    train, validation = names(paths["train"]), names(paths["validation"])
    assert sorted(train + validation) == sorted([*TRAIN, "2007_000032", "2007_000063", "2009_000001"]) and validation
    leaked = {"2007_000032", "2007_000063"}
    assert leaked <= set(train) and store.open(paths["train"]).meta["test_images_in_it"] == sorted(leaked)
    assert store.open(paths["validation"]).meta["test_images_in_it"] == []
    item = store.open(paths["test"])[1]
    assert item.image == (kit / "VOC2007/JPEGImages/000063.jpg").read_bytes()
    assert (decode(item.segments) == objects()).all()
    assert item.info["things"] == {1: True, 2: True, 3: True} and item.info["classes"] == {1: 15, 2: 8, 3: 20}
    assert item.info["source"] == {"id": "000063", "file": "VOC2007/JPEGImages/000063.jpg"}
    meta = store.open(paths["test"]).meta
    assert (meta["classes"][1], meta["classes"][20], len(meta["classes"])) == ("aeroplane", "tvmonitor", 20)
    assert (meta["dataset"], meta["splits"], meta["split"]) == ("voc", "dias", "test")
    for path in paths.values():
        store.verify(path)


def test_without_the_test_images(kit, tmp_path):
    paths = voc.convert(kit, tmp_path / "out", validation=0, drop_test_images=True)
    assert names(paths["train"]) == [*TRAIN, "2009_000001"] and list(paths) == ["train", "test"]
    assert "--drop-test-images" in store.open(paths["train"]).meta["command"]


def test_the_lists_of_one_year(kit, tmp_path):
    paths = voc.convert(kit, tmp_path / "a", splits="lists", validation=0)
    assert names(paths["train"]) == ["2007_000032", *TRAIN] and names(paths["test"]) == ["2007_000063", "2009_000001"]
    paths = voc.convert(kit, tmp_path / "b", splits="lists", year=2007, validation=0)
    assert (names(paths["train"]), names(paths["test"])) == (["000032"], ["000063", "000111"])
    shutil.rmtree(kit / "VOC2007")
    for number, root in enumerate((kit, kit.parent, kit / "VOC2012")):
        paths = voc.convert(root, tmp_path / f"c{number}")
        assert len(names(paths["validation"])) >= 1 and names(paths["test"]) == ["2007_000063", "2009_000001"]


def test_trainaug_keeps_photos_that_have_no_instance_masks(kit, tmp_path):
    lines = ["/JPEGImages/unlabelled.jpg /SegmentationClassAug/unlabelled.png", *TRAIN[:4]]
    (tmp_path / "trainaug.txt").write_text("\n".join(lines))
    paths = voc.convert(kit, tmp_path / "out", trainaug=tmp_path / "trainaug.txt", validation=0.01)
    train = store.open(paths["train"])
    assert len(train) == 4 and train.meta["images_without_masks"] == 1 and train.meta["splits"] == "trainaug"
    assert [item.segments is None for item in train] == [name == "unlabelled" for name in names(paths["train"])]
    assert names(paths["validation"])[0] in TRAIN  # one that has masks
    (tmp_path / "trainaug.txt").write_text("\n".join([*lines, "2009_000001"]))
    with pytest.raises(ConversionError, match="trainaug.txt: 2009_000001 are in val.txt, too"):
        voc.convert(kit, tmp_path / "out", trainaug=tmp_path / "trainaug.txt")


def test_the_background_is_known_when_a_crop_shows_none(kit, tmp_path):
    """The reference gives the crop's first number to the background, which then drops an object."""
    from dias_lab.data.dataset import read

    segments = read(store.open(voc.convert(kit, tmp_path / "out")["test"]), 0)[1]
    assert segments[13:17, 6:24].unique().tolist() == [2]
    assert segments.unique().tolist() == [0, 1, 2, 3, 255]


@pytest.mark.parametrize("form", ["RGB", "RGBA", "other palette", "short palette"])
def test_colours_are_mapped_back_whatever_tool_saved_them(kit, tmp_path, form):
    path = kit / "VOC2007/SegmentationObject/000032.png"
    picture = Image.open(path)
    if form == "other palette":  # as an optimiser leaves it: fewer entries in another order
        order = [255, 3, 0, 1, 2]
        numbers = np.zeros(256, np.uint8)
        numbers[order] = range(5)
        picture = Image.fromarray(numbers[objects()])
        picture.putpalette(colormap()[order].tobytes())
    elif form == "short palette":
        labels = np.where(objects() == 255, 0, objects())
        picture = Image.fromarray(labels)
        picture.putpalette(colormap()[:4].tobytes())
    else:
        picture = picture.convert(form)
    picture.save(path)
    paths = voc.convert(kit, tmp_path / "out", splits="lists", year=2007, validation=0)
    expected = np.where(objects() == 255, 0, objects()) if form == "short palette" else objects()
    assert (decode(store.open(paths["train"])[0].segments) == expected).all()


OBJECT, CLASS, PHOTO = (f"{part}/000032" for part in ("SegmentationObject", "SegmentationClass", "JPEGImages"))
LIST = "ImageSets/Segmentation/train.txt"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def recoloured(path: Path) -> None:
    picture = Image.open(path)
    picture.putpalette(np.random.default_rng(0).permutation(colormap()).tobytes()[:759] + bytes((1, 2, 3)) * 3)
    Image.fromarray(np.asarray(picture.convert("RGB")) // 3 * 2).save(path)


def with_number(number: int):
    labels = objects()
    labels[0, 0] = number
    return labels


WRONG = {
    "holds no VOC masks. Expected in .*VOCdevkit": lambda f: shutil.rmtree(f / "SegmentationObject"),
    "JPEGImages is missing": lambda f: shutil.rmtree(f / "JPEGImages"),
    "JPEGImages/000032.jpg, which train.txt names, cannot be read": lambda f: (f / f"{PHOTO}.jpg").unlink(),
    "train.txt lists 000032, which SegmentationObject lacks": lambda f: (f / f"{OBJECT}.png").unlink(),
    "000032.png cannot be read .*No such file": lambda f: (f / f"{CLASS}.png").unlink(),
    "SegmentationObject/000032.png cannot be decoded": lambda f: cut(f / f"{OBJECT}.png"),
    "SegmentationClass/000032.png cannot be decoded": lambda f: cut(f / f"{CLASS}.png"),
    "000032.jpg.*image cannot be decoded": lambda f: cut(f / f"{PHOTO}.jpg"),
    "the list .*train.txt is missing": lambda f: (f / LIST).unlink(),
    "the list .*train.txt cannot be read": lambda f: (f / LIST).write_bytes(b"\xff\xfe\xff"),
    "the split train would be empty": lambda f: (f / LIST).write_text("\n"),
    "are in val.txt, too": lambda f: (f / LIST).write_text("000063\n"),
    r"colours that VOC's palette lacks: \(": lambda f: recoloured(f / f"{OBJECT}.png"),
    "has the mode L; a mask of colours has .*have often lost their numbers": lambda f: Image.fromarray(objects()).save(f / f"{OBJECT}.png"),
    "instance 254": lambda f: save(with_number(254), f / f"{OBJECT}.png"),
    "gives the instances 9 no class": lambda f: save(with_number(9), f / f"{OBJECT}.png"),
    r"its instances \(20, 27\)": lambda f: save(classes()[:-1], f / f"{CLASS}.png"),
    r"the segments are uint8 \(20, 26\), the image needs uint8 \(20, 27\)": lambda f: (
        save(objects()[:, 1:], f / f"{OBJECT}.png"), save(classes()[:, 1:], f / f"{CLASS}.png"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path, message):
    root = tmp_path / "VOCdevkit"
    WRONG[message](make(root, 2007, ["000032"], ["000063"]))
    with pytest.raises(ConversionError, match=message):
        voc.convert(root, tmp_path / "out", validation=0)
    assert not list((tmp_path / "out").glob("*train*"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": 1}, "validation=1;"),
        ({"splits": "coco"}, "splits='coco'; choose one of auto, dias, lists"),
        ({"splits": "dias", "year": 2012}, "take both years whole"),
        ({"year": 2011}, "year=2011, but"),
        ({"trainaug": "nowhere.txt"}, "the list nowhere.txt is missing"),
    ],
)
def test_impossible_options(kit, tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        voc.convert(kit, tmp_path / "out", **options)


def test_no_folder_of_classes(kit, tmp_path):
    shutil.rmtree(kit / "VOC2007/SegmentationClass")
    item = store.open(voc.convert(kit, tmp_path / "out")["test"])[0]
    assert "classes" not in item.info and item.info["things"] == {1: True, 2: True, 3: True}


def test_the_shell_says_that_test_images_are_in_train(kit, tmp_path, capsys):
    words = ["convert", "voc", "--root", str(kit), "--out", str(tmp_path / "out"), "--validation", "0.2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 of the test images are in train" in printed and "contact_sheet.png" in printed
    voc.convert(kit, tmp_path / "b", drop_test_images=True, progress=True)
    assert "of the test images" not in capsys.readouterr().out


def test_real_photos(real_data, tmp_path, capsys):
    root = real_data / "voc"
    assert main(["convert", "voc", "--root", str(root), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"test +24 +24 +55 +55 ", printed) and Image.open(tmp_path / "contact_sheet.png").size[0] == 1300
    folder, seen = root / "VOCdevkit/VOC2007", {}
    for split in ("train", "validation", "test"):
        for item in store.open(tmp_path / f"{split}.lmdb"):
            name = item.info["source"]["id"]
            seen.setdefault("test" if split == "test" else "train", []).append(name)
            true, kinds = (
                np.asarray(Image.open(folder / part / f"{name}.png"))
                for part in ("SegmentationObject", "SegmentationClass")
            )
            assert item.image == (folder / "JPEGImages" / f"{name}.jpg").read_bytes()
            assert (decode(item.segments) == true).all()
            assert set(item.info["things"]) == set(true[(true > 0) & (true < 255)].tolist())
            assert all((kinds[true == number] == kind).all() for number, kind in item.info["classes"].items())
    for split, name in (("train", "train"), ("test", "val")):
        assert sorted(seen[split]) == (folder / f"ImageSets/Segmentation/{name}.txt").read_text().split()
    assert sum(store.verify(tmp_path / f"{split}.lmdb")["segments"] for split in ("train", "validation", "test")) == 115
