"""The types of Config's fields: what each takes, and how it refuses the rest."""

import dataclasses
import typing
from typing import Annotated, Literal

import pytest

from dias_lab.config import Config, fields
from dias_lab.config.fields import Part, Rule, checked, hints, nearest

NAN = float("nan")
TAKEN = {
    fields.Positive: [1, 7],
    fields.PositiveFloat: [1e-9, 2.5],
    fields.NotNegative: [0, 7],
    fields.Seed: [0, 2**64 - 1],
    fields.NotNegativeFloat: [0.0, 2.5],
    fields.Share: [0.0, 0.5, 1.0],
    fields.CosineDistance: [0.0, 1.5, 2.0],
    fields.Cosine: [-1.0, 0.0, 1.0],
    fields.Means: ["", "0.0", "0.1 0.2 0.3"],
    fields.Deviations: ["", "0.5", "0.1 0.2 0.3"],
    fields.Stage: [-1, 3, "blocks.5", "blocks.5 blocks.6"],
    fields.JsonObject: ["{}", '{"pad_type": "same"}'],
    Literal["none", 2]: ["none", 2],
    Annotated[int, Rule(lambda value: value % 2 == 0, "must be even")]: [0, 4],
    int: [-1, 0],
    float: [-1.0, float("inf")],
    str: ["", "x"],
    bool: [True, False],
}
REFUSED = [
    (fields.Positive, 0, "must be above 0, got 0"),
    (fields.Positive, 1.0, r"must be int, got 1.0 \(float\)"),
    (fields.PositiveFloat, 0, "must be above 0, and finite, got 0.0"),
    (fields.PositiveFloat, NAN, "is NaN"),
    (fields.NotNegative, -1, "must not be negative, got -1"),
    (fields.Seed, 2**64, r"below 2\*\*64, got"),
    (fields.NotNegative, "1", r"must be int, got '1' \(str\)"),
    (fields.NotNegativeFloat, -0.1, "must not be negative, and finite, got -0.1"),
    (fields.NotNegativeFloat, None, "must be float, got None"),
    (fields.Share, 1.01, "is a share from 0 to 1, got 1.01"),
    (fields.Share, -0.01, "is a share from 0 to 1, got -0.01"),
    (fields.Share, NAN, "is NaN"),
    (fields.CosineDistance, 2.01, "is a cosine distance from 0 to 2, got 2.01"),
    (fields.CosineDistance, -0.01, "is a cosine distance from 0 to 2, got -0.01"),
    (fields.Cosine, 1.01, "is a cosine from -1 to 1, got 1.01"),
    (fields.Cosine, -2, "is a cosine from -1 to 1, got -2.0"),
    (fields.Means, "a b c", "needs numbers, got 'a b c'"),
    (fields.Means, [0.5, 0.5], "one or three numbers"),
    (fields.Means, "inf", "one or three numbers"),
    (fields.Means, [None], "needs numbers"),
    (fields.Deviations, "0.5 0 0.5", "above 0"),
    (fields.Deviations, -1, "above 0"),
    (fields.Stage, "", "number of a stage, or the names of modules, got ''"),
    (fields.Stage, 1.0, "number of a stage, or the names of modules, got 1.0"),
    (fields.Stage, True, "number of a stage, or the names of modules, got True"),
    (fields.Stage, None, "number of a stage, or the names of modules, got None"),
    (fields.JsonObject, "{pad: 1}", "is not JSON"),
    (fields.JsonObject, "[1]", r"must be a JSON object, got '\[1\]'"),
    (fields.JsonObject, {}, "must be str, got {}"),
    (Literal["none", "merge"], "nome", "cannot be 'nome'; did you mean 'none'"),
    (Literal["none", "merge"], "x", "there are: merge, none"),
    (Literal[1, 2], True, "cannot be True"),
    (Literal[1, 2], 3, "cannot be 3; there are: 1, 2"),
    (Annotated[int, Rule(lambda value: value % 2 == 0, "must be even")], 3, "must be even, got 3"),
    (bool, 1, r"must be bool, got 1 \(int\)"),
    (int, True, r"must be int, got True \(bool\)"),
    (str, 1, r"must be str, got 1 \(int\)"),
]


@pytest.mark.parametrize("hint", TAKEN)
def test_what_keeps_the_rule_is_taken_as_it_is(hint):
    for value in TAKEN[hint]:
        found = checked("warmth", value, hint)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("hint, value, words", REFUSED)
def test_what_breaks_the_rule_is_refused_by_name(hint, value, words):
    with pytest.raises(ValueError, match=f"Config.warmth .*{words}"):
        checked("warmth", value, hint)


def test_every_type_of_a_field_is_tested_here():
    kinds = {hint for hint in hints(Config).values() if typing.get_origin(hint) is not Literal}
    kinds -= {hints(Config)["codebook_size"]}  # its own rule, of which tests/methods/test_quantised.py says more
    assert kinds <= TAKEN.keys() and kinds <= {hint for hint, _, _ in REFUSED}


def test_an_int_may_stand_for_a_float_and_nothing_else_is_converted():
    found = checked("warmth", 1, fields.Share)
    assert found == 1.0 and type(found) is float
    for value in ("1", True, [1]):
        with pytest.raises(ValueError, match="must be float"):
            checked("warmth", value, fields.Share)


@pytest.mark.parametrize(
    "typed, meant", [("3", 3), (" -1 ", -1), ("blocks.5,blocks.6", "blocks.5 blocks.6"), (" a.b,  c ", "a.b c"), ("norm", "norm")]
)
def test_a_stage_has_one_spelling(typed, meant):
    found = checked("warmth", typed, fields.Stage)
    assert found == meant and type(found) is type(meant)


def test_a_part_checks_and_keeps_its_own_fields():
    @dataclasses.dataclass(frozen=True)
    class Own(Part):
        warmth: fields.Share = 1
        mean: fields.Means = (0.5, 0.5, 0.5)

    own = Own()
    assert (own.warmth, type(own.warmth), own.mean) == (1.0, float, "0.5 0.5 0.5")
    with pytest.raises(ValueError, match="Config.warmth is a share"):
        Own(warmth=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.warmth = 0.5


def test_an_error_names_what_was_probably_meant_or_all_there_is():
    assert nearest("cooc", ["coco", "voc"]) == "; did you mean 'coco'?"
    assert nearest("xyz", ["b", "a"]) == "; there are: a, b"
