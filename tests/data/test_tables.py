"""COCO tables that contradict themselves, or their files: all offenders at once, before anything is written."""

import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from dias_lab.data import store
from dias_lab.data.convert import coco, tables
from dias_lab.data.convert.common import ConversionError

HEIGHT, WIDTH, COUNT = 20, 30, 14
SQUARE = [[3, 3, 12, 3, 12, 12, 3, 12]]
INF, NAN = float("inf"), float("nan")


def filled(*box: int) -> np.ndarray:
    top, left, bottom, right = box
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[top:bottom, left:right] = 1
    return pixels


def text(pixels: np.ndarray) -> dict:
    code = masks.encode(pixels)
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def make(root: Path, ending: str = "jpg", folder: str = "") -> Path:
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part / folder).mkdir(parents=True)
        images = [
            {"id": number, "file_name": f"{folder}{number:03}.{ending}", "width": WIDTH, "height": HEIGHT}
            for number in range(1, COUNT + 1)
        ]
        for image in images:
            Image.new("RGB", (WIDTH, HEIGHT), (9 * image["id"], 0, 0)).save(root / part / image["file_name"])
        annotations = [
            {"id": 10 * image["id"], "image_id": image["id"], "category_id": 1, "iscrowd": 0, "segmentation": SQUARE}
            for image in images
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return root


def edit(root: Path, change, *parts: str) -> Path:
    for part in parts or ("val2017",):
        path = root / f"annotations/instances_{part}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return root


def convert(root: Path) -> store.Store:
    return store.open(coco.convert(root, root / "out", validation=0, annotations="instances")["test"])


def each(name: str, *fields):
    """Change so many of the first entries in a list; a field's value may follow from the entry's place."""

    def change(content):
        for place, values in enumerate(fields):
            content[name][place].update(values)

    return change


TWELVE = range(12)
WRONG = {  # change, what is said, and the offenders
    "image ids": (each("images", {}, {"id": 1}, {}, {"id": 3}), "has image ids twice", ["1 (001.jpg, 002.jpg)", "3 (003.jpg, 004.jpg)"]),
    "ids as text": (each("images", {}, {"id": "1"}), "has image ids twice", ["1 (001.jpg, 002.jpg)"]),
    "files": (each("images", {}, {"file_name": "001.jpg"}), "lists files twice", ["001.jpg"]),
    "files, other words": (each("images", {}, {"file_name": "./001.jpg"}), "lists files twice", ["001.jpg"]),
    "files, with the part": (each("images", {}, {"file_name": "val2017/001.JPG"}), "lists files twice", ["val2017/001.jpg"]),
    "annotation ids": (each("annotations", {}, {"id": 10}, {}, {"id": 30.0}), "has annotation ids twice", ["10, 30"]),
    "no such image": (each("annotations", *({"image_id": 900 + n} for n in TWELVE)), "annotates images that it does not list",
                      ["900, 901", "909, ... (12 in all)"]),
    "image null": (each("annotations", {"image_id": None}), "lack a field or have it of another type", ["annotations[0] (id 10) image_id"]),
    "no such category": (each("annotations", {"category_id": 7}, {"category_id": "dog"}), "uses unknown categories", ["7", "dog"]),
    "category ids": (lambda c: c["categories"].append({"id": "1", "name": "b"}), "has category ids twice", ["1"]),
    "category names as ids": (each("categories", {"id": "dog"}), "category ids that are no whole numbers", ["'dog'"]),
    "sizes": (each("images", {"width": 31}, {}, {"height": 9}), "states other sizes", ["001.jpg 31 x 20, its file has 30 x 20", "003.jpg"]),
    "impossible sizes": (each("images", {"width": -3}, {"height": NAN}, {"width": 1e300}, {"width": 2.5}), "states impossible sizes",
                         ["image 1 (001.jpg) -3", "image 2 ", "image 3 ", "image 4 "]),
    "sizes as text": (each("images", {"width": "30"}), "lack a field", ["images[0] (id 1) width"]),
    "missing files": (each("images", *({"file_name": f"x{n}.jpg"} for n in TWELVE)), "misses files", ["val2017/x0.jpg", "(12 in all)"]),
    "outside": (each("images", {"file_name": "../train2017/001.jpg"}, {"file_name": "/etc/passwd"}), "misses files", ["train2017", "passwd"]),
    "crowd": (each("annotations", {"iscrowd": "0"}, {"iscrowd": 2}), "iscrowd that are neither 0 nor 1", ["annotation 10 '0'", "annotation 20 2"]),
    "no objects": (lambda c: c["annotations"].append(7), "not instances annotations", ["annotations[14]"]),
    "no list": (lambda c: c.update(images={}), "not instances annotations", ["images"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_table_that_contradicts_itself(tmp_path, kind):
    change, message, offenders = WRONG[kind]
    root = edit(make(tmp_path / "coco"), change)
    with pytest.raises(ConversionError) as caught:
        convert(root)
    said = str(caught.value)
    assert message in said and "instances_val2017.json" in said and all(one in said for one in offenders), said
    assert not (root / "out").exists()


def run(counts, size=(HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


SHAPES = {  # a segmentation, and what is said of it
    "far": ([[-164.1, -221.8, 208543216.0, 352186880.0, 225.9, 236.5, 272.0, 384.2]], "far outside the image of 30 x 20"),
    "a little too far": ([[1, 1, 61, 1, 9, 9]], "61, far outside"),
    "below": ([[1, 1, 5, -21, 9, 9]], "-21, far outside"),
    "NaN": ([[10, 10, NAN, 10, 20, 15]], "nan, far outside"),
    "infinity": ([[10, 10, INF, 10, 20, 15]], "inf, far outside"),
    "1e9": ([[10, 10, 1e9, 10, 20, 15]], "1e[+]09, far outside"),
    "beyond integers": ([[10, 10, 10**30, 10, 20, 15]], "no list of numbers"),
    "odd": ([[1, 1, 9, 1, 9, 9, 1]], "7 coordinates"),
    "two points": ([[1, 1, 9, 1]], "4 coordinates"),
    "nothing": ([[]], "0 coordinates"),
    "no polygon": ([], "no polygon"),
    "text": ([["1", "1", "9", "1", "9", "9"]], "no list of numbers"),
    "pairs": ([[[1, 1], [9, 1], [9, 9]]], "no list of numbers"),
    "uneven": ([[[1, 1], [9, 1, 2], [9, 9]]], "no list of numbers"),
    "flat": ([1, 1, 9, 1, 9, 9], "no list of numbers"),
    "null in it": ([[1, 1, None, 1, 9, 9]], "no list of numbers"),
    "true": ([[True, True, False, True, True, False]], "no list of numbers"),
    "second": ([SQUARE[0], [1, 1, 9, 1]], "4 coordinates"),
    "zigzag": ([[0, 0, 30, 20] * 2000], "an outline is .* pixels long"),
    "null": (None, "neither polygons nor run lengths"),
    "too short": (run([5, 10]), "15 pixels in all, .* 600"),
    "too long": (run([5, 10, 600]), "615 pixels in all"),
    "negative": (run([-5, 605]), "a run of -5 pixels"),
    "overflow": (run([2**32, 600]), "4294967896 pixels in all"),
    "parts of pixels": (run([100.5, 499.5]), "no whole numbers"),
    "run lengths of text": (run(["600"]), "no whole numbers"),
    "other size": (run([600], (30, 20)), r"its size is \[30, 20\]"),
    "no size": ({"counts": [600]}, "neither polygons nor run lengths"),
    "text, cut": (run(text(filled(1, 1, 9, 9))["counts"][:-1]), "pixels in all|cut short"),
    "text, longer": (run(text(filled(1, 1, 9, 9))["counts"] + "5"), "pixels in all"),
    "text, of another size": (run(masks.encode(np.ones((40, 30), np.uint8, order="F"))["counts"].decode()), "1200 pixels in all"),
    "text, negative": (run("Ob0"), "a run of -"),
    "text, empty": (run(""), "cut short"),
    "text, other letters": (run("~~~"), "cut short, or not COCO's"),
    "text, endless": (run("o" * 40 + "0"), "more than 35 bits"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_geometry_out_of_this_world(tmp_path, kind):
    shape, message = SHAPES[kind]
    root = edit(make(tmp_path / "coco"), each("annotations", {}, {"segmentation": shape}))
    with pytest.raises(ConversionError, match=f"val2017.json.*annotation 20 of image 2 has no mask that decodes .*{message}"):
        convert(root)
    assert not (root / "out").exists()


def test_all_of_both_tables_at_once(tmp_path):
    shapes = [{"segmentation": [[1, 1, 9, 1]]}] * 12
    root = edit(make(tmp_path / "coco"), each("annotations", *shapes), "train2017", "val2017")
    edit(root, each("images", *[{}] * 12, {"id": 14}))
    with pytest.raises(ConversionError) as caught:
        convert(root)
    said = str(caught.value)
    assert all(f"annotation {10 * number} of" in said for number in range(1, 11)) and said.count("(12 in all)") == 2
    assert "instances_train2017.json" in said and "has image ids twice: 14" in said
    assert said.startswith("4 problems:") and "does not list: 13" in said and "Mend the tables" in said


def test_run_lengths_are_what_pycocotools_writes():
    random = np.random.default_rng(0)
    for share in (0.0, 0.03, 0.5, 1.0):
        pixels = np.asfortranarray((random.random((200, 300)) < share).astype(np.uint8))
        flat = pixels.T.ravel()
        runs = [len(list(run)) for _, run in itertools.groupby(flat)]
        counts = tables._run_lengths(masks.encode(pixels)["counts"].decode())
        assert counts.tolist() == [0] * int(flat[0]) + runs
        assert tables.mask_problem(text(pixels), 200, 300) is None


def test_ids_as_text_and_as_decimals(tmp_path):
    """Other tools write "1", "001" or 1.0 where COCO has 1; or names."""

    def as_text(content):
        for image in content["images"]:
            image["id"] = f"{image['id']:06}"
        for annotation in content["annotations"]:
            annotation.update(image_id=float(annotation["image_id"]), category_id="1")

    opened = convert(edit(make(tmp_path / "a"), as_text))
    assert [record.info["source"]["id"] for record in opened] == list(range(1, COUNT + 1))
    assert all(record.info["classes"] == {1: 1} for record in opened)

    def as_names(content):
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            image["id"] = annotation["image_id"] = f"photo-{image['id']:02}"

    opened = convert(edit(make(tmp_path / "b"), as_names))
    assert opened[0].info["source"]["id"] == "photo-01" and all(record.info["things"] for record in opened)


@pytest.mark.parametrize("ending", ["bmp", "tif", "webp", "png", "gif"])
def test_files_of_all_kinds_in_folders_of_their_own(tmp_path, ending):
    opened = convert(make(tmp_path / "coco", ending, "camera 1/morning/"))
    assert opened[2].info["source"]["file"] == f"val2017/camera 1/morning/003.{ending}" and len(opened) == COUNT
    assert opened.meta["photos_without_masks"] == 0


NAMES = {  # as the table writes it, for a file val2017/cam/Tür 1.jpg
    "composed": "cam/Tür 1.jpg",
    "decomposed": unicodedata.normalize("NFD", "cam/Tür 1.jpg"),
    "Windows": "cam\\Tür 1.jpg",
    "with the part": "val2017/cam/Tür 1.jpg",
    "capitals": "cam/TÜR 1.JPG",
    "roundabout": "./cam/../cam//Tür 1.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_look_the_same(tmp_path, kind, form):
    root = make(tmp_path / "coco")
    (root / "val2017/cam").mkdir()
    (root / "val2017/001.jpg").rename(root / "val2017/cam" / unicodedata.normalize(form, "Tür 1.jpg"))
    opened = convert(edit(root, each("images", {"file_name": NAMES[kind]})))
    assert len(opened) == COUNT and opened[0].image == next((root / "val2017/cam").iterdir()).read_bytes()


def test_a_folder_that_is_a_link(tmp_path):
    root = make(tmp_path / "coco")
    (tmp_path / "elsewhere").mkdir()
    (root / "val2017/001.jpg").rename(tmp_path / "elsewhere/001.jpg")
    (root / "val2017/cam").symlink_to(tmp_path / "elsewhere")
    assert len(convert(edit(root, each("images", {"file_name": "cam/001.jpg"})))) == COUNT


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"images"', "[" * 100_000, '{"images": [], "annotations": 3}'])
def test_what_is_no_table(tmp_path, content):
    root = make(tmp_path / "coco")
    (root / "annotations/instances_val2017.json").write_text(content)
    with pytest.raises(ConversionError, match="instances_val2017.json is not instances annotations .*Fetch it again"):
        convert(root)
