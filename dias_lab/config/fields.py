"""Types of Config's fields: a Python type and the rule that its values keep. A part of Config is a dataclass of them."""

import dataclasses
import difflib
import functools
import json
import math
import typing
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, NamedTuple


class Rule(NamedTuple):
    holds: Callable[[object], bool]
    text: str  # the middle of "Config.steps must be above 0, got -1"


Positive = Annotated[int, Rule(lambda value: value > 0, "must be above 0")]
PositiveFloat = Annotated[float, Rule(lambda value: 0 < value < math.inf, "must be above 0, and finite")]
NotNegative = Annotated[int, Rule(lambda value: value >= 0, "must not be negative")]
NotNegativeFloat = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "must not be negative, and finite")]
Seed = Annotated[int, Rule(lambda value: 0 <= value < 2**64, "must not be negative, and below 2**64")]
Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "is a share from 0 to 1")]
CosineDistance = Annotated[float, Rule(lambda value: 0 <= value <= 2, "is a cosine distance from 0 to 2")]
Cosine = Annotated[float, Rule(lambda value: -1 <= value <= 1, "is a cosine from -1 to 1")]
Means = Annotated[str, "numbers"]  # one or three numbers in 0..1 separated by spaces, or nothing
Deviations = Annotated[str, "numbers above 0"]
JsonObject = Annotated[str, "JSON"]
Stage = Annotated[int | str, "stage"]  # a number, also as text; or one or more names


class Part:
    """A dataclass of fields that are read together; its docstring says by whom. Raises ValueError for a wrong value."""

    readers: ClassVar[tuple[str, ...]] = ()  # the methods that read these fields; () where all may
    tasks: ClassVar[tuple[str, ...]] = ()  # the tasks that do
    changes: ClassVar[dict] = {}  # a method's part: what its paper has otherwise than the presets, which are those of DIAS
    on_presets: ClassVar[dict[str, dict]] = {}  # and what single presets ask of it besides

    def __post_init__(self):
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))

    def check(self):
        """What must hold between fields of a whole Config; ValueError says what does not."""


@functools.cache
def hints(part: type) -> dict:
    """The type of each field, its rule included."""
    found = typing.get_type_hints(part, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(part)}


def checked(name: str, value, hint):
    """`value` as the field's type, or ValueError. An int may stand for a float; nothing else is converted."""
    rule = None
    if typing.get_origin(hint) is Annotated:
        hint, rule = typing.get_args(hint)[:2]
    if rule in ("numbers", "numbers above 0"):
        return _numbers(name, value, above_zero=rule != "numbers")
    if rule == "stage":
        return _stage(name, value)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"Config.{name} cannot be {value!r}{nearest(value, choices)}")
        return value
    if hint is float and type(value) is int and abs(value) < 2**1000:  # larger ones are no float
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"Config.{name} must be {hint.__name__}, got {value!r} ({type(value).__name__})")
    if hint is float and value != value:
        raise ValueError(f"Config.{name} is NaN")
    if rule == "JSON":
        _check_json(name, value)
    elif rule is not None and not rule.holds(value):
        raise ValueError(f"Config.{name} {rule.text}, got {value!r}")
    return value


def nearest(name: str, names) -> str:
    """The end of an error message: the name that was probably meant, or all of them."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def _check_json(name: str, text: str):
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Config.{name} is not JSON ({error}): {text!r}") from None
    if not isinstance(value, dict):
        raise ValueError(f"Config.{name} must be a JSON object, got {text!r}")


def _numbers(name: str, value, above_zero: bool) -> str:
    """One spelling for "0.5", 0.5, [0.5, 0.5, 0.5], "0.5,0.5,0.5": numbers separated by spaces."""
    if isinstance(value, str):
        parts = value.replace(",", " ").strip("[]() ").split()
    else:
        parts = value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"Config.{name} needs numbers, got {value!r}") from None
    fit = all(math.isfinite(number) and number > 0 if above_zero else 0 <= number <= 1 for number in numbers)
    if len(numbers) not in (0, 1, 3) or not fit:
        kind = "above 0" if above_zero else "from 0 to 1"
        raise ValueError(f"Config.{name} needs one or three numbers {kind}, or nothing; got {value!r}")
    return " ".join(repr(number) for number in numbers)


def _stage(name: str, value) -> int | str:
    """One spelling: 3 for "3"; "blocks.5 blocks.6" for "blocks.5, blocks.6"."""
    words = value.replace(",", " ").split() if isinstance(value, str) else [value]
    if len(words) == 1 and type(words[0]) is int:
        return value
    if not words or not isinstance(value, str):
        raise ValueError(f"Config.{name} is the number of a stage, or the names of modules, got {value!r}")
    try:
        return int(words[0]) if len(words) == 1 else " ".join(words)
    except ValueError:
        return words[0]
