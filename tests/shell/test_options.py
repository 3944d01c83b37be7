"""The fields of Config as options: defaults, paths, groups in the help."""

import dataclasses
import re
from typing import Literal

import pytest
import tyro

from dias_lab.book import ordered
from dias_lab.config import Config
from dias_lab.files import write_json
from dias_lab.shell import Refused, book, options
from dias_lab.shell.models import train_defaults


def defaults(*words):
    """What train would train with: every value of its options."""
    fields = train_defaults([str(word) for word in words])["fields"]
    return Config(**options.values(fields))


def test_preset_form_and_method_choose_the_defaults_of_train():
    assert defaults() == Config.preset("scenes")
    assert defaults("--form=released", "--steps", 3) == Config.preset("scenes", "released")  # the second pass takes --steps
    assert defaults("--preset", "coco", "--method", "spot") == Config.preset("coco", method="spot")


def test_from_is_the_parent_and_a_path_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    kind = options.joined(options.of_parts(places=True))
    for words in (["--from", "other"], ["--from=other"], ["--parent", "other"], ["--teacher-run", "other"]):
        name = "teacher_run" if "--teacher-run" in words else "parent"
        assert options.values(tyro.cli(kind, args=words)) == {name: str(tmp_path / "other")}
    assert options.values(tyro.cli(kind, args=["--from", "elsewhere"]))["parent"] == "elsewhere"  # fit looks below the root


@pytest.mark.parametrize(
    "words, meant",
    [
        (["--backbone-stage", "blocks.5 blocks.6"], "blocks.5 blocks.6"),
        (["--backbone-stage", "blocks.5,blocks.6"], "blocks.5 blocks.6"),
        (["--backbone-stage", "-2"], -2),
    ],
)
def test_a_stage_is_a_number_or_names(words, meant):
    typed = options.values(tyro.cli(options.joined(options.of_parts()), args=words))
    assert Config(**typed).backbone_stage == meant
    typed = options.values(tyro.cli(book.Fields, args=words))
    assert Config(backbone_stage=typed["backbone_stage"]).backbone_stage == meant


def test_the_run_to_start_from_has_the_defaults_of_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = Config.preset("coco", "released", steps=7, parent="runs/before")
    write_json(tmp_path / "base" / "config.json", theirs.to_dict())
    assert defaults("--from", "base") == defaults("--parent=base", "--steps", 3) == theirs  # the second pass takes --from
    assert defaults("--from", "base", "--preset", "voc") == Config.preset("voc")
    assert defaults("--from", "base", "--form", "released") == Config.preset("scenes", "released")
    spot = ("--from", "base", "--method", "spot", "--stage", "2")
    assert defaults(*spot) == Config.preset("scenes", method="spot")  # the teacher of stage 2 has none
    assert defaults(*spot, "--teacher-run", "base") == theirs
    assert defaults("--from", "gone", "--run-dir", "base") == theirs  # the run itself, which goes on without its parent
    with pytest.raises(Refused, match="no config.json at .*nothing"):
        defaults("--from", "nothing")


def test_the_options_of_run_are_those_of_the_book():
    parsed = options.values(tyro.cli(book.Fields, args="--only 01 05 --steps 7 --compile True --image-mean 0.5 0.4 0.3".split()))
    assert ordered.Options(**parsed) == ordered.Options(only=["01", "05"], steps=7, compile=True, image_mean="0.5 0.4 0.3")
    assert ordered.Options(**options.values(book.DEFAULTS)) == ordered.Options()


@dataclasses.dataclass(frozen=True)
class Size:
    """How large it is. Everybody reads these."""

    width: int = 3  # pixels from left to right
    height: int = 4


@dataclasses.dataclass(frozen=True)
class Look:
    """How it looks. Painters read these."""

    colour: Literal["red", "blue"] = "red"  # of the front

    def __post_init__(self):
        if self.colour == "blue":
            raise ValueError("nobody checks the parts, but only the whole")


def test_help_is_in_groups_by_what_reads_the_fields(capsys):
    kind = options.joined({"size": options.group(Size), "look": options.group(Look, as_preset=True)})
    with pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"])
    _, size, look = re.split("size options|look options", capsys.readouterr().out)
    assert "Everybody reads these." in size and "--width INT" in size and "pixels from left to right" in size
    assert "Painters read these." in look and "--colour {red,blue}" in look and "of the front" in look
    assert "as the preset has it" in look and "as the preset has it" not in size
    given = ["--width", "5", "--colour", "blue"]
    assert options.values(tyro.cli(kind, args=given)) == {"width": 5, "colour": "blue"}
    defaults = {"size": {"width": 3, "height": 4}, "look": {}}
    assert options.values(tyro.cli(kind, args=given, default=defaults)) == {"width": 5, "height": 4, "colour": "blue"}
