"""One LMDB file as published with DIAS, SmoothSA and VQ-VFM-OCL: its samples, whatever they mean (`legacy` knows).

Source: the converters of Genera1Z/DIAS, Genera1Z/SmoothSA and Genera1Z/VQ-VFM-OCL.

The keys are 000000, 000001, ... and `__keys__`, a pickled list of them that nobody needs. A value is a pickled dict:
`image`, the original file; `segment`, an array that is the WebP or PNG file of an index map [H W]; and what else its
data set has. No pickle is run, and LMDB does not open the file (`untrusted`).
"""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dias_lab.data.convert import untrusted
from dias_lab.data.convert.common import ConversionError

MAX_PIXELS = 1 << 24  # of an image; published ones have up to 640 x 640
PNG, JPEG, ZIP, ZSTD = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"
NOT_DECODED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Sample(NamedTuple):
    image: bytes  # JPEG or PNG
    indices: np.ndarray  # uint8 [H W]
    form: tuple[tuple[str, ...], str]  # the other fields, and the format of the mask: "WebP" or "PNG"
    clazz: np.ndarray | None  # uint8 [S]
    isthing: np.ndarray | None  # uint8 [S], 0 or 1


class PublishedFile:
    """`keys`, and the sample of each: `file.read(key)`. All samples must have the form of the first."""

    def __init__(self, path: str | Path):
        """Raises: ConversionError if the file is not a published one, or damaged."""
        self.path = Path(path)
        self._entries = self._open()
        self.keys = self._sample_keys()
        self.form = None
        self.form = self.read(self.keys[0]).form

    def _open(self) -> untrusted.Entries:
        try:
            if self.path.is_dir():
                names = sorted(one.name for one in self.path.iterdir())[:8]
                raise ConversionError(f"{self.path} is a folder; name one published file. It has {names}")
            with self.path.open("rb") as file:
                start = file.read(4)
            if start == ZIP:
                raise ConversionError(f"{self.path} is a zip file. Unpack it, and name the .lmdb file that is inside")
            if not start:
                raise ConversionError(f"{self.path} is empty. Unpack the release again")
            return untrusted.Entries(self.path)
        except untrusted.UntrustedError as error:
            raise ConversionError(f"{self.path}: {error}. Unpack the release again") from error
        except OSError as error:
            found = error.strerror or error
            raise ConversionError(f"{self.path} cannot be read: {found}. Name a published .lmdb file") from error

    def _sample_keys(self) -> list[bytes]:
        keys = self._entries.keys
        if keys[-1:] == [b"meta"] and keys[0] in (b"00000000/image", b"meta"):
            raise ConversionError(f"{self.path} is a store of dias_lab already; use it as it is")
        samples = [key for key in keys if key != b"__keys__"]
        strange = [key[:32] for key in samples if len(key) != 6 or not key.isdigit()]
        if strange or not samples:
            found = f"its keys are {strange[:3]}, not six digits" if strange else "it holds no samples"
            way_out = "another program made it. Name a file published for ClevrTex, COCO or VOC"
            raise ConversionError(f"{self.path}: {found}: {way_out}")
        for number, key in enumerate(samples):
            if key != b"%06d" % number:
                raise self.error(b"%06d" % number, f"it is missing, the next one is {key.decode()}")
        if len(samples) == len(keys):
            found = "the record __keys__, which is written last, is missing, so the file is incomplete"
            raise ConversionError(f"{self.path}: {found}. Unpack the release again")
        return samples

    def read(self, key: bytes) -> Sample:
        """Raises: ConversionError that names the key if a sample is not as published."""
        try:
            value = self._entries[key]
            if value.startswith(ZSTD):
                raise ValueError("it is compressed with zstd, as merged files are; convert what was merged instead")
            sample = _sample(untrusted.unpickled(value))
            if self.form not in (None, sample.form):
                (fields, form), (first, first_form) = sample.form, self.form
                found = f"besides image and segment it has {fields} and a {form} mask"
                raise ValueError(f"{found}, the first item {first} and {first_form}: two releases are in one file")
        except NOT_DECODED as error:
            raise self.error(key, error) from error
        return sample

    def error(self, key: bytes, problem: object) -> ConversionError:
        return ConversionError(f"{self.path}: item {key.decode()}: {problem}. Unpack the release again")


def _sample(fields: dict[str, bytes | untrusted.Array]) -> Sample:
    image, segment = fields.pop("image", None), fields.pop("segment", None)
    if type(image) is not bytes or segment is None:
        raise ValueError(f"it has no image as bytes or no segments, but {sorted(fields)}")
    mask = _vector("segment", segment).tobytes()
    form = "PNG" if mask.startswith(PNG) else "WebP" if mask[:4] + mask[8:12] == b"RIFFWEBP" else None
    if form is None:
        raise ValueError(f"its mask begins with {mask[:12]!r} and is neither PNG nor WebP")
    clazz, isthing = (_vector(name, fields[name]) if name in fields else None for name in ("clazz", "isthing"))
    if isthing is not None and isthing.max(initial=0) > 1:
        raise ValueError("its isthing has values other than 0 and 1")
    return Sample(image, _decode(image, mask, form), (tuple(sorted(fields)), form), clazz, isthing)


def _vector(name: str, array: bytes | untrusted.Array) -> np.ndarray:
    """A field as uint8 [S]."""
    if type(array) is bytes or array.kind not in ("u1", "b1") or array.shape != (len(array.data),):
        stated = "bytes" if type(array) is bytes else f"an array {array.kind[:8]} of {len(array.shape)} dimensions"
        raise ValueError(f"its {name} is {stated}, not uint8 or bool of one dimension and of its data's length")
    return np.frombuffer(array.data, np.uint8)


def _decode(image: bytes, mask: bytes, form: str) -> np.ndarray:
    """The index map, uint8 [H W]. Sizes are compared before anything is decoded."""
    if not image.startswith((PNG, JPEG)):
        raise ValueError(f"its image begins with {image[:8]!r} and is neither JPEG nor PNG")
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
        size = opened.size
    if form == "PNG":
        exact, mask_size = mask[24:26] == b"\x08\x00", struct.unpack(">2I", mask[16:24])  # 8 bits, one channel
    else:
        [bits] = struct.unpack("<I", mask[21:25])
        exact, mask_size = mask[12:16] == b"VP8L", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)  # lossless
    if not exact:
        raise ValueError(f"its {form} mask is not of the kind that keeps 8-bit numbers exactly")
    if mask_size != size or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"its mask is {mask_size} (width, height) and its image {size}, of at most {MAX_PIXELS} pixels"
        )
    with Image.open(io.BytesIO(mask), formats=(form.upper(),)) as opened:
        pixels = np.asarray(opened)
    channels = pixels.reshape(*size[::-1], -1)  # WebP has three
    if (channels != channels[..., :1]).any():
        raise ValueError("its mask has unequal channels, so it is no index map")
    return channels[..., 0]
