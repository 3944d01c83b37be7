"""An LMDB file that is written once and then only read: whole or not there at all; damage is an error, no crash.

Sources: LMDB, https://lmdb.readthedocs.io, and its file format (`MDB_meta` and `MDB_page` in mdb.c, data version 1).

LMDB trusts its file. It maps it into memory, so a file cut short kills the process that reads it, and so may a pointer
that changed: hence the length is checked at every opening, and `check_index` compares the pages that hold keys and
pointers with a checksum, which the last 12 bytes of the file hold. No environment survives a fork, and lmdb 2 and 3
open a file once a process: hence one environment a file and process, opened on first use.
"""

import errno
import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import lmdb
import psutil

from dias_lab.files import sync

MAP_SIZE = 1 << 26  # bytes to begin with; doubled whenever it is full
SEAL = struct.Struct("<8sI")  # the end of the file: a mark and the index's CRC-32
MARK = b"DIASLAB1"


class StoreError(ValueError):
    """A store, or a record meant for one, is not what it should be."""


# Writing


def write(path: Path, batches: Iterable[list[tuple[bytes, bytes]]], check: Callable[[Path], object]) -> None:
    """Write keys and values, in the order of the keys, a transaction a batch: beside the path, checked, then renamed.

    Raises: OSError if the file cannot be written; whatever `batches` and `check` raise. The path is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with _writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        remove_stale(path)
        partial.touch(exist_ok=False)  # here a missing or read-only folder shows
    try:
        _fill(partial, path, batches)
        check(partial)
        with _writing(path):
            os.replace(partial, path)
            sync(path.parent)
    finally:
        with _lock:
            _close(lambda key, name: name == partial)
        partial.unlink(missing_ok=True)


def _fill(partial: Path, path: Path, batches: Iterable[list[tuple[bytes, bytes]]]) -> None:
    with _writing(path):
        environment = lmdb.open(str(partial), MAP_SIZE, subdir=False, lock=False, sync=False, metasync=False)
    try:
        for batch in batches:
            with _writing(path):
                _commit(environment, batch)
    finally:
        environment.close()
    with _writing(path):
        with partial.open("r+b") as file:
            page_size, pages = _pages(partial)
            file.truncate(page_size * pages)  # LMDB does not write a last page that it freed again
            checksum = _index_checksum(file, page_size, pages)
            file.seek(0, os.SEEK_END)
            file.write(SEAL.pack(MARK, checksum))
        sync(partial)


def _commit(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    try:
        with environment.begin(write=True) as transaction:
            for key, value in batch:
                transaction.put(key, value, append=True)
    except lmdb.MapFullError:
        environment.set_mapsize(2 * environment.info()["map_size"])
        _commit(environment, batch)


def remove_stale(path: Path) -> None:
    """Remove what writers of this file left that no longer run; our own process number may be a leftover's too."""
    for partial in path.parent.iterdir():
        name, _, process = partial.name.partition(".partial-")
        if name == f".{path.name}" and process.isdecimal():
            if int(process) == os.getpid() or not psutil.pid_exists(int(process)):
                partial.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path):
    """Turn errors of LMDB and of the system into OSErrors that say which file and what to do."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        number = getattr(error, "errno", None) or (errno.ENOSPC if "No space left" in str(error) else errno.EIO)
        reason = getattr(error, "strerror", None) or error
        way_out = "Name a file in a folder that exists, may be written to and has enough space"
        text = f"cannot write the store: {reason}. {way_out}; what was there before is unchanged"
        raise OSError(number, text, str(path)) from error


# Reading


# path and environment by process, device, inode, size in bytes and time of change in nanoseconds
_environments: dict[tuple[int, int, int, int, int], tuple[Path, lmdb.Environment]] = {}
_lock = threading.Lock()  # also held while bytes are copied, so that no thread closes what another reads


# A fork waits for reads to end: in the child, closing an environment in which another thread reads would wait for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def read(path: Path, *keys: bytes) -> list[bytes | None]:
    """The values of the keys, in the file that is there now. Raises: FileNotFoundError, StoreError."""
    with _lock:
        try:
            with _environment(path).begin() as transaction:
                return [transaction.get(key) for key in keys]
        except lmdb.Error as error:
            raise StoreError(f"{path} cannot be read at {keys[0].decode()}: {error}. Convert the data again") from error


def count(path: Path) -> int:
    """How many keys the file has. Raises: FileNotFoundError, StoreError."""
    with _lock:
        return _environment(path).stat()["entries"]


def check_index(path: Path) -> None:
    """Raises: StoreError if a page that holds keys or pointers is not as it was written."""
    page_size, pages = _checked_pages(path, _status(path).st_size)
    with path.open("rb") as file:
        checksum = _index_checksum(file, page_size, pages)
        file.seek(-SEAL.size, os.SEEK_END)
        if file.read() != SEAL.pack(MARK, checksum):
            raise StoreError(f"{path}: the index does not match its checksum. Convert the data again")


def _environment(path: Path) -> lmdb.Environment:
    """This process's environment of the file as it is now. Call it with the lock held."""
    status = _status(path)
    key = os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if key in _environments:
        return _environments[key][1]
    # those that changed, were replaced, or inherited through a fork
    _close(lambda other, name: name == path or other[1:3] == key[1:3] or other[0] != key[0])
    _checked_pages(path, status.st_size)
    try:
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise StoreError(f"{path} does not open as LMDB: {error}. Convert the data again") from error
    _environments[key] = path, environment
    return environment


def _close(chosen: Callable[[tuple, Path], bool]) -> None:
    for key in [key for key, (name, _) in _environments.items() if chosen(key, name)]:
        _environments.pop(key)[1].close()


# The file's format


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        way_out = "no store here; make one with `python -m dias_lab convert`"
        raise FileNotFoundError(errno.ENOENT, way_out, str(path)) from error


def _checked_pages(path: Path, size: int) -> tuple[int, int]:
    """`_pages`, if a file of `size` bytes can be a whole one. Raises: StoreError."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name one of its stores: {sorted(p.name for p in path.glob('*.lmdb'))}")
    page_size, pages = _pages(path)
    expected = page_size * pages + SEAL.size
    if size != expected:
        wrong = f"{path} has {size} bytes and, by its index, should have {expected}"
        way_out = "Convert the data again (files that the reference released: `convert legacy`)"
        raise StoreError(f"{wrong}: it is cut short, or another program made it. {way_out}")
    return page_size, pages


def _pages(path: Path) -> tuple[int, int]:
    """The page size in bytes, and how many pages the newer of the two meta pages counts. Raises: OSError, StoreError."""
    metas, page_size = [], 0
    with path.open("rb") as file:
        for _ in range(2):
            file.seek(page_size)
            head = file.read(152)
            if len(head) < 152 or struct.unpack_from("<II", head, 16) != (0xBEEFC0DE, 1):  # magic number, version
                raise StoreError(f"{path} is not an LMDB file, or its beginning is damaged. Convert the data again")
            [page_size] = struct.unpack_from("<I", head, 40)
            last_page, transaction = struct.unpack_from("<QQ", head, 136)
            metas.append((transaction, last_page + 1, page_size))
    _, pages, page_size = max(metas)
    return page_size, pages


def _index_checksum(file, page_size: int, pages: int) -> int:
    """CRC-32 of all pages; of those that hold a blob, only of its header: blobs have their own checksums."""
    checksum, page = 0, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while page < pages:
            start = page * page_size
            flags, length = struct.unpack_from("<HI", content, start + 10)
            is_blob = flags & 4  # P_OVERFLOW
            checksum = zlib.crc32(content[start : start + (16 if is_blob else page_size)], checksum)
            page += max(1, length) if is_blob else 1
    return checksum


# Values that are JSON


def seal(content: dict) -> bytes:
    """JSON that ends in its own CRC-32."""
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"not JSON ({error}): {content}") from error
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}'.encode()


def unseal(value: bytes | None, numbered: Iterable[str]) -> dict:
    """The content of sealed JSON; the keys in these fields are numbers again. Raises: ValueError."""
    text, _, checksum = (value or b"").rpartition(b', "crc32": ')
    text += b"}"
    if checksum != b"%d}" % zlib.crc32(text):
        raise ValueError("JSON: wrong checksum" if value else "JSON: missing")
    content = json.loads(text)
    for field in numbered:
        if isinstance(content.get(field), dict):
            content[field] = {int(key): value for key, value in content[field].items()}
    return content
