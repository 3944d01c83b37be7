"""The one reader of picture files: a photo looks the same whether `trace`, a table or a folder brings it.

What it does with a file, whatever its ending:
  content        JPEG, PNG, BMP, WebP, TIFF or GIF; of several frames or pages nobody knows which is meant: refused
  size           at most MAX_PIXELS by its header, and nothing is unpacked before that is known
  checksums      every chunk of a PNG against its own
  EXIF           turns the picture, as viewers do
  16-bit grey    its high byte, as Pillow reads 16-bit colour; where that would be nearly black, and floats: refused
  transparency   laid over white
  all else       (palette, grey, CMYK, LAB, ...) Pillow's RGB

Axes: H W pixels of a picture.
"""

import contextlib
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "MPO")  # MPO: JPEGs with a second picture, from some cameras
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP")  # formats of masks
STORED = ("JPEG", "PNG", "MPO")  # whose bytes a store keeps
MAX_PIXELS = 1 << 26  # 8192 x 8192: 256 MiB in Pillow's memory
DARK = 1 << 12  # 16-bit grey below it, as of 12-bit cameras, would turn nearly black
ORIENTATION = 0x0112  # the EXIF field
TURNS = {  # what brings a picture of that orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class PictureError(ValueError):
    """A picture file is damaged, too large, or nobody knows what it should look like. The message names the file."""


class Header(NamedTuple):
    size: tuple[int, int]  # width and height in pixels, as a viewer shows it
    orientation: int  # 1, or what EXIF says of the file's pixels
    plain: bool  # every reader decodes the file to the same RGB picture

    @property
    def file_size(self) -> tuple[int, int]:
        """Width and height of the file's pixels, before EXIF turns them."""
        return self.size[::-1] if self.orientation > 4 else self.size


class Photo(NamedTuple):
    blob: bytes  # a JPEG or PNG that every reader decodes to the same RGB picture
    header: Header


def header(source: Path | bytes, name=None, formats=FORMATS) -> Header:
    """What a file says of itself; its pixels are not unpacked. Raises: PictureError, as all functions here."""
    with _opened(source, name, formats) as (picture, file):
        orientation = _orientation(picture, file)
        size = picture.size[::-1] if orientation > 4 else picture.size
        simple = not (picture.has_transparency_data or picture.mode.startswith(("I", "F")))
        return Header(size, orientation, simple and orientation == 1 and picture.format in STORED)


def opened(blob: bytes, name) -> Image.Image:
    """A stored picture, of which nothing is unpacked yet. Raises: PictureError if it would have too many pixels."""
    try:
        picture = Image.open(io.BytesIO(blob), formats=STORED)
    except Exception as error:
        raise PictureError(f"{name} cannot be decoded ({error})") from error
    _judge(picture, name, STORED)
    return picture


def decoded(source: Path | bytes, name=None, formats=FORMATS) -> Image.Image:
    """The picture as it lies in the file. `name` is what errors call it, by default the path."""
    with _opened(source, name, formats) as (picture, file):
        if picture.format == "PNG":
            _check_chunks(file)
            file.seek(0)
            picture = Image.open(file, formats=("PNG",))
        picture.load()
    return picture


def rgb(source: Path | bytes, name=None) -> Image.Image:
    """The picture in RGB, as a viewer shows it."""
    picture, name = decoded(source, name), name or source
    try:
        return turned(_as_rgb(picture, name), _orientation(picture))
    except PictureError:
        raise
    except ValueError as error:
        raise PictureError(f"{name} has the mode {picture.mode}, which does not become RGB. Save it as RGB") from error


def photo(source: Path | bytes, name=None) -> Photo:
    """What a store keeps of a file: its own bytes if they are `plain`, else a PNG of the picture as a viewer shows it."""
    found = header(source, name)
    own = source if isinstance(source, bytes) else None
    return Photo((own or source.read_bytes()) if found.plain else png(rgb(source, name)), found)


def turned(picture, orientation: int):
    """A picture, or an array [H W], of that EXIF orientation, upright."""
    if orientation not in TURNS:
        return picture
    if isinstance(picture, np.ndarray):
        return np.asarray(Image.fromarray(picture).transpose(TURNS[orientation]))
    return picture.transpose(TURNS[orientation])


def png(picture: Image.Image, **options) -> bytes:
    """The PNG file of a picture; `options` are Pillow's."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(source: Path | bytes, name, formats: tuple[str, ...]) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """A file, its header read and judged. Whatever Pillow raises inside, and that is much, says that it is damaged."""
    name = name or source
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            if not file.read(1):
                raise PictureError(f"{name} is empty (0 bytes)")
            file.seek(0)
            with Image.open(file) as picture:
                _judge(picture, name, formats)
                if formats is LOSSLESS and _is_lossy(picture, file):
                    lossy = f"{name} is a {picture.format} with loss, which changes the numbers of a mask"
                    raise PictureError(f"{lossy}. Save it as PNG")
                yield picture, file
    except PictureError:
        raise
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture, or its beginning is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{name} is not unpacked, for at most {MAX_PIXELS:,} pixels are read: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        what = "read" if getattr(error, "errno", None) else "decoded"
        raise PictureError(f"{name} cannot be {what} ({error})") from error


def _judge(picture: Image.Image, name, formats: tuple[str, ...]) -> None:
    form, (width, height) = picture.format, picture.size
    if form not in formats:
        why = "; JPEG changes the numbers of a mask" if formats is LOSSLESS and form in ("JPEG", "MPO") else ""
        raise PictureError(f"{name} is {form}; it must be one of {', '.join(formats)}{why}")
    if width * height > MAX_PIXELS:
        most = f"at most {MAX_PIXELS:,} pixels are read. Make it smaller, or cut it up"
        raise PictureError(f"{name} has {width} x {height} pixels by its header, and was not unpacked: {most}")
    if form != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise PictureError(f"{name} has {frames} frames or pages. Save the one that you mean as its own picture")


def _orientation(picture: Image.Image, file: BinaryIO | None = None) -> int:
    """What EXIF says. Of a PNG Pillow would unpack all pixels for it: only where it may stand behind them, in a `file`."""
    unpack = file is None or picture.format != "PNG" or _has_late_notes(file)
    try:
        value = (picture.getexif() if unpack else Image.Image.getexif(picture)).get(ORIENTATION, 1)
    except Exception:  # EXIF that nobody can read turns nothing, as in a viewer
        return 1
    return value if value in TURNS else 1


def _is_lossy(picture: Image.Image, file: BinaryIO) -> bool:
    place = file.tell()
    if picture.format == "WEBP":
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8 ", b"VP8L"):
                file.seek(place)
                return kind == b"VP8 "
            file.seek(length + length % 2, io.SEEK_CUR)
        file.seek(place)
    return picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")  # in a TIFF


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The kinds of a PNG's chunks, and their lengths in bytes. Then the file is at the beginning of what the chunk holds."""
    start = 8
    while file.seek(start) and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        start += 8 + length + 4


def _has_late_notes(file: BinaryIO) -> bool:
    """Whether a PNG has EXIF or text behind its pixels."""
    place, kinds = file.tell(), [kind for kind, _ in _chunks(file)]
    file.seek(place)
    behind = itertools.dropwhile(lambda kind: kind != b"IDAT", kinds)
    return not {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}.isdisjoint(behind)


def _check_chunks(file: BinaryIO) -> None:
    """ValueError for a PNG with a chunk that fails its checksum: Pillow does not compare that of the pixels."""
    for kind, length in _chunks(file):
        content, checksum = file.read(length), file.read(4)
        if len(checksum) == 4 and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise ValueError(f"its data fail PNG's own checksum, in the chunk {kind.decode('latin-1')}: bits have changed")
        if kind == b"IEND" and len(checksum) == 4:
            return
    raise ValueError("it is truncated")


def _as_rgb(picture: Image.Image, name) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture, name)
    elif isinstance(clear := picture.info.get("transparency"), (int, tuple)) and np.max(clear) > 255:
        raise PictureError(f"{name} has 16-bit colours of which one is transparent. Save it with 8 bits")
    if picture.has_transparency_data:
        veiled = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", veiled.size, "white"), veiled).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image, name) -> Image.Image:
    """16-bit grey as 8-bit grey; its transparent value, if there is one, becomes white."""
    values = np.asarray(picture)
    low, high = (0, 0) if picture.mode == "F" else (int(values.min()), int(values.max()))
    if picture.mode == "F" or low < 0 or high >= 1 << 16:
        raise PictureError(f"{name} has more than 16 bits a pixel, and no known range. Save it with 8 bits")
    if 0 < high < DARK:
        dark = f"{name} has 16 bits a pixel, and no value above {high} of 65535, so it would turn nearly black"
        raise PictureError(f"{dark}. Scale it to its range and save it with 8 bits")
    if picture.format == "TIFF" and picture.tag_v2.get(262) == 0:  # white is zero
        values = 65535 - values
    clear = picture.info.get("transparency")
    grey = (values // 256).astype(np.uint8)
    return Image.fromarray(grey if clear is None else np.where(np.asarray(picture) == clear, np.uint8(255), grey))
