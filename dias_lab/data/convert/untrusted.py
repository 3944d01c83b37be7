"""LMDB files and pickles that somebody else made, read without trusting them.

Sources: LMDB's file format (`MDB_page`, `MDB_node`, `MDB_db` in mdb.c, data version 1); Python's `pickletools`; what
numpy 1 and 2 write under the protocols 2, 4 and 5.

LMDB follows any pointer in a file, and unpickling calls any function that a file names. So neither is used here. Pages
are read as bytes: a pointer must lead into the file, and keys must ascend, so that no walk is endless. A pickle is a
program: its opcodes are decoded by `pickletools`, which runs nothing, and its calls are noted down, not made (`_Call`).
Then the few calls that make up an array are recognised by their form. Whatever a value holds, nothing is imported or
called, and memory and time stay in proportion to the value's size, which has a limit as well.
"""

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dias_lab.data import lmdb_file

MAX_VALUE = 1 << 24  # bytes; the largest published values have less than 2 MB
MAX_OPCODES, MAX_FIELDS, MAX_NAME = 1000, 8, 32  # published values have up to 201, 5, and names of 7 letters
MAX_DEPTH = 32  # of LMDB's tree, as in mdb.c
BRANCH, LEAF, BIG, NO_PAGE = 1, 2, 1, (1 << 64) - 1


class UntrustedError(ValueError):
    """A file or value is damaged, or holds what no honest one does."""


# LMDB


class Entries:
    """The keys and values of an LMDB file: `keys` in ascending order, and `entries[key]`."""

    def __init__(self, path: str | Path):
        """Raises: OSError; UntrustedError if this is no LMDB file, or a damaged one."""
        self.path = Path(path)
        try:
            meta = lmdb_file.newest_meta(self.path)
        except lmdb_file.StoreError as error:
            raise UntrustedError("it is not an LMDB file, or its beginning is damaged") from error
        if meta.page_size not in (1 << power for power in range(9, 17)):
            raise UntrustedError(f"its pages have {meta.page_size} bytes, which LMDB does not allow")
        self._size, self._page_size, self._places = self.path.stat().st_size, meta.page_size, {}
        last = b""
        try:
            for key, offset, length in self._walk(meta.root, 0) if meta.root != NO_PAGE else ():
                if key <= last:
                    raise UntrustedError(f"its key {key[:32]!r} is out of order")
                self._places[key], last = (offset, length), key
        except struct.error as error:
            raise UntrustedError(f"its index is damaged after the key {last[:32]!r}") from error

    @property
    def keys(self) -> list[bytes]:
        return list(self._places)

    def __getitem__(self, key: bytes) -> bytes:
        """Raises: KeyError; UntrustedError if the value is too large."""
        offset, length = self._places[key]
        if length > MAX_VALUE:
            raise UntrustedError(f"it has {length} bytes; no published value has more than {MAX_VALUE}")
        return self._read(offset, length)

    def _walk(self, number: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
        """Key, offset and length in bytes of the values below a page. Every page has a key, or keys would repeat."""
        page = self._read(number * self._page_size, self._page_size)
        stated, _, flags, lower = struct.unpack_from("<QHHH", page)
        kind, count = flags & (BRANCH | LEAF), (lower - 16) // 2
        if stated != number or kind not in (BRANCH, LEAF) or count < 1 or depth == MAX_DEPTH:
            raise UntrustedError(f"page {number} of its index is damaged")
        for pointer in struct.unpack_from(f"<{count}H", page, 16):
            low, high, flags, key_length = struct.unpack_from("<4H", page, pointer)
            start = pointer + 8 + key_length
            if kind == BRANCH:
                yield from self._walk(low | high << 16 | flags << 32, depth + 1)
                continue
            offset, length = number * self._page_size + start, low | high << 16
            if flags == BIG:  # the value has pages of its own
                offset = struct.unpack_from("<Q", page, start)[0] * self._page_size + 16
            elif flags:
                raise UntrustedError(f"its key {page[pointer + 8 : start][:32]!r} is a table of its own")
            self._inside(offset, length)
            yield page[pointer + 8 : start], offset, length

    def _inside(self, offset: int, length: int) -> None:
        if offset + length > self._size:
            found = f"it has {self._size} bytes, and by its index at least {offset + length}"
            raise UntrustedError(f"{found}: it is cut short or damaged")

    def _read(self, offset: int, length: int) -> bytes:
        self._inside(offset, length)
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(length)


# Pickles


class Array(NamedTuple):
    """A numpy array as the pickle states it. Nothing has been compared yet: the shape may not fit the data."""

    kind: str  # "u1", "b1", "f4", ...
    shape: tuple
    data: bytes


class _Global(str):
    """The name of a function or class, which is not looked up."""


@dataclass(slots=True, eq=False, repr=False)
class _Call:
    """A call that the pickle asks for, and the state that it wants to give to the result."""

    function: str
    arguments: object
    state: object = None


class Names:
    """The functions and classes that a pickle may ask for."""

    ARRAY, DTYPE, BYTES, ENCODE = "numpy.ndarray", "numpy.dtype", "builtins.bytes", "_codecs.encode"
    RECONSTRUCT, FROM_BUFFER = "numpy._core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"
    ALL = {ARRAY, DTYPE, BYTES, ENCODE, RECONSTRUCT, FROM_BUFFER}


MARK = object()
OLD_NAMES = {"numpy.core.": "numpy._core.", "__builtin__.": "builtins."}  # numpy 1; protocol 2
LITERALS = set("BININT BININT1 BININT2 SHORT_BINBYTES BINBYTES BYTEARRAY8 SHORT_BINUNICODE BINUNICODE".split())
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}


def unpickled(value: bytes) -> dict[str, bytes | Array]:
    """The content of a pickled dict of bytes and numpy arrays. Raises: UntrustedError."""
    try:
        content = _parse(value)
        if type(content) is not dict or len(content) > MAX_FIELDS:
            raise UntrustedError(f"it is not a pickled dict of at most {MAX_FIELDS} fields")
        return {name: _array_or_bytes(name, field) for name, field in content.items()}
    except UntrustedError:
        raise
    except (ValueError, IndexError, KeyError) as error:  # IndexError: an empty stack; KeyError: an empty memo
        raise UntrustedError("it is not a pickle, or a damaged one") from error


def _parse(value: bytes) -> object:
    """What the opcodes leave on the stack, with a `_Call` for each call."""
    stack, memo = [], {}
    for count, (opcode, argument, position) in enumerate(pickletools.genops(value), start=1):
        if count > MAX_OPCODES:
            raise UntrustedError(f"its pickle has more than {MAX_OPCODES} opcodes")
        name = opcode.name
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            parts = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(parts)))
        elif name == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif name in ("SETITEM", "SETITEMS"):
            items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            names = [type(key) is str and len(key) <= MAX_NAME for key in items[::2]]
            if type(stack[-1]) is not dict or len(items) % 2 or not all(names):
                raise UntrustedError("its pickle has a dict whose keys are not short texts")
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_global(stack.pop(-2), stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not _Global:
                raise UntrustedError("its pickle calls what is not a function")
            stack.append(_Call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if type(stack[-1]) is not _Call or stack[-1].state is not None:
                raise UntrustedError("its pickle changes what is not an array")
            stack[-1].state = state
        elif name == "STOP":
            if len(stack) != 1 or position + 1 != len(value):
                raise UntrustedError("its pickle leaves something over")
        elif name not in ("PROTO", "FRAME"):
            raise UntrustedError(f"its pickle uses the opcode {name}, which no published one does; nothing was run")
    return stack[0]


def _pop_to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not MARK:
        items.append(item)
    return items[::-1]


def _global(module: object, name: object) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise UntrustedError("its pickle computes the name of a function; nothing was run")
    full = f"{module}.{name}"
    for old, new in OLD_NAMES.items():
        full = new + full.removeprefix(old) if full.startswith(old) else full
    if full not in Names.ALL:
        raise UntrustedError(f"its pickle asks for {full[:80]!r}, which no published one does; nothing was run")
    return _Global(full)


def _array_or_bytes(name: str, field: object) -> bytes | Array:
    """A field, by the calls that numpy writes: protocols 2 to 4 give an array its state, protocol 5 makes it of a buffer."""
    field = _bytes(field)
    match field:
        case bytes():
            return field
        case (
            _Call(Names.RECONSTRUCT, _, (1, tuple(shape), _Call(Names.DTYPE, (str(kind), *_)), bool(), data))
            | _Call(Names.FROM_BUFFER, (data, _Call(Names.DTYPE, (str(kind), *_)), tuple(shape), str(), *_), None)
        ) if type(data := _bytes(data)) is bytes:  # fmt: skip
            return Array(kind, shape, data)
    raise UntrustedError(f"its field {name!r} is neither bytes nor a numpy array of numbers")


def _bytes(data: object) -> object:
    """Bytes in each of their forms, as bytes."""
    match data:
        case bytearray():
            return bytes(data)
        case _Call(Names.ENCODE, (str(text), "latin1")):  # protocol 2
            return text.encode("latin-1")
        case _Call(Names.BYTES, ()):
            return b""
    return data
