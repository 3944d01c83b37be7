import json
import typing

import pytest

from dias_lab.config import FORMS, PRESETS, Config
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


def test_config_of_another_version_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"warp": 9}')
    with pytest.raises(ValueError, match="warp"):
        Config.load(tmp_path)
    with pytest.raises(ValueError, match="is it a run directory"):
        Config.load(tmp_path / "nothing")
