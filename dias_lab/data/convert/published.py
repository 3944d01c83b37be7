"""One LMDB file as published with DIAS, SmoothSA and VQ-VFM-OCL: its samples, whatever they mean (`legacy` knows).

The keys are 000000, 000001, ... and `__keys__`, a pickled list of them that nobody needs. A value is a pickled dict:
`image`, the original file; `segment`, an array that is the WebP or PNG file of an index map [H W]; and what else its
data set has. Of a clip `video` and `segment` are lists of such files, or an AVI file each, and `clazz` is [F S]. All this is
read by the script `untrusted`, in a process of its own.
"""

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dias_lab.data.convert.common import ConversionError

# what Pillow raises for damaged files
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
SCRIPT = Path(__file__).with_name("untrusted.py")
MAX_PIXELS = 1 << 24  # of an image; published ones have up to 640 x 640
PNG, JPEG, ZIP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"PK\x03\x04"


class Sample(NamedTuple):
    image: bytes  # JPEG or PNG
    indices: np.ndarray  # uint8 [H W]
    form: tuple[tuple[str, ...], str]  # the other fields, and the format of the mask: "WebP" or "PNG"
    clazz: np.ndarray | None  # uint8 [S]
    isthing: np.ndarray | None  # uint8 [S], 0 or 1


class PublishedFile:
    """`keys`, and the sample of each: `file.read(key)`, for one thread. All samples must have the form of the first."""

    def __init__(self, path: str | Path):
        """Raises: ConversionError if the file is not a published one, or damaged."""
        self.path, self.form = Path(path), None
        self._refuse_other_files()
        command = [sys.executable, "-P", "-B", str(SCRIPT), os.path.abspath(path)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._script = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null)
        weakref.finalize(self, _end, self._script)
        try:
            keys = [key.encode("latin-1") for key in self._answer()["keys"]]
        except ValueError as error:
            raise self.error(error) from error
        self.keys = self._sample_keys(keys)
        self.form = self.read(self.keys[0]).form

    def _refuse_other_files(self) -> None:
        try:
            if self.path.is_dir():
                names = sorted(one.name for one in self.path.iterdir())[:8]
                raise ConversionError(f"{self.path} is a folder; name one published file. It has {names}")
            with self.path.open("rb") as file:
                start = file.read(4)
        except OSError as error:
            found = error.strerror or error
            raise ConversionError(f"{self.path} cannot be read: {found}. Name a published .lmdb file") from error
        if start == ZIP:
            raise ConversionError(f"{self.path} is a zip file. Unpack it, and name the .lmdb file that is inside")
        if not start:
            raise ConversionError(f"{self.path} is empty. Unpack the release again")

    def _sample_keys(self, keys: list[bytes]) -> list[bytes]:
        if keys[-1:] == [b"meta"] and keys[0] in (b"00000000/image", b"meta"):
            raise ConversionError(f"{self.path} is a store of dias_lab already; use it as it is")
        samples = [key for key in keys if key != b"__keys__"]
        strange = [key[:32] for key in samples if len(key) != 6 or not key.isdigit()]
        if strange or not samples:
            found = f"its keys are {strange[:3]}, not six digits" if strange else "it holds no samples"
            way_out = "another program made it. Name a file published for ClevrTex, COCO, VOC, MOVi or YTVIS"
            raise ConversionError(f"{self.path}: {found}: {way_out}")
        for number, key in enumerate(samples):
            if key != b"%06d" % number:
                raise self.error(f"it is missing, the next one is {key.decode()}", b"%06d" % number)
        if len(samples) == len(keys):
            raise self.error("the record __keys__, which is written last, is missing, so the file is incomplete")
        return samples

    def read(self, key: bytes) -> Sample:
        """The image, or a clip's first frame. Raises: ConversionError that names the key if a sample is not as published."""
        return self.samples(key)[0]

    def samples(self, key: bytes) -> list[Sample]:
        """The frames of a clip, or the image. Errors as of `read`."""
        try:
            fields = self._fields(key)
            found = _clip(fields) if "video/0" in fields else [_sample(fields)]
            first, first_form = self.form or found[0].form
            for fields, form in {sample.form for sample in found} - {(first, first_form)}:
                what = f"besides image and segment it has {fields} and a {form} mask"
                raise ValueError(f"{what}, the first item {first} and {first_form}: two releases are in one file")
        except UNREADABLE as error:
            raise self.error(error, key) from error
        return found

    def _fields(self, key: bytes) -> dict[str, tuple[str, bytes]]:
        """What the script says that each field is, and its data. Raises: ValueError."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._script.stdin.fileno(), key.hex().encode() + b"\n")
        return {name: (kind, self._script.stdout.read(size)) for name, (kind, size) in self._answer().items()}

    def _answer(self) -> dict:
        """What the script says next. Raises: ValueError, also if there is no script any more."""
        if line := self._script.stdout.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer
        status = self._script.wait()
        how = "took too long" if status == -signal.SIGPROF else f"ended with status {status}"
        raise ValueError(f"reading it {how}: it is cut short or damaged")

    def error(self, problem: object, key: bytes | None = None) -> ConversionError:
        where = f"{self.path}: item {key.decode()}" if key else self.path
        return ConversionError(f"{where}: {problem}. Unpack the release again")


def _end(script: subprocess.Popen) -> None:
    script.kill()
    script.communicate()  # closes the pipes, and waits


def _sample(fields: dict[str, tuple[str, bytes]]) -> Sample:
    """Raises: what `UNREADABLE` lists."""
    (kind, image), segment = fields.pop("image", ("nothing", b"")), fields.pop("segment", None)
    if kind != "bytes" or segment is None:
        raise ValueError(f"it has no image as bytes or no segments, but {sorted(fields)}")
    vectors = {"segment": segment} | {name: fields[name] for name in ("clazz", "isthing") if name in fields}
    for name, (kind, _) in vectors.items():
        if kind != "vector":
            raise ValueError(f"its {name} is {kind}, not uint8 or bool of one dimension and of its data's length")
    vectors = {name: np.frombuffer(data, np.uint8) for name, (_, data) in vectors.items()}
    if "isthing" in vectors and vectors["isthing"].max(initial=0) > 1:
        raise ValueError("its isthing has values other than 0 and 1")
    form, indices = _decode(image, segment[1])
    return Sample(image, indices, (tuple(sorted(fields)), form), vectors.get("clazz"), vectors.get("isthing"))


def _clip(fields: dict[str, tuple[str, bytes]]) -> list[Sample]:
    """The frames of a clip. Raises: what `UNREADABLE` lists."""
    frames, masks = (sum(field.startswith(f"{name}/") for field in fields) for name in ("video", "segment"))
    kind, classes = fields.get("clazz", (None, b""))
    if masks != frames:
        raise ValueError(f"its video has {frames} frames, its segment {masks}")
    if kind not in (None, f"an array u1 of 2 dimensions: ({frames}, {len(classes) // frames})"):
        raise ValueError(f"its video has {frames} frames, its clazz is {kind}")
    rows = np.frombuffer(classes, np.uint8).reshape(frames, -1) if kind else [None] * frames
    form = (*(("avi",) if "avi" in fields else ()), *(("clazz",) if kind else ()), "video")
    found = []
    for place, row in enumerate(rows):
        frame = _sample({"image": ("bytes", fields[f"video/{place}"][1]), "segment": fields[f"segment/{place}"]})
        found.append(frame._replace(clazz=row, form=(form, frame.form[1])))
    return found


def _decode(image: bytes, mask: bytes) -> tuple[str, np.ndarray]:
    """The format of the mask, and its indices, uint8 [H W]. Sizes are compared before anything is decoded."""
    if not image.startswith((PNG, JPEG)):
        raise ValueError(f"its image begins with {image[:8]!r} and is neither JPEG nor PNG")
    form = "PNG" if mask.startswith(PNG) else "WebP" if mask[:4] + mask[8:12] == b"RIFFWEBP" else None
    if form is None:
        raise ValueError(f"its mask begins with {mask[:12]!r} and is neither PNG nor WebP")
    if (mask[24:26] != b"\x08\x00") if form == "PNG" else (mask[12:16] != b"VP8L"):  # 8 bits, one channel; lossless
        raise ValueError(f"its {form} mask is not of the kind that keeps 8-bit numbers exactly")
    with (
        Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as photo,
        Image.open(io.BytesIO(mask), formats=(form.upper(),)) as picture,
    ):
        if picture.size != photo.size or photo.width * photo.height > MAX_PIXELS:
            found = f"its mask is {picture.size} (width, height) and its image {photo.size}"
            raise ValueError(f"{found}, of at most {MAX_PIXELS} pixels")
        channels = np.atleast_3d(np.asarray(picture))  # [H W 1], and three in a WebP
    if (channels != channels[..., :1]).any():
        raise ValueError("its mask has unequal channels, so it is no index map")
    return form, channels[..., 0]
