"""TFRecord files of tf.train.Example, read without TensorFlow.

Sources: tensorflow/core/lib/io/record_writer.h; https://protobuf.dev/programming-guides/encoding.

A record is its length (8 bytes), the masked CRC-32C of these, the content and the masked CRC-32C of that. The content is a
protobuf message of three levels; reading its wire format takes a page, and no library on PyPI that does it compares the
checksums. CRC-32C itself is google-crc32c's: in Python it would take longer than all else.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from dias_lab.data.convert.common import ConversionError

WAY_OUT = "Fetch the file again"


class Place(NamedTuple):
    """Where a record's content is."""

    path: Path
    number: int  # of the record in its file, from 0
    start: int  # byte
    length: int  # bytes

    def error(self, problem) -> ConversionError:
        return ConversionError(f"{self.path}: record {self.number}: {problem}. {WAY_OUT}")


def places(path: Path) -> list[Place]:
    """The records of a file, by their lengths alone. Raises: ConversionError if the file is cut short or no TFRecord file."""
    found, start, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            head, here = file.read(12), Place(path, len(found), start, 0)
            if len(head) < 12:
                raise here.error("the file is cut short in the record's length")
            length = int.from_bytes(head[:8], "little")
            if masked(head[:8]) != head[8:]:
                raise here.error("its length fails its checksum, so bits have changed, or this is no TFRecord file")
            if start + length + 16 > size:
                raise here.error(f"the file is cut short: the record ends at byte {start + length + 16:,}, the file at {size:,}")
            found.append(here._replace(start=start + 12, length=length))
            start += length + 16
    return found


def masked(content: bytes) -> bytes:
    """The checksum as it is stored: turned by 15 bits and moved, for checksums of checksums are weak."""
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def example(place: Place, names: set[str]) -> dict[str, list | np.ndarray]:
    """The features of these names, as far as the record has them: lists of bytes or int, float32 arrays.

    Raises: ConversionError that names file and record, if a checksum fails or this is no tf.train.Example.
    """
    with place.path.open("rb") as file:
        file.seek(place.start)
        content, checksum = file.read(place.length), file.read(4)
    if masked(content) != checksum:
        raise place.error("its content fails its checksum: bits have changed")
    found = {}
    try:
        for features in _field(memoryview(content), 1):
            for entry in _field(features, 1):
                name = bytes(next(_field(entry, 1), b"")).decode()
                for feature in _field(entry, 2) if name in names else ():
                    found[name] = _values(feature)
    except (ValueError, IndexError, AttributeError, TypeError, struct.error) as error:
        raise place.error(f"it is no tf.train.Example ({error})") from error
    return found


def _values(feature: memoryview) -> list | np.ndarray:
    """A feature's list: of bytes (field 1), floats (2) or integers (3); numbers are packed, or stand alone."""
    for kind, content in _fields(feature):
        values = list(_field(content, 1))
        if kind == 1:
            return [bytes(value) for value in values]
        if kind == 2:
            return np.frombuffer(b"".join(values), "<f4")
        numbers = [number for value in values for number in ([value] if isinstance(value, int) else _varints(value))]
        return [number - (number >> 63 << 64) for number in numbers]
    return []


def _field(message: memoryview, number: int) -> Iterator:
    return (value for found, value in _fields(message) if found == number)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers and values of a message's fields: integers, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if (kind := tag & 7) == 0:
            value, at = _varint(message, at)
        elif kind in (1, 2, 5):
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if at > len(message):
            raise ValueError("a field is cut short")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
        if (shift := shift + 7) > 63:
            raise ValueError("a number of more than 64 bits")


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
