"""Sealed JSON: it ends in its own CRC-32, so that a changed bit is noticed."""

import json
import zlib
from collections.abc import Iterable

from dias_lab.data.lmdb_file import StoreError


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
