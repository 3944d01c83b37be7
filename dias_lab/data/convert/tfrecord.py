"""TFRecord files of tf.train.Example, read without TensorFlow.

Sources: tensorflow/core/lib/io/record_writer.h; https://protobuf.dev/programming-guides/encoding.

A record is its length in 8 bytes, their masked CRC-32C, the content and its masked CRC-32C. The content is a protobuf message
of three levels. Its wire format takes the forty lines below, fewer than protobuf's own library would need for the schema. The
checksum is google-crc32c's: in Python it would take longer than all the rest.
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
    """Where a record's content is: its number in the file, from 0, its first byte and how many there are."""

    path: Path
    number: int
    start: int
    length: int

    def error(self, problem) -> ConversionError:
        return ConversionError(f"{self.path}: record {self.number}: {problem}. {WAY_OUT}")


def places(path: Path) -> list[Place]:
    """The records of a file, by their lengths alone. Raises: ConversionError if the file is cut short or no TFRecord file."""
    found, start, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            head = file.read(12)
            here = Place(path, len(found), start + 12, int.from_bytes(head[:8], "little"))
            if len(head) < 12:
                raise here.error("the file is cut short in the record's length")
            if masked(head[:8]) != head[8:]:
                raise here.error("its length fails its checksum, so bits have changed, or this is no TFRecord file")
            if (start := here.start + here.length + 4) > size:
                raise here.error(f"the file is cut short: the record ends at byte {start:,}, the file at {size:,}")
            found.append(here)
    return found


def masked(content: bytes) -> bytes:
    """The checksum as it is stored: turned by 15 bits, and a constant added."""
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
        for entry in (entry for features in _field(memoryview(content), 1) for entry in _field(features, 1)):
            name = bytes(next(_field(entry, 1), b"")).decode()
            for feature in _field(entry, 2) if name in names else ():
                found[name] = _values(feature)
    except (ValueError, IndexError, TypeError) as error:
        raise place.error(f"it is no tf.train.Example ({error})") from error
    return found


def _values(feature: memoryview) -> list | np.ndarray:
    """A feature's list: of bytes (field 1), floats (2) or integers (3). Numbers stand alone, or packed in bytes."""
    kind, content = next(_fields(feature), (1, b""))
    values = list(_field(content, 1))
    if kind == 1:
        return [bytes(memoryview(value)) for value in values]
    if kind == 2:
        return np.frombuffer(b"".join(values), "<f4")
    numbers = [number for value in values for number in ([value] if isinstance(value, int) else _packed(value))]
    return [number - (number >> 63 << 64) for number in numbers]


def _packed(content: memoryview) -> Iterator[int]:
    at = 0
    while at < len(content):
        number, at = _varint(content, at)
        yield number


def _field(message: memoryview, number: int) -> Iterator:
    return (value for found, value in _fields(message) if found == number)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The numbers of a message's fields, and their values: integers, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if (kind := tag & 7) not in (0, 1, 2, 5):
            raise ValueError(f"a field of the wire type {kind}")
        value, at = _varint(message, at) if kind in (0, 2) else ({1: 8, 5: 4}[kind], at)
        if kind:
            value, at = message[at : at + value], at + value
        if at > len(message):
            raise ValueError("a field is cut short")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for place in range(10):
        value |= (message[at + place] & 127) << 7 * place
        if message[at + place] < 128:
            return value & (1 << 64) - 1, at + place + 1
    raise ValueError("a number of more than 64 bits")
