"""One reader of pictures: every door shows the same pixels, or refuses the file by name; masks that rot, and bombs."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.data import pictures, store
from dias_lab.data.convert import coco, folder
from dias_lab.data.convert.common import ConversionError
from dias_lab.data.dataset import read, read_photos

SIDE = 16
RAMP = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
GREY = (RAMP >> 8).astype(np.uint8)
COLOURS = np.dstack([GREY, GREY.T, 255 - GREY])
CLEAR = np.where(np.arange(SIDE)[:, None] < SIDE // 2, 0, 255) * np.ones((1, SIDE))  # the upper half is transparent
WHITE = np.where(CLEAR[..., None] == 0, 255, COLOURS).astype(np.uint8)
THREE = np.dstack([GREY] * 3)


def exif(orientation: int) -> Image.Exif:
    fields = Image.Exif()
    fields[pictures.ORIENTATION] = orientation
    return fields


def veiled() -> Image.Image:
    return Image.fromarray(np.dstack([COLOURS, CLEAR]).astype(np.uint8))


def late_exif() -> bytes:
    """A PNG whose EXIF stands behind its pixels, as the format allows."""
    plain, turned = pictures.png(Image.fromarray(COLOURS)), pictures.png(Image.fromarray(COLOURS), exif=exif(3))
    at = turned.index(b"eXIf") - 4
    chunk = turned[at : at + 12 + struct.unpack(">I", turned[at : at + 4])[0]]
    return plain[:-12] + chunk + plain[-12:]


def written(picture: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


GOOD = {  # the file, its ending, what a viewer shows, and how far off it may be
    "16-bit grey": (written(Image.fromarray(RAMP), "PNG"), "png", THREE, 0),
    "16-bit TIFF": (written(Image.fromarray(RAMP), "TIFF"), "tif", THREE, 0),
    "16-bit, white is zero": (written(Image.fromarray(65535 - RAMP), "TIFF", tiffinfo={262: 0}), "tiff", THREE, 0),
    "transparent": (written(veiled(), "PNG"), "png", WHITE, 0),
    "transparent grey": (
        written(Image.fromarray(np.dstack([GREY, CLEAR]).astype(np.uint8), "LA"), "PNG"), "png",
        np.where(CLEAR[..., None] == 0, 255, THREE), 0,
    ),
    "one transparent grey": (
        written(Image.fromarray(RAMP), "PNG", transparency=0), "png", np.where(RAMP[..., None] == 0, 255, THREE), 0
    ),
    "transparent WebP": (written(veiled(), "WEBP", lossless=True, exact=True), "webp", WHITE, 0),
    "CMYK JPEG": (written(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=98), "jpg", COLOURS, 40),
    "CMYK TIFF": (written(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), "tif", COLOURS, 1),
    "LAB TIFF": (written(Image.fromarray(COLOURS).convert("LAB"), "TIFF"), "tif", COLOURS, 30),
    "palette": (written(Image.fromarray(GREY).convert("P"), "PNG"), "png", THREE, 0),
    "black and white": (written(Image.fromarray(GREY > 99), "PNG"), "png", 255 * np.uint8(THREE > 99), 0),
    "BMP": (written(Image.fromarray(COLOURS), "BMP"), "bmp", COLOURS, 0),
    "GIF": (written(Image.fromarray(GREY), "GIF"), "gif", THREE, 0),
    "PNG named .jpg": (written(Image.fromarray(COLOURS), "PNG"), "jpg", COLOURS, 0),
    "turned PNG": (written(Image.fromarray(np.rot90(COLOURS)), "PNG", exif=exif(6)), "png", COLOURS, 0),
    "turned JPEG": (written(Image.fromarray(np.rot90(THREE, 2)), "JPEG", quality=99, exif=exif(3)), "jpeg", THREE, 9),
    "EXIF behind the pixels": (late_exif(), "png", COLOURS[::-1, ::-1], 0),
}  # fmt: skip


def table_of(root: Path, name: str, blob: bytes, size: tuple[int, int] = (SIDE, SIDE), shape=((2, 2, 9, 2, 9, 9),)) -> Path:
    """COCO's layout with one photo, in both parts."""
    for part in ("train2017", "val2017"):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        (root / part / name).write_bytes(blob)
        image = {"id": 1, "file_name": name, "width": size[0], "height": size[1]}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": list(map(list, shape))}
        table = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(table))
    return root


def doors(tmp_path: Path, name: str, blob: bytes) -> dict:
    """What to call in order to take the file in, by each door; all give an array [H W 3]."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(blob)

    def stored(paths):
        return read(store.open(paths["train"]), 0)[0].permute(1, 2, 0).numpy()

    root = table_of(tmp_path / "coco", name, blob)
    return {
        "photos": lambda: read_photos([tmp_path / "in"], SIDE)[0][0].permute(1, 2, 0).numpy(),
        "folder": lambda: stored(folder.convert(tmp_path / "in", tmp_path / "out", validation=0, test=0)),
        "table": lambda: stored(coco.convert(root, tmp_path / "b", validation=0, annotations="instances")),
    }


@pytest.mark.parametrize("kind", GOOD)
def test_every_door_shows_the_same_picture(tmp_path, kind):
    blob, ending, expected, tolerance = GOOD[kind]
    shown = {door: take() for door, take in doors(tmp_path, f"a.{ending}", blob).items()}
    for door, image in shown.items():
        assert np.abs(image.astype(int) - expected).max() <= tolerance, door
    assert (shown["photos"] == shown["folder"]).all() and (shown["photos"] == shown["table"]).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    """A PNG that declares so many pixels, in few bytes: whoever unpacks it finds that it is cut short."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def frames(form: str, **options) -> bytes:
    others = [Image.new("RGB", (SIDE, SIDE), name) for name in ("lime", "blue")]
    return written(Image.new("RGB", (SIDE, SIDE), "red"), form, save_all=True, append_images=others, **options)


def flipped(blob: bytes, at: int) -> bytes:
    """A bit of the pixels is another one. `at`: counted from where the first pixel data begin."""
    place = blob.index(b"IDAT") + 4 + at
    return blob[:place] + bytes([blob[place] ^ 8]) + blob[place + 1 :]


BAD = {  # the file and what is said of it
    "moving WebP": (frames("WEBP"), "webp", "has 3 frames"),
    "moving GIF": (frames("GIF"), "gif", "has 3 frames"),
    "moving PNG": (frames("PNG"), "png", "has 3 frames"),
    "pages": (frames("TIFF"), "tif", "has 3 frames or pages"),
    "floats": (written(Image.fromarray(np.float32(GREY)), "TIFF"), "tif", "more than 16 bits a pixel"),
    "32 bits": (written(Image.fromarray(RAMP.astype(np.int32) * 9), "TIFF"), "tif", "more than 16 bits a pixel"),
    "12 bits": (written(Image.fromarray(RAMP >> 4), "PNG"), "png", "no value above 4095 of 65535"),
    "8 bits in 16": (written(Image.fromarray(RAMP >> 8), "PNG"), "png", "no value above 255 of 65535"),
    "icon": (written(Image.fromarray(COLOURS), "ICO"), "png", "is ICO"),
    "177 million pixels": (bomb(13300, 13300), "png", "13300 x 13300 pixels by its header"),
    "2.5 thousand million": (bomb(50000, 50000, 1), "png", "not unpacked.*2500000000 pixels"),
    "a broad one": (bomb(2_000_000, 64, 8, 2), "png", "2000000 x 64 pixels by its header"),
    "bits": (flipped(written(Image.fromarray(COLOURS), "PNG"), 30), "png", "fail PNG's own checksum"),
    "empty": (b"", "png", "is empty"),
    "a page": (b"<html>not found</html>", "jpg", "is no picture"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_every_door_refuses_the_same_by_name(tmp_path, kind):
    blob, ending, message = BAD[kind]
    for door, take in doors(tmp_path, f"the_file.{ending}", blob).items():
        with pytest.raises(ValueError, match=f"(?s)the_file.*{message}"):
            take()
            pytest.fail(door)
    assert not list(tmp_path.rglob("train.lmdb"))


def test_all_bad_photos_are_named_at_once(tmp_path):
    for number in range(13):
        (tmp_path / f"{number:02}.png").write_bytes(BAD["bits"][0])
    Image.fromarray(COLOURS).save(tmp_path / "good.png")
    with pytest.raises(ValueError) as caught:
        read_photos([tmp_path], SIDE)
    text = str(caught.value)
    assert all(f"{number:02}.png" in text for number in range(10)) and "and 3 more" in text and "good" not in text
    with pytest.raises(ConversionError, match=r"(?s)13 problems:.*00.png.*09.png.*and 3 more"):
        folder.convert(tmp_path, tmp_path / "out", validation=0, test=0)


@pytest.mark.parametrize("at", [3, 20, 45])
def test_a_mask_whose_bits_changed_is_refused(tmp_path, at):
    """Pillow decodes many such files, into other segments, and says nothing."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 9, (SIDE, SIDE)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "ab":
        Image.fromarray(COLOURS).save(tmp_path / f"in/{name}.png")
        (tmp_path / f"masks/{name}.png").write_bytes(pictures.png(Image.fromarray(labels)))
    broken = flipped(pictures.png(Image.fromarray(labels)), at)
    (tmp_path / "masks/b.png").write_bytes(broken)
    with pytest.raises(ConversionError, match="masks/b.png.*own checksum"):
        folder.convert(tmp_path / "in", tmp_path / "out", tmp_path / "masks", validation=0, test=0)
    info = {"source": "x", "things": {}}
    with pytest.raises(store.StoreError, match="segments.*own checksum"):
        store.pack(store.Record(pictures.png(Image.fromarray(COLOURS)), broken, info))
    with pytest.raises(store.StoreError, match="image.*own checksum"):
        store.pack(store.Record(flipped(pictures.png(Image.fromarray(COLOURS)), at), None, {"source": "x"}))


def test_text_behind_the_pixels_and_wrong_checksums_of_it(tmp_path):
    plain = pictures.png(Image.fromarray(COLOURS))
    blob = plain[:-12] + chunk(b"tEXt", b"made\0here") + plain[-12:]
    assert (np.asarray(pictures.rgb(blob, "x")) == COLOURS).all()
    for broken in (blob.replace(b"here", b"hexe"), blob[:-12], blob[:-6]):
        with pytest.raises(pictures.PictureError, match="x cannot be decoded"):
            pictures.decoded(broken, "x")


def test_a_store_takes_only_pictures_that_all_readers_decode_alike():
    for kind in ("16-bit grey", "transparent", "turned PNG", "turned JPEG"):
        with pytest.raises(store.StoreError, match="turned by EXIF, transparent or of 16 bits"):
            store.pack(store.Record(GOOD[kind][0], None, {"source": "x"}))


@pytest.mark.parametrize("options", [{"lossless": False}, {"lossless": False, "exif": exif(1)}])
def test_masks_with_loss(tmp_path, options):
    blob = written(Image.fromarray(THREE), "WEBP", **options)
    with pytest.raises(pictures.PictureError, match="WEBP with loss"):
        pictures.decoded(blob, "x", pictures.LOSSLESS)
    assert pictures.decoded(written(Image.fromarray(THREE), "WEBP", lossless=True), "x", pictures.LOSSLESS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_of_a_table_that_exif_turns(tmp_path, orientation):
    """Masks on the file's pixels are turned with the photo; those of the upright photo's size are as they are."""
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[3:9, 4:15] = 255
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # what undoes the turn
    raw = np.asarray(pictures.turned(Image.fromarray(upright), back))
    ys, xs = np.nonzero(raw[..., 0])
    shape = [[xs.min(), ys.min(), xs.max() + 1, ys.min(), xs.max() + 1, ys.max() + 1, xs.min(), ys.max() + 1]]
    blob = written(Image.fromarray(raw), "PNG", exif=exif(orientation))
    cases = [((raw.shape[1], raw.shape[0]), np.array(shape).tolist())]
    if orientation > 4:
        cases.append(((30, 20), [[4, 3, 15, 3, 15, 9, 4, 9]]))
    for place, (size, polygon) in enumerate(cases):
        root = table_of(tmp_path / f"coco{place}", "a.png", blob, size, polygon)
        paths = coco.convert(root, tmp_path / f"out{place}", validation=0, annotations="instances")
        image, labels = read(store.open(paths["train"]), 0)
        assert (image.permute(1, 2, 0).numpy() == upright).all()
        assert (labels.numpy() == upright[..., 0] // 255).all()
