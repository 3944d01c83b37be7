"""ClevrTex: a tiny data set in the true layout, both kinds of splits, and what can be wrong with it."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import store
from dias_lab.data.convert import clevrtex
from dias_lab.data.convert.common import ConversionError

HEIGHT, WIDTH = 24, 32
COLOURS = [(10, 0, 2), (200, 1, 1), (0, 255, 0), (255, 0, 0)]  # packed: 131082, 65992, 65280, 255
OTHERS = ("_albedo_0001", "_depth_0001", "_normal_0001", "_shadow_0001")


def flat(number: int) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for place, colour in enumerate(COLOURS[: 1 + number % 4]):
        pixels[2:20, 1 + 7 * place : 7 + 7 * place] = colour
    return pixels


def make(root: Path, name: str = "full", count: int = 20, form: str = "RGB") -> Path:
    for number in range(count):
        folder = root / f"clevrtex_{name}" / str(number // 2)
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"CLEVRTEX_{name}_{number:06d}"
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{stem}.png")
        picture = Image.fromarray(flat(number))
        picture = picture.quantize(8) if form == "P" else picture.convert(form)
        picture.save(folder / f"{stem}_flat.png")
        for other in OTHERS:
            Image.fromarray(pixels[..., 0]).save(folder / f"{stem}{other}.png")
        (folder / f"{stem}.json").write_text("{}")
    return root


def names(path: Path) -> list[int]:
    return [int(item.info["source"]["id"][-6:]) for item in store.open(path)]


def decode(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


@pytest.mark.parametrize("form", ["RGB", "RGBA", "P"])
def test_the_reference_splits(tmp_path, form):
    root = make(make(tmp_path / "data", form=form), "outd", 6, form)
    paths = clevrtex.convert(root, tmp_path / "out", validation=0.2)
    train, validation = names(paths["train"]), names(paths["validation"])
    assert sorted(train + validation) == list(range(20)) and train == sorted(train) and len(validation) >= 1
    test = store.open(paths["test"])
    assert names(paths["test"]) == list(range(6)) and "clevrtex_outd" in test.meta["source"]
    for number, item in enumerate(test):
        stem = root / "clevrtex_outd" / str(number // 2) / f"CLEVRTEX_outd_{number:06d}"
        assert item.image == stem.with_suffix(".png").read_bytes()
        pixels = flat(number).astype(int)
        packed = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        true = np.searchsorted(np.unique(packed), packed)  # 0 is black and always there
        assert (decode(item.segments) == true).all()
        assert item.info["things"] == dict.fromkeys(range(1, 2 + number % 4), True)
    assert decode(test[3].segments)[10, [3, 10, 17, 24]].tolist() == [4, 3, 2, 1]


def test_the_usual_splits_go_by_the_number_and_not_by_the_folder(tmp_path):
    root = make(tmp_path / "data", count=30)  # folders 0 to 14: as text, 10 precedes 2
    paths = clevrtex.convert(root, tmp_path / "out", splits="usual")
    assert [names(paths[split]) for split in ("test", "validation", "train")] == [
        [0, 1, 2],
        [3, 4, 5],
        list(range(6, 30)),
    ]
    assert store.open(paths["train"]).meta["splits"] == "usual"


def test_an_image_without_background(tmp_path):
    root = make(tmp_path / "data", count=10)
    path = root / "clevrtex_full/0/CLEVRTEX_full_000000_flat.png"
    Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9)).save(path)
    item = store.open(clevrtex.convert(root, tmp_path / "out", splits="usual")["test"])[0]
    assert (decode(item.segments) == 1).all() and item.info["things"] == {1: True}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def noise(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)


STEM = "clevrtex_full/1/CLEVRTEX_full_000003"
WRONG = {
    "clevrtex_outd is missing. Expected in .*clevrtex_outd": lambda root: shutil.rmtree(root / "clevrtex_outd"),
    "clevrtex_full is missing": lambda root: shutil.rmtree(root / "clevrtex_full"),
    "lacks the pictures .*000003.png, whose masks": lambda root: (root / f"{STEM}.png").unlink(),
    "lacks the masks of .*000003.png": lambda root: (root / f"{STEM}_flat.png").unlink(),
    "holds no scenes": lambda root: [path.unlink() for path in root.glob("clevrtex_full/*/*.png")],
    "scenes of the same name": lambda root: shutil.copytree(root / "clevrtex_full/1", root / "clevrtex_full/7"),
    "000003_flat.png cannot be decoded": lambda root: cut(root / f"{STEM}_flat.png"),
    "000003.*the image cannot be decoded": lambda root: cut(root / f"{STEM}.png"),
    "000003_flat.png has the mode L": lambda root: shutil.copy(root / f"{STEM}_depth_0001.png", root / f"{STEM}_flat.png"),
    r"000003_flat.png has 7\d\d segments; .*at most 253": lambda root: noise(root / f"{STEM}_flat.png"),
    r"the image needs uint8 \(12, 12\)": lambda root: Image.new("RGB", (12, 12)).save(root / f"{STEM}.png"),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said(tmp_path, message):
    root = make(make(tmp_path / "data", count=4), "outd", 2)
    WRONG[message](root)
    with pytest.raises(ConversionError, match=message):
        clevrtex.convert(root, tmp_path / "out", validation=0)
    assert not (tmp_path / "out" / "train.lmdb").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation": -1}, "validation=-1;"),
        ({"splits": "x"}, "choose one of reference, usual"),
        ({"splits": "usual"}, "empty"),
    ],
)
def test_impossible_options(tmp_path, options, message):
    root = make(make(tmp_path / "data", count=4), "outd", 2)
    with pytest.raises(ConversionError, match=message):
        clevrtex.convert(root, tmp_path / "out", **options)


def test_the_shell(tmp_path, capsys):
    root = make(tmp_path / "data", count=10)
    assert main(["convert", "clevrtex", "--root", str(root), "--out", str(tmp_path / "out"), "--splits", "usual"]) == 0
    assert "contact_sheet.png" in capsys.readouterr().out and len(names(tmp_path / "out/train.lmdb")) == 8
