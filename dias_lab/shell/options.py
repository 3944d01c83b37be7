"""The fields of Config as options of `train` and `run`: in groups by what reads them, with their comments as help.

The options typed are a dict of groups, each a dict of the fields that are given or have a default. Nothing checks them
before a Config is made.
"""

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from types import NoneType
from typing import Annotated, TypedDict

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dias_lab.config import PARTS


def _text(metavar: str, nargs, read) -> PrimitiveConstructorSpec:
    """An option of text, which `read` makes of the words typed."""
    return PrimitiveConstructorSpec(nargs, metavar, read, lambda value: True, lambda value: [str(value)])


def place(words: list[str]) -> str:
    """A path as typed is of the working directory; what is not there stays as it is: a name, or one below the root."""
    return str(Path(words[0]).resolve()) if words[0] and Path(words[0]).exists() else words[0]


NUMBERS = dict.fromkeys(["image_mean", "image_std"], _text("NUMBER", "*", " ".join))  # 0.5 0.5 0.5, quoted or not
PLACES = dict.fromkeys(["data", "backbone_weights", "teacher_run", "parent"], _text("PATH", 1, place))
ALIASES = {"parent": ["--from"]}


def group(part: type, names=None, places: bool = False, as_preset: bool = False) -> type:
    """The fields of a dataclass (all, or some names) as one group of options.

    places: paths are read as those of the working directory. as_preset: what is not given is as the preset has it.
    """
    hints, found = typing.get_type_hints(part), {}
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(part), re.MULTILINE))
    read, hint = NUMBERS | (PLACES if places else {}), "(default: as the preset has it)" if as_preset else None
    for name in [field.name for field in dataclasses.fields(part) if names is None or field.name in names]:
        choices = typing.get_args(hints[name])
        kind = choices[0] if NoneType in choices else hints[name]
        about = tyro.conf.arg(help=comments.get(name), aliases=ALIASES.get(name), help_behavior_hint=hint)
        marks = [about, *([read[name]] if name in read else []), *([tyro.conf.FlagConversionOff] if as_preset else [])]
        found[name] = Annotated[kind, *marks]
    kind = TypedDict(part.__name__, found, total=False)
    kind.__doc__ = part.__doc__
    return kind


def of_parts(names=None, **how) -> dict[str, type]:
    """A group for each part of Config, as `group` makes it."""
    return {part.__name__.lower(): group(part, names, **how) for part in PARTS}


def joined(groups: dict[str, type]) -> type:
    """All groups, whose options have no prefix."""
    return TypedDict("Options", {name: tyro.conf.OmitArgPrefixes[one] for name, one in groups.items()})


def filled(kind: type, source) -> dict:
    """Defaults for what `joined` made: the attributes of a Config, or of the like, but for those that are None."""
    names = {group: one.__annotations__ for group, one in typing.get_type_hints(kind).items()}
    found = {group: {name: getattr(source, name) for name in names[group]} for group in names}
    return {group: {name: value for name, value in one.items() if value is not None} for group, one in found.items()}


def values(options: dict) -> dict:
    """Every field of every group."""
    return {name: value for one in options.values() for name, value in one.items()}
