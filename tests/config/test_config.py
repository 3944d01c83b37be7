import collections
import dataclasses
import json
import typing

import pytest

from dias_lab.config import FORMS, LATER, METHODS, PARTS, PRESETS, Backbone, Codes, Config, method_class
from dias_lab.config.dias import DIAS
from dias_lab.config.neighbours import SPOT, SmoothSA
from dias_lab.config.slots import Slots
from dias_lab.config.tasks import Heads, Prediction, Reasoning
from dias_lab.config.training import Training
from dias_lab.config.video_neighbours import VideoSAUR
from dias_lab.methods import Method
from dias_lab.metrics import PROTOCOLS


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("form", FORMS)
def test_presets_build_and_come_back_from_json(preset, form, tmp_path):
    config = Config.preset(preset, form)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert Config.load(tmp_path) == config


def test_a_field_by_hand_wins_over_preset_and_form():
    config = Config.preset("coco", form="released", num_slots=11, merging="merge")
    assert (config.num_slots, config.merging, config.matching) == (11, "merge", "identity")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config.preset("cooc"), "did you mean 'coco'"),
        (lambda: Config.preset("coco", form="compleat"), "did you mean 'complete'"),
        (lambda: Config.preset("coco", num_slotz=4), "did you mean 'num_slots'"),
        (lambda: Config.preset("coco").replace(sed=4), "did you mean 'seed'"),
        (lambda: Config(method="dinosour"), "did you mean 'dinosaur'"),
        (lambda: Config.preset("coco", method="dinosour"), "did you mean 'dinosaur'"),
        (lambda: Config(decoder="random-order"), "did you mean 'random_order'"),
        (lambda: Config(num_slots="7"), "num_slots must be int"),
        (lambda: Config(num_slots=True), "num_slots must be int"),
        (lambda: Config(num_slots=0), "num_slots must be above 0"),
        (lambda: Config(learning_rate=float("nan")), "NaN"),
        (lambda: Config(merge_threshold=3), "0 to 2"),
        (lambda: Config(num_iterations=1), "one iteration before and one after"),
        (lambda: Config(backbone_arguments="{pad: 1}"), "not JSON"),
        (lambda: Config(image_mean="nan"), "one or three"),
        (lambda: Config(protocol="diass"), "did you mean 'dias'"),
        (lambda: Config(teacher="before_merging", merging="none"), "needs merging"),
        (lambda: Config(teacher="before_merging", num_iterations=2), "not the first"),
        (lambda: Config(merging="none", num_iterations=1), "not the first"),
        (lambda: Config(image_mean="a b c"), "needs numbers"),
        (lambda: Config(image_std=[0.5, 0.5]), "one or three"),
        (lambda: Config(image_std=0), "above 0"),
    ],
)
def test_wrong_values_are_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("spelling", [0.5, "0.5", [0.5, 0.5, 0.5], "0.5,0.5,0.5", "0.5 0.5 0.5", (0.5, 0.5, 0.5)])
def test_statistics_have_one_meaning_in_all_spellings(spelling):
    assert Config(image_mean=spelling).statistics("image_mean") == (0.5, 0.5, 0.5)
    assert Config().statistics("image_mean") is None
    assert Config(image_mean=[0.48145466, 0.4578275, 0.40821073]).statistics("image_mean")[0] == 0.48145466


def test_protocols_are_those_of_the_metrics():
    assert set(typing.get_args(typing.get_type_hints(Config)["protocol"])) == set(PROTOCOLS)


def test_parameters_of_a_notebook_make_a_config():
    namespace = {"preset": "coco", "form": "released", "num_slots": 5, "steps": None, "unrelated": object()}
    assert Config.from_parameters(namespace) == Config.preset("coco", "released", num_slots=5)
    assert Config.from_parameters({}) == Config.preset("scenes")


@pytest.mark.parametrize("typed, meant", [("blocks.5, blocks.6", "blocks.5 blocks.6"), ("3", 3), (3, 3)])
def test_a_stage_of_the_backbone_comes_back_as_it_is_meant(typed, meant, tmp_path):
    config = Config.from_parameters({"preset": "coco", "backbone_stage": typed})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert Config.load(tmp_path) == config and config.backbone_stage == meant


def test_config_of_another_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"warp": 9}')
    with pytest.raises(ValueError, match="warp"):
        Config.load(tmp_path)
    with pytest.raises(ValueError, match="is it a run directory"):
        Config.load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        Config.load(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"null", b"7", b'"text"', b'{"backbone_size": 120', b"{\xff", b"", b"[" * 100_000])
def test_a_config_that_is_none_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json (is not JSON|must hold)"):
        Config.load(tmp_path)


def preset_for(method):
    return "coco" if METHODS[method].place else "ytvis"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", [["backbone"], ["method"], ["seed", "num_slots", "steps"], None])
def test_missing_fields_are_an_error_that_lists_them(missing, method, tmp_path):
    fields = Config.preset(preset_for(method), method=method).to_dict()
    missing = missing or [name for name in fields if name not in Config(**fields).unread() | LATER]  # {}
    left = {name: value for name, value in fields.items() if name not in missing}
    (tmp_path / "config.json").write_text(json.dumps(left))
    with pytest.raises(ValueError, match=f"config.json lacks the fields .*{', .*'.join(missing[:3])}"):
        Config.load(tmp_path)


@pytest.mark.parametrize("method", [method for method, entry in METHODS.items() if entry.place])
def test_a_config_of_an_older_version_lacks_what_came_later_and_what_others_read(method, tmp_path):
    config = Config.preset("coco", method=method)
    config = config.replace(**{name: getattr(Config(), name) for name in LATER}) if method == "dias" else config
    left = {name: value for name, value in config.to_dict().items() if name not in LATER | config.unread()}
    (tmp_path / "config.json").write_text(json.dumps(left))
    assert Config.load(tmp_path).to_dict().items() >= left.items()
    if method == "dias":
        assert Config.load(tmp_path) == config


@pytest.mark.parametrize("name, value", [("steps", "x"), ("seed", -1), ("backbone_arguments", "["), ("method", "dios"), ("batch_size", None)])
def test_a_value_of_another_kind_is_named_with_the_file(name, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(Config.preset("coco").to_dict() | {name: value}))
    with pytest.raises(ValueError, match=f"config.json.*(Config.{name}|lacks the fields)"):
        Config.load(tmp_path)


@pytest.mark.parametrize("field", Config.field_names())
def test_every_field_refuses_what_is_no_value_of_it(field):
    with pytest.raises(ValueError, match=f"Config.{field} "):
        Config(**{field: ["no"]})


def test_a_config_cannot_be_changed_in_place():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert config.replace(seed=1).seed == 1 and config.seed == 42


# The parts


def own(part) -> list[str]:
    return [field.name for field in dataclasses.fields(part)]


def test_no_field_is_in_two_parts_and_none_outside():
    counts = collections.Counter(name for part in PARTS for name in own(part))
    assert [name for name, count in counts.items() if count > 1] == []
    assert list(counts) == Config.field_names() == list(Config().to_dict())  # in the order of the parts


@pytest.mark.parametrize("part", PARTS)
def test_a_part_says_who_reads_it_and_holds_values_of_the_config(part):
    assert part.__doc__ and set(part.readers) <= METHODS.keys()
    config = Config.preset("shapes", method="spot")
    assert config.of(part) == {name: getattr(config, name) for name in own(part)}


def test_the_fields_of_one_part():
    config = Config.preset("coco", backbone_size=98)
    found = config.of(Backbone)
    assert found["backbone_size"] == 98 and "seed" not in found and found.keys() == set(own(Backbone))
    assert config.of(SmoothSA) == {"preheat_weight": 100.0, "preheat_detached": 0.1, "preheat_heads": 4}


@pytest.mark.parametrize(
    "method, parts",
    [
        ("dias", [SmoothSA, SPOT, VideoSAUR]),
        ("smoothsa", [DIAS, SPOT, Codes, VideoSAUR]),
        ("spot", [DIAS, SmoothSA, Codes, VideoSAUR]),
        ("dinosaur", [DIAS, SmoothSA, SPOT, Codes, VideoSAUR]),
        ("vqdino", [DIAS, SmoothSA, SPOT, VideoSAUR]),
        ("slate", [DIAS, SmoothSA, SPOT, VideoSAUR]),
        ("slotcontrast", [DIAS, SmoothSA, SPOT, Codes, VideoSAUR]),
        ("videosaur", [DIAS, SmoothSA, SPOT, Codes]),
        ("randsfq", [DIAS, SmoothSA, SPOT, Codes]),
    ],
)
def test_what_only_other_methods_read(method, parts):
    config = Config.preset(preset_for(method), method=method)
    assert config.unread() == {name for part in [*parts, Heads, Prediction, Reasoning] for name in own(part)}
    assert not config.unread() & {"method", "seed", "data", *own(Backbone), *own(Slots), *own(Training)}


# Methods


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_class_that_is_imported_on_first_use(method):
    assert issubclass(method_class(method), Method)


def test_a_method_for_clips_alone_is_refused_for_images():
    with pytest.raises(ValueError, match=r"videosaur is a method for clips: take a preset for clips \(clips, ytvis, .*or clip_frames"):
        Config.preset("coco", method="videosaur")
    with pytest.raises(ValueError, match="no method 'videosaur'; there are: dias, dinosaur, slate"):
        method_class("videosaur", clips=False)
    assert method_class("videosaur") is method_class("videosaur", clips=True)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="no method 'dinosour'; did you mean 'dinosaur'"):
        method_class("dinosour")


@pytest.mark.parametrize("method, preset", [
    (method, preset) for method in METHODS for preset in PRESETS if METHODS[method].place or PRESETS[preset].get("clip_frames")
])  # fmt: skip
def test_a_method_changes_what_its_part_says_and_nothing_else(method, preset):
    part, plain = METHODS[method].part, Config.preset(preset).to_dict()
    expected = plain | {"method": method} | part.changes | part.on_presets.get(preset, {})
    assert Config.preset(preset, method=method).to_dict() == expected
    if preset not in part.on_presets:  # whose own changes a replacement does not bring
        assert Config.preset(preset).replace(method=method).to_dict() == expected
    assert set(part.changes).union(*part.on_presets.values()) <= set(Config.field_names())


def test_a_method_brings_its_own_settings_and_those_by_hand_win():
    spot = Config.preset("coco", method="spot")
    assert (spot.gradient_clip, spot.gradient_norm) == (0.3, "largest")
    assert {"merging", "target", "preheat_heads"} <= spot.unread() and not spot.unread() & {"stage", "num_slots", "steps"}
    assert Config.preset("coco").replace(method="spot") == spot
    assert spot.replace(method="spot", gradient_clip=2.0).gradient_clip == 2.0
    assert Config.preset("coco", method="spot", gradient_clip=1.0).gradient_clip == 1.0
    assert Config.from_parameters({"preset": "coco", "method": "dinosaur"}).decoder == "mlp"
    assert Config.from_parameters({"preset": "shapes", "method": "dinosaur"}).decoder == "raster"
    assert Config.preset("coco", method="dias") == Config.preset("coco")


# Tasks


def test_a_task_has_its_own_schedule_and_the_rest_of_its_parent():
    parent = Config.preset("scenes", num_slots=5)
    config = parent.for_task("recognition", "runs/x", head_dim=8)
    assert (config.task, config.parent, config.steps, config.head_dim, config.num_slots) == ("recognition", "runs/x", 2000, 8, 5)
    unread = {name for part in (Prediction, Reasoning, SmoothSA, SPOT, VideoSAUR) for name in own(part)}
    assert config.unread() == unread
    assert parent.for_task("reasoning", "runs/x").unread().isdisjoint(own(Heads))


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"task": "recogniton"}, "did you mean 'recognition'"),
        ({"task": "recognition"}, "name its run as parent"),
        ({"task": "prediction", "parent": "runs/x", "prediction_heads": 5}, "prediction_heads = 5 does not divide"),
        ({"task": "reasoning", "parent": "runs/x", "reasoning_dim": 100}, "reasoning_heads = 8 does not divide"),
        ({"slots_of": "kmeans"}, "did you mean 'k_means'"),
    ],
)
def test_tasks_that_cannot_be(fields, told):
    with pytest.raises(ValueError, match=told):
        Config.preset("scenes", **fields)
