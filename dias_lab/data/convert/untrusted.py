"""Reads an LMDB file of pickles that somebody else made. A script: `published` starts it, and it may be lost.

LMDB follows any pointer in a file, and unpickling calls any function that a file names. So a process of its own does both,
with limits on memory and time, and writes no file: if it crashes, that is an error of the file. Its unpickler knows seven
names, as numpy 1 and 2 write them under the protocols 2, 4 and 5, and has a harmless stand-in for each. What goes back is
JSON and bytes.
"""

import contextlib
import io
import json
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator

import lmdb

MAX_VALUE = 1 << 27  # bytes; images have less than 2 MB, clips of a few hundred JPEGs less than 100
MAX_FIELDS, MAX_NAME = 8, 32  # published values have up to 5, and names of 7 letters
MEMORY = 1 << 29  # bytes of this process
SECONDS, SECONDS_KEYS, SECONDS_VIDEO = 0.5, 20, 20  # of a processor: for a value, for all keys, and for a clip's videos


def serve(path: str) -> None:
    """Write {"keys": [...]}, ascending, then what each key that comes in holds, or {"error": ...}."""
    for limit, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # there is a lower one already, or the system has none
            resource.setrlimit(limit, (most, most))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, wherever that is
    try:
        environment = lmdb.open(path, subdir=False, readonly=True, lock=False)
    except lmdb.Error:
        return write({"error": "it is not an LMDB file, or its beginning is damaged"})
    with environment.begin(buffers=True) as transaction:
        reply(SECONDS_KEYS, "its index is cut short or damaged", all_keys, transaction)
        for line in sys.stdin.buffer:
            reply(SECONDS, "it is not a pickle, or a damaged one", content, transaction, bytes.fromhex(line.decode()))


def reply(seconds: float, wrong: str, function: Callable, *arguments) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        answer, blobs = function(*arguments)
    except ValueError as error:
        answer, blobs = {"error": str(error)}, []
    except Exception as error:  # of LMDB, of unpickling, or of memory
        answer, blobs = {"error": f"{wrong} ({error!r:.100})"}, []
    signal.setitimer(signal.ITIMER_PROF, 0)
    write(answer, *blobs)


def write(answer: dict, *blobs: bytes) -> None:
    sys.stdout.buffer.writelines([json.dumps(answer).encode(), b"\n", *blobs])
    sys.stdout.buffer.flush()


def all_keys(transaction: lmdb.Transaction) -> tuple[dict, list]:
    """All keys, as text with a letter a byte. They must ascend, so that no walk is endless."""
    keys = []
    for key in transaction.cursor().iternext(values=False):
        keys.append(bytes(key).decode("latin-1"))
        if keys[-1:] <= keys[-2:-1]:
            raise ValueError(f"the key {keys[-1][:32]!r} is out of order")
    return {"keys": keys}, []


def content(transaction: lmdb.Transaction, key: bytes) -> tuple[dict, list[bytes]]:
    """By name what each field of a value is ("bytes", a "vector" or something else) and its length; and their bytes."""
    value = transaction.get(key)
    if len(value) > MAX_VALUE:
        raise ValueError(f"it has {len(value)} bytes; no published value has more than {MAX_VALUE}")
    if value[:4] == b"\x28\xb5\x2f\xfd":
        raise ValueError("it is compressed with zstd, as merged files are; convert what was merged instead")
    file = io.BytesIO(value)
    fields = Unpickler(file).load()
    if type(fields) is not dict or len(fields) > MAX_FIELDS or file.read(1):
        raise ValueError(f"it is not a pickled dict of at most {MAX_FIELDS} fields")
    if not all(type(name) is str and len(name) <= MAX_NAME for name in fields):
        raise ValueError("its pickle has a dict whose keys are not short texts")
    if "video" in fields:
        fields = dict(clip(fields))
    kinds, blobs = {}, []
    for name, field in fields.items():
        data = field.data if type(field) is Array else field
        if type(data) not in (bytes, bytearray):
            raise ValueError(f"its field {name!r} is neither bytes nor a numpy array of numbers")
        kinds[name] = ("bytes" if data is field else field.what()), len(data)
        blobs.append(data)
    return kinds, blobs


def clip(fields: dict) -> Iterator[tuple[str, object]]:
    """A clip's frames as fields of their own, video/0, segment/0, ... Its flow, depth and boxes are left out."""
    for name, pixels in (("video", "rgb24"), ("segment", "gray")):
        field = fields.get(name)
        parts = field if type(field) is list else decoded(field.data, pixels) if type(field) is Stream else [field]
        yield from ((f"{name}/{place}", part) for place, part in enumerate(parts))
    kept = {"clazz": fields.get("clazz"), "avi": b"" if type(fields["video"]) is Stream else None}
    yield from ((name, field) for name, field in kept.items() if field is not None)


def decoded(file: bytes, pixels: str) -> Iterator["Array"]:
    """The frames of an AVI file as PNG files. FFmpeg works in this process, within its limits."""
    import av

    signal.setitimer(signal.ITIMER_PROF, SECONDS_VIDEO)
    with av.open(io.BytesIO(file)) as container:
        for frame in container.decode(container.streams.video[0]):
            coder = av.CodecContext.create("png", "w")
            coder.width, coder.height, coder.pix_fmt, coder.time_base = frame.width, frame.height, pixels, frame.time_base
            data = b"".join(map(bytes, [*coder.encode(frame.reformat(format=pixels)), *coder.encode(None)]))
            yield Array(data, Kind("u1"), (len(data),))


# Stand-ins


class Kind(str):
    """A numpy.dtype: "u1", "f4", ..."""

    def __new__(cls, kind: str, *_):
        return super().__new__(cls, kind if type(kind) is str else "?")

    def __setstate__(self, state):
        """Byte order and alignment change nothing about the numbers that are read here."""


class Array:
    """A numpy.ndarray as the pickle states it: the shape may not fit the data."""

    def __init__(self, data=None, kind=Kind(""), shape=(), *_):
        self.data, self.kind, self.shape = data, kind, shape

    def __setstate__(self, state):
        _, self.shape, self.kind, _, self.data = state

    def what(self) -> str:
        if self.kind in ("u1", "b1") and self.shape == (len(self.data),):
            return "vector"
        known = f": {self.shape}" if len(self.shape) == 2 and all(size in range(1 << 16) for size in self.shape) else ""
        return f"an array {self.kind[:8]} of {len(self.shape)} dimensions{known}"


class Stream:
    """An io.BytesIO, which holds a video file."""

    def __setstate__(self, state):
        self.data = state[0]


STAND_INS = {
    "numpy.ndarray": Array,
    "numpy.dtype": Kind,
    "numpy._core.multiarray._reconstruct": lambda *_: Array(),  # its state comes later
    "numpy._core.numeric._frombuffer": Array,  # protocol 5
    "_codecs.encode": lambda text, codec: text.encode({"latin1": "latin-1"}[codec]),  # protocol 2
    "builtins.bytes": lambda: b"",
    "_io.BytesIO": Stream,
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        full = f"{module}.{name}".replace("numpy.core.", "numpy._core.").replace("__builtin__.", "builtins.")
        if full not in STAND_INS:
            raise ValueError(f"its pickle asks for {full[:80]!r}, which no published one does; nothing was run")
        return STAND_INS[full]


if __name__ == "__main__":
    serve(sys.argv[1])
