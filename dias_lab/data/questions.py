"""Questions about the clips of a store, in a file beside it: of the built-in world with physics (asked.py), or converted.

questions-<split>.json is an object: records, 16 digits of the store's fingerprint; about, how the questions were made and how
many there are; questions, a list of `Question`s as objects; and its own checksum.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dias_lab import files


class Question(NamedTuple):
    """A question with its answer: one word, or with options whether each of them is right."""

    clip: int  # its number in the store
    kind: str  # what is asked for, which scores are given by
    words: list[str]
    options: list[list[str]]  # the words of each choice; empty: the answer is one word
    answer: str | list[bool]
    mentions: dict[int, list[float]]  # by place in words, of those for objects: left, top, right, bottom in frame 0, from 0 to 1


def beside(store) -> Path:
    """Where the questions about a store's clips are."""
    return store.path.with_name(f"questions-{store.path.stem}.json")


def write(path: str | Path, store, questions: Sequence[Question], about: dict) -> Path:
    """Write the file, whole or not at all. ValueError: a question that `read` would refuse; OSError."""
    listed = [one._asdict() | {"mentions": {str(place): list(box) for place, box in one.mentions.items()}} for one in questions]
    _checked(path, store, listed)
    plain = json.loads(json.dumps({"records": store.fingerprint()[:16], "about": about, "questions": listed}))
    files.write_text(path, json.dumps({**plain, files.SEAL: files.checksum(plain, 16)}) + "\n")
    return Path(path)


def read(path: str | Path, store) -> list[Question]:
    """The questions about this store's clips. ValueError: of another store, damaged, about a clip that is not there; OSError."""
    found = files.read_object(path, {"records": str, "about": dict, "questions": list})
    if found["records"] != store.fingerprint()[:16]:
        wrong = f"{path} is about another store than {store.path}: its records are {found['records']}"
        raise ValueError(f"{wrong}, the store's {store.fingerprint()[:16]}. Convert the data again")
    return _checked(path, store, found["questions"])


def _checked(path, store, listed: list) -> list[Question]:
    """The questions, as they are listed in the file: mentions have text as keys."""
    meta, questions = store.meta, []
    if meta["kind"] != "video":
        raise ValueError(f"{store.path} holds images; questions are about clips")
    for number, fields in enumerate(listed):
        if not isinstance(fields, dict) or set(fields) != set(Question._fields):
            raise ValueError(f"{path}: question {number} has not the fields {', '.join(Question._fields)}: {fields!r:.200}")
        clip, kind, words, options, answer, mentions = (fields[name] for name in Question._fields)
        if type(clip) is not int or not 0 <= clip < len(meta["clips"]):
            raise ValueError(f"{path}: question {number} is about clip {clip!r}; {store.path} has {len(meta['clips'])} clips")
        right = isinstance(kind, str) and _are_words(words) and isinstance(options, list) and all(map(_are_words, options))
        if right and options:
            right = isinstance(answer, list) and len(answer) == len(options) and all(type(one) is bool for one in answer)
        elif right:
            right = isinstance(answer, str)
        places = {str(place): place for place in range(len(words))} if right else {}
        if not (right and isinstance(mentions, dict) and all(key in places and _is_box(box) for key, box in mentions.items())):
            raise ValueError(f"{path}: question {number} is damaged: {fields!r:.300}")
        questions.append(Question(clip, kind, words, options, answer, {places[key]: box for key, box in mentions.items()}))
    return questions


def _are_words(words) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) and word for word in words)


def _is_box(box) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) and math.isfinite(side) for side in box)
    return numbers and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
