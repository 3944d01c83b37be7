"""Files that are whole or not there, JSON, JSON lines, checksums, locks, and a full disk that says so.

Every write goes to a file beside the target, is synced, and then takes the target's name: a reader sees the old content
or the new one, nothing between.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

SEAL = "checksum"  # the field of an object's own checksum
UNPACKED = 2**28, 100  # bytes that arrays may take whatever their file's size, and times that size; a flat picture shrinks more


def sync(path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def full_disk(path):
    """Whatever inside finds no space on the disk raises an OSError that says so, names this file, and how much is left."""
    try:
        yield
    except Exception as error:
        number = _no_space(error)
        if number is None:
            raise
        folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
        left = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
        raise OSError(number, f"no space is left on the disk ({left}), or in your quota, for", str(path)) from error


def _no_space(error: BaseException | None) -> int | None:
    """The system's number for a full disk where that is behind an error; torch's own hide it."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def system_lock(path, patience: float = 0.0):
    """The operating system's lock on a file, which is made for it and taken away again; it ends with the process that holds it.

    Gives True while this process has it, False where another has it for longer than `patience` seconds, and None where the
    file system knows no locks.
    """
    until = time.monotonic() + patience
    while True:
        with full_disk(path):
            file = open(path, "ab")
        held = _lock(file)
        if _names(path, file) if held else held is None or time.monotonic() > until:
            break
        file.close()  # it is another's, or was taken away between opening and locking
        time.sleep(0.01)
    try:
        yield held
    finally:
        if held is not False and _names(path, file):
            with contextlib.suppress(OSError):
                os.unlink(path)
        file.close()


def _lock(file) -> bool | None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None


def _names(path, file) -> bool:
    """Whether the path still leads to this open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False


@contextlib.contextmanager
def replacing(path):
    """A binary file to write, which takes the name `path` when all of it is on the disk. Folders that are missing are made.

    Whatever goes wrong, the target stays as it was and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with full_disk(path):
            with open(beside, "wb") as file:
                yield file
            sync(beside)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path, text: str) -> None:
    """Replace the file's content at once, and only when all of it is on the disk."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path, value) -> None:
    """Atomic JSON. NaN and infinities become null; NumPy and PyTorch scalars become numbers, paths become text."""
    write_text(path, _as_json(value, indent=2))


def write_sealed(path, value: dict) -> None:
    """An object with a checksum of its own, which `read_object` compares."""
    plain = json.loads(_as_json(value))
    write_json(path, {**plain, SEAL: checksum(plain, 16)})


def read_json(path):
    """What a JSON file holds; ValueError, with the file's name, where it holds none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not text, or brackets without end
        raise ValueError(f"{path} is not JSON: {error}") from None


def read_object(path, fields: dict[str, type | tuple] | None = None) -> dict:
    """The same of a file that must hold an object, with at least these fields of these types: ValueError lists the others.

    A seal is compared, and left out; it must be there where the object holds checksums of other files.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, and holds {type(found).__name__}")
    seal = found.pop(SEAL, None)
    if (seal is not None or "checksums" in found) and seal != checksum(found, 16):
        raise ValueError(f"{path} is not as it was written: its checksum differs")
    wrong = [name for name, kind in (fields or {}).items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise ValueError(f"{path} lacks the fields {', '.join(wrong)}, or has them of another type")
    return found


def read_arrays(path, names) -> dict:
    """The arrays of these names in an .npz file, those that there are, without pickle.

    ValueError, before anything is unpacked, where a header says another size than the file has, or where all together would
    take more memory than a file of this size can mean.
    """
    declared, most = 0, UNPACKED[0] + UNPACKED[1] * os.stat(path).st_size
    with zipfile.ZipFile(path) as archive:
        there = {name: f"{name}.npy" for name in names if f"{name}.npy" in archive.namelist()}
        for name, member in there.items():
            with archive.open(member) as file:
                read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
                shape, _, kind = read_header(file)
                size, found = file.tell() + math.prod(shape) * kind.itemsize, archive.getinfo(member).file_size
            if kind.hasobject or size != found:
                what = "holds Python objects" if kind.hasobject else f"has {found:,} bytes, and its header speaks of {size:,}"
                raise ValueError(f"{name} {list(shape)} {what}")
            declared += size
        if declared > most:
            told = f"its arrays would take {declared / 1e6:,.0f} MB of memory"
            raise ValueError(f"{told}, and at most {most / 1e6:,.0f} MB are believed of a file of this size")
        result = {}
        for name, member in there.items():
            with archive.open(member) as file:
                result[name] = npy.read_array(file, allow_pickle=False)
        return result


def as_array(value):
    """A NumPy array of what is one, or of a tensor of any kind, on any device, with gradients or without.

    What NumPy has no type for (bfloat16) becomes float32. No library is asked for: what an object can do is looked at.
    """
    if isinstance(value, (list, tuple)):
        return np.asarray([as_array(one) for one in value])
    for step in ("detach", "resolve_conj", "to_dense", "cpu"):
        value = getattr(value, step, lambda value=value: value)()
    try:
        array = np.asarray(value)
    except TypeError:
        array = np.asarray(value.float()) if hasattr(value, "float") else np.asarray(value, np.float32)
    return array.astype(np.float32) if array.dtype.kind == "V" and "float" in array.dtype.name else array


def text_array(name: str, value):
    """What JSON can hold as text in a uint8 array, for an .npz file. ValueError, with the array's name, for the rest."""
    try:
        return np.frombuffer(json.dumps(value).encode(), np.uint8)
    except TypeError as error:
        raise ValueError(f"{name} must be what JSON can hold: {error}") from None


def text_of(name: str, array):
    """What `text_array` made an array of. ValueError, with the array's name, for other arrays."""
    if array.dtype != "uint8" or array.ndim != 1:
        raise ValueError(f"{name} must be JSON text as uint8 [length], got {array.dtype} {list(array.shape)}")
    return json.loads(array.tobytes())


def append_line(path, record: dict) -> None:
    """One JSON line at the end of the file. A line that a killed process left unfinished is dropped first."""
    line = _as_json(record).encode()
    with full_disk(path), open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def write_lines(path, records) -> None:
    """A whole file of records, at once."""
    write_text(path, "".join(map(_as_json, records)))


def read_lines(path, field: str | None = None) -> list[dict]:
    """The records of a .jsonl file, each with a whole number under the name `field`, if given.

    Only the last line may be torn (kill -9 in the middle of writing); it is left out.
    """
    lines, records = Path(path).read_bytes().split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict) or (field and type(record.get(field)) is not int):
                    raise ValueError(f"it holds {record!r:.80}, and no record" + (f" with a number {field}" if field else ""))
                records.append(record)
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # a complete line is followed by another part, empty at the file's end
                raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
    return records


def file_checksum(path) -> str:
    """64 hexadecimal digits that change with any bit of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(value, digits: int) -> str:
    """Hexadecimal digits that change with any part of a value of JSON (or of TOML: dates count as their text)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:digits]


def _as_json(value, indent: int | None = None) -> str:
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda name: None)  # a NaN, or an infinity
    return json.dumps(plain, indent=indent) + "\n"


def _plain(value):
    """What JSON does not know, as something that it does."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON; pass numbers, text, lists or dicts")


def as_markdown(text) -> str:
    """Text as one line of Markdown, none of which is markup: no table is broken, and nothing becomes a link or HTML."""
    return re.sub(r"([\\`*\[\]<>|&~$]|^[-+#=]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))


def size(count: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def folder_size(folder) -> int:
    """Bytes of the files in it."""
    total = 0
    for path in (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names):
        with contextlib.suppress(OSError):
            total += os.lstat(path).st_size
    return total
