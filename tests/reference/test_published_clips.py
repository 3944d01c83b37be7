"""Published weights of SmoothSA for videos: names and shapes written out here, and the measured numbers through these names."""

import re

import pytest
import torch
from published import near_rows, swell, swollen
from test_published_methods import SMALL_SIZES, attention, constants, genera1z, linear, norm, random_state

from dias_lab import reference
from dias_lab.methods.clip import ClipMethod

pytestmark = pytest.mark.xdist_group("reference")


def clips(frames=5, boxes=False, slot_dim=256, width=384, slot_mlp_dim=1024, **sizes):
    """Name -> shape of SmoothSA for videos: as for images, with a transition; with boxes, without a mean."""
    shapes = genera1z("smoothsa", slot_dim=slot_dim, slot_mlp_dim=slot_mlp_dim, **sizes)
    more = {"transit.te.weight": (frames, slot_dim)} | linear("transit.proji", width, slot_dim)
    more |= attention("transit.transit.self_attn", slot_dim) | attention("transit.transit.multihead_attn", slot_dim)
    more |= {"transit.transit.linear1.weight": (slot_mlp_dim, slot_dim), "transit.transit.linear2.weight": (slot_dim, slot_mlp_dim)}
    more |= {f"transit.transit.norm{number}.weight": (slot_dim,) for number in (1, 2, 3)}
    if boxes:
        del shapes["m.initializ.mean"]
        more |= linear("initializ.mlp.0", 4, slot_dim) | linear("initializ.mlp.2", slot_dim, slot_dim)
        more |= norm("initializ.mlp.3", slot_dim)
    return shapes | {f"m.{name}": shape for name, shape in more.items()}


BOXES = [[[0.1, 0.2, 0.4, 0.6], [0.5, 0.1, 0.9, 0.3], [0, 0, 0, 0]], [[0.2, 0.2, 0.3, 0.9], [-1] * 4, [-1] * 4]]
TINY = dict(
    backbone="fourier", fourier_dim=12, fourier_stride=8, backbone_size=32, image_size=32, num_slots=3, slot_dim=8, slot_mlp_dim=32,
    decoder_layers=2, decoder_heads=2, decoder_mlp_dim=24, transition_frames=3, device="cpu",
)  # fmt: skip
SIZES = {**SMALL_SIZES, "slots": 3, "width": 12, "hidden": 12, "slot_mlp_dim": 32}
FULL = {"ytvis": (clips(5), 266, 35_195_265), "movi_c": (clips(6, boxes=True), 271, 35_262_849)}
SLOTS = {"ytvis": 7, "movi_c": 11, "movi_d": 21, "movi_e": 24}
PLACES = {
    "backbone.model.blocks.11.ls2.gamma": "encode_backbone.1.blocks.11.ls2.gamma",
    "initializer.log_std_around": "initializ.logstd2",
    "initializer.block.norm_self.weight": "initializ.qinit.norm1.weight",
    "transition.time.weight": "transit.te.weight",
    "transition.project.bias": "transit.proji.bias",
    "transition.layer.self_attention.in_proj_weight": "transit.transit.self_attn.in_proj_weight",
    "transition.layer.cross_attention.out_proj.weight": "transit.transit.multihead_attn.out_proj.weight",
    "transition.layer.norm_self.weight": "transit.transit.norm1.weight",
    "transition.layer.norm_cross.weight": "transit.transit.norm2.weight",
    "transition.layer.norm_mlp.weight": "transit.transit.norm3.weight",
    "transition.layer.mlp.0.weight": "transit.transit.linear1.weight",
    "transition.layer.mlp.2.weight": "transit.transit.linear2.weight",
}
BOXED = {"boxes.0.weight": "initializ.mlp.0.weight", "boxes.3.bias": "initializ.mlp.3.bias"}


@pytest.mark.parametrize("preset", FULL)
def test_full_size_state_dicts_load_strictly(preset):
    shapes, keys, values = FULL[preset]
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (keys, values)
    state = constants(shapes)
    model = reference.load(state, method="smoothsa", preset=preset, device="cpu")
    found, boxed = model.state_dict(), preset != "ytvis"
    assert isinstance(model, ClipMethod) and not model.training and not model.backbone.waiting
    assert sum(value.numel() for value in found.values()) == values - 1  # but for detach_flag
    for ours, theirs in (PLACES | (BOXED if boxed else {"initializer.mean": "initializ.mean"})).items():
        assert (found[ours] == state[f"m.{theirs}"].flatten()[0]).all(), ours
    check_fields(model.config, preset)


def check_fields(config, preset):
    boxed = preset != "ytvis"
    said = config.num_slots, config.num_iterations, config.next_iterations, config.transition, config.transition_frames
    assert said == (SLOTS[preset], 3, 1, "rsfq", 6 if boxed else 5) and config.contrast_weight == 0.5
    assert (config.transition_dropout, config.condition) == (0.5, "boxes" if boxed else "none")


@pytest.mark.parametrize("preset", ["movi_d", "movi_e"])
def test_the_other_presets_differ_in_slots_alone(preset):
    fields = {name: value for name, value in TINY.items() if name not in ("num_slots", "transition_frames")}
    config = reference.load(constants(clips(6, True, **SIZES)), method="smoothsa", preset=preset, **fields).config
    check_fields(config, preset)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("m.transit.te.weight"), "1 missing: m.transit.te.weight"),
        (lambda state: state.update({"m.transit.more": torch.zeros(1)}), "1 unknown: m.transit.more"),
        (
            lambda state: state.update({"m.transit.te.weight": torch.zeros(6, 8)}),
            "1 wrong: m.transit.te.weight is (6, 8), not (3, 8)",
        ),
    ],
)
def test_one_wrong_name_or_shape_is_refused_with_its_name(change, words):
    state = constants(clips(3, **SIZES))
    change(state)
    with pytest.raises(ValueError, match=re.escape(words)):
        reference.load(state, method="smoothsa", preset="ytvis", **TINY)


IMAGES, VIDEOS = "these are the weights of SmoothSA for images: method=.*preset for images", "these are the weights of SmoothSA for videos"


@pytest.mark.parametrize(
    "state, method, preset, words",
    [
        (genera1z("smoothsa", **SIZES), "smoothsa", "ytvis", f"no.*published smoothsa model for clips.*12 missing: m.transit.transit.self_attn.*{IMAGES}"),
        (clips(3, **SIZES), "smoothsa", "coco", f"published smoothsa model of.*12 unknown: m.transit.te.weight.*{VIDEOS}"),
        (clips(3, **SIZES), "dias", "coco", VIDEOS),
        (genera1z("dias", **SIZES), "smoothsa", "movi_c", "these are the weights of DIAS"),
        (clips(3, True, **SIZES), "smoothsa", "ytvis", "1 missing: m.initializ.mean; 6 unknown: m.initializ.mlp"),
        (clips(3, **SIZES), "smoothsa", "movi_e", "6 missing: .*m.initializ.mlp.*1 unknown: m.initializ.mean"),
        ({}, "dias", "ytvis", "preset 'ytvis' is for clips, and of dias no such weights are known here; there are: smoothsa"),
    ],
)
def test_weights_for_the_other_kind_of_pictures_are_refused(state, method, preset, words):
    with pytest.raises(ValueError, match=words):
        reference.load(constants(state), method=method, preset=preset, **TINY)


# The measured numbers of a tiny model, through the published names


def tiny(boxes):
    shapes = clips(3, boxes, **SIZES)
    assert len(shapes) == 75 + 5 * boxes
    model = reference.load(swollen(shapes), method="smoothsa", preset="movi_c" if boxes else "ytvis", **TINY)
    return model.double(), {"slots": swell(2, 3, 8, phase=5), "restart": swell(2, 3, 8, phase=6)}


@torch.no_grad()
def test_measured_numbers_of_a_tiny_model():
    model, draws = tiny(boxes=False)
    output = model(None, features=swell(2, 4, 12, 4, 4, phase=0.3), draws=draws)
    near_rows(
        output,
        """
        preheated 256.348684 563.740812 | 9.929471 17.134555 -18.348279 21.484297 | 3.958334 14.712378 -16.416403 0.894231
        slots 316.925961 970.573973 | -2.551313 3.413699 6.676162 -17.960276 | -1.901732 4.890702 5.807604 3.649385
        attention - - | 0.171741 0.591934 0.294730 0.372664 | 0.352840 0.364464 0.352303 0.349322
        decoder_attention - - | 0.296019 0.322223 0.247141 0.672480 | 0.345828 0.340643 0.350626 0.343441
        reconstruction -2991.996238 10143.136116 | -9.361379 -8.172737 -8.977530 -10.781190 | -2.468027 -5.663914 -8.259284 -7.906947
        """,
    )


@torch.no_grad()
def test_measured_numbers_of_a_tiny_model_that_starts_from_boxes():
    model, draws = tiny(boxes=True)
    boxes = torch.tensor(BOXES, dtype=torch.float64)
    output = model(None, features=swell(2, 4, 12, 4, 4, phase=0.3), draws=draws, boxes=boxes)
    near_rows(
        output,
        """
        slots 342.303805 957.853292 | -9.292792 18.446500 -2.397616 -6.172963 | 8.128151 -0.173888 5.100385 3.444701
        reconstruction -2944.338485 10640.139562 | -10.986864 -12.194703 -8.705868 -5.861676 | 13.252632 10.160717 9.917988 10.973342
        """,
    )


def test_published_weights_run_on_whole_clips_and_on_streams():
    model = reference.load(random_state(clips(3, **SIZES)), method="smoothsa", preset="ytvis", **TINY).double()
    clip, state = torch.randn(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double(), None
    draws = model.draw([0], seed=1)
    whole = model(clip, draws=draws)
    for f in range(4):
        one, state = model.step(clip[:, f], state, draws=draws)
        torch.testing.assert_close(one.reconstruction, whole.reconstruction[:, f], atol=1e-5, rtol=1e-5)
