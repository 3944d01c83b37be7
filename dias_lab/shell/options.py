"""The fields of Config as options of `train` and `run`: in groups by what reads them, with their comments as help."""

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Annotated

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from dias_lab.config import PARTS


def _text(metavar: str, nargs, read) -> PrimitiveConstructorSpec:
    """An option of text, which `read` makes of the words typed."""
    return PrimitiveConstructorSpec(nargs, metavar, read, lambda value: True, lambda value: [str(value)])


def _place(words: list[str]) -> str:
    """A path as typed is of the working directory; what is not there stays as it is: a name, or one below the root."""
    return str(Path(words[0]).resolve()) if words[0] and Path(words[0]).exists() else words[0]


NUMBERS = dict.fromkeys(["image_mean", "image_std"], _text("NUMBER", "*", " ".join))  # 0.5 0.5 0.5, quoted or not
PLACES = dict.fromkeys(["data", "backbone_weights", "teacher_run"], _text("PATH", 1, _place))
ALIASES = {"teacher_run": ["--from"]}


def group(part: type, names=None, places: bool = False, as_preset: bool = False) -> type:
    """The fields of a dataclass (all, or some names) as one group of options, without its checks.

    places: paths are read as those of the working directory. as_preset: None, which says that the preset chooses, is
    the default of all.
    """
    hints, comments, fields = typing.get_type_hints(part), _comments(part), []
    for field in dataclasses.fields(part):
        if names is not None and field.name not in names:
            continue
        kind, read = hints[field.name], (NUMBERS | (PLACES if places else {})).get(field.name)
        kind = kind | None if as_preset else kind
        about = {"help": comments.get(field.name), "aliases": ALIASES.get(field.name)}
        about["metavar"] = _metavar(kind) if type(None) in typing.get_args(kind) and not read else None
        about["help_behavior_hint"] = "(default: as the preset has it)" if as_preset else None
        marks = [tyro.conf.arg(**about), *([read] if read else [])]
        fields.append((field.name, Annotated[kind, *marks], None if as_preset else field.default))
    return dataclasses.make_dataclass(part.__name__, fields, namespace={"__doc__": part.__doc__}, frozen=True)


def of_parts(names=None, **how) -> dict[str, type]:
    """A group for each part of Config, as `group` makes it."""
    return {part.__name__.lower(): group(part, names, **how) for part in PARTS}


def joined(groups: dict[str, type]) -> type:
    """One dataclass of all groups, whose options have no prefix."""
    fields = []
    for name, one in groups.items():
        fields.append((name, tyro.conf.OmitArgPrefixes[one], dataclasses.field(default_factory=one)))
    return dataclasses.make_dataclass("Options", fields, namespace={"__doc__": None}, frozen=True)


def filled(kind: type, config):
    """An instance of what `joined` made, with the values that the config has."""
    groups = [one.default_factory for one in dataclasses.fields(kind)]
    return kind(*(one(*(getattr(config, field.name) for field in dataclasses.fields(one))) for one in groups))


def values(options) -> dict:
    """Every field of every group."""
    return {name: value for one in vars(options).values() for name, value in vars(one).items()}


def _comments(part: type) -> dict[str, str]:
    """What stands behind each field in the source."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(part), re.MULTILINE))


def _metavar(kind) -> str:
    """What tyro would show, were the kind not optional: `STR` for str | None."""
    first = typing.get_args(kind)[0]
    if typing.get_origin(first) is list:
        return "STR ..."
    choices = (True, False) if first is bool else typing.get_args(first)
    return f"{{{','.join(map(str, choices))}}}" if choices else first.__name__.upper()
