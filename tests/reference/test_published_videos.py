"""Published weights of RandSF.Q, SlotContrast and VideoSAUR (Genera1Z/RandSF.Q): names, shapes, and the measured numbers."""

import re

import pytest
import torch
from published import near, near_rows, swell, swollen
from test_published_clips import BOXES, SIZES, TINY, clips
from test_published_methods import attention, constants, genera1z, linear, norm, random_state

from dias_lab import losses, reference
from dias_lab.config import Config
from dias_lab.methods.clip import ClipMethod

pytestmark = pytest.mark.xdist_group("reference")


def start(slots, boxes, D):
    """Where slots start: a Gaussian, for all (None) or one each; or boxes."""
    if boxes:
        return linear("initializ.0", 4, D) | linear("initializ.2", D, D)
    return dict.fromkeys(("initializ.mean", "initializ.logstd"), (1, slots or 1, D))


def randsfq(frames=5, boxes=False, similar=False, **sizes):
    """Name -> shape of RandSF.Q: SmoothSA's for videos without the preheating; `similar`: with time similarity."""
    shapes = {name: shape for name, shape in clips(frames, **sizes).items() if not name.startswith("m.initializ.")}
    D, C, L = (sizes.get(*one) for one in (("slot_dim", 256), ("dim", 384), ("locations", 256)))
    more = start(None, boxes, D) | (linear("decode.readout", C, C + L) if similar else {})
    return shapes | {f"m.{name}": shape for name, shape in more.items()}


def port(method, boxes=False, backbone=True, dim=384, hidden=768, D=64, slots=7, locations=256, layers=None, mlp_dim=None):
    """Name -> shape of the re-implemented SlotContrast and VideoSAUR."""
    image = genera1z("dinosaur", backbone, dim, D, hidden, D, 4 * D, locations=locations)
    shapes = {name.replace("ffn.3", "ffn.2"): shape for name, shape in image.items() if not re.match(r"m\.(initializ|decode)\.", name)}
    more = start(slots, boxes, D) | attention("transit.self_attn", D)
    more |= {"transit.linear1.weight": (4 * D, D), "transit.linear2.weight": (D, 4 * D)}
    more |= {f"transit.norm{number}.weight": (D,) for number in (1, 2)} | {"decode.posit_embed._pe": (1, locations, D)}
    if method == "slotcontrast":
        widths = [D] + [mlp_dim or 2048] * ((layers or 4) - 1) + [dim + 1]
        for number, (a, b) in enumerate(zip(widths, widths[1:])):
            more |= linear(f"decode.backbone.{2 * number}", a, b)
        return shapes | {f"m.{name}": shape for name, shape in more.items()}
    more |= norm("decode.norm_m", D) | norm("decode.norm_q", D) | norm("decode.norm_k", D) | norm("decode.render.0", D)
    for layer in (f"decode.allocat.layers.{number}" for number in range(layers or 3)):
        more |= attention(f"{layer}.multihead_attn", D) | {f"{layer}.norm{number}.weight": (D,) for number in (1, 2, 3)}
        more |= {f"{layer}.linear1.weight": (4 * D, D), f"{layer}.linear2.weight": (D, 4 * D)}
    more |= {f"decode.attent.{part}_proj_weight": (D, D) for part in "qk"}
    widths = [D] + [mlp_dim or 1024] * (layers or 3) + [dim + locations]
    for number, (a, b) in enumerate(zip(widths, widths[1:])):
        more |= linear(f"decode.render.{2 * number + 1}", a, b)
    return shapes | {f"m.{name}": shape for name, shape in more.items()}


FULL = {  # method, shapes from boxes or not, keys, values
    "randsfq": ("randsfq", lambda boxes: randsfq(5 + boxes, boxes), (254, 34_047_360), (256, 34_114_176)),
    "randsfq, tsim": ("randsfq", lambda boxes: randsfq(5 + boxes, boxes, similar=True), (256, 34_293_760), (258, 34_360_576)),
    "slotcontrast": ("slotcontrast", lambda boxes: port("slotcontrast", boxes), (214, 31_426_433), (216, 31_430_017)),
    "videosaur": ("videosaur", lambda boxes: port("videosaur", boxes), (245, 25_090_240), (247, 25_093_824)),
}
PLACES = {
    "randsfq": {
        "transition.layer.norm_self.weight": "transit.transit.norm1.weight",
        "transition.layer.norm_cross.weight": "transit.transit.norm2.weight",
        "transition.layer.norm_mlp.weight": "transit.transit.norm3.weight",
        "transition.time.weight": "transit.te.weight",
        "decoder.mask_token": "decode.mask_token",
    },
    "randsfq, tsim": {"readout.bias": "decode.readout.bias"},
    "slotcontrast": {
        "backbone.model.norm.weight": "encode_backbone.1.norm.weight",
        "project.3.bias": "encode_project.3.bias",
        "aggregator.mlp.2.bias": "aggregat.ffn.2.bias",
        "transition.layer.norm_self.weight": "transit.norm1.weight",
        "transition.layer.norm_mlp.weight": "transit.norm2.weight",
        "transition.layer.mlp.0.weight": "transit.linear1.weight",
        "decoder.mlp.6.weight": "decode.backbone.6.weight",
    },
    "videosaur": {
        "decoder.norm_memory.weight": "decode.norm_m.weight",
        "decoder.norm_query.weight": "decode.norm_q.weight",
        "decoder.norm_key.weight": "decode.norm_k.weight",
        "decoder.layers.2.norm_self.weight": "decode.allocat.layers.2.norm1.weight",
        "decoder.layers.2.norm_cross.weight": "decode.allocat.layers.2.norm2.weight",
        "decoder.layers.2.norm_mlp.weight": "decode.allocat.layers.2.norm3.weight",
        "decoder.to_query.weight": "decode.attent.q_proj_weight",
        "decoder.render.7.bias": "decode.render.7.bias",
    },
}


@pytest.mark.parametrize("name, preset", [*((name, "ytvis") for name in FULL), *zip(FULL, ["movi_d", "movi_d", "movi_c", "movi_d"])])
def test_full_size_state_dicts_load_strictly(name, preset):
    method, shapes, *sizes = FULL[name]
    boxed = preset != "ytvis"
    shapes = shapes(boxed)
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == sizes[boxed]
    state = constants(shapes)
    model = reference.load(state, method=method, preset=preset, device="cpu")
    found, config = model.state_dict(), model.config
    assert isinstance(model, ClipMethod) and not model.training and not model.backbone.waiting
    assert sum(value.numel() for value in found.values()) == sizes[boxed][1]
    places = {"boxes.2.bias": "initializ.2.bias"} if boxed else {"initializer.log_std": "initializ.logstd"}
    for ours, theirs in (PLACES[name] | places).items():
        assert (found[ours] == state[f"m.{theirs}"].flatten()[0]).all(), ours
    again = method == "randsfq"
    assert (config.num_iterations, config.next_iterations) == (3, 1 if again else 3)
    assert (config.truncation, config.transition_dropout) == (("none", 0.5) if again else ("bi_level", 0.1))
    wanted = {"similarity": 0.1} if name in ("randsfq, tsim", "videosaur") else {"contrast": 0.5}
    assert {"similarity": config.similarity_weight * (method != "slotcontrast"), "contrast": config.contrast_weight} == {
        "similarity": 0.0, "contrast": 0.0, **wanted
    }  # fmt: skip


@pytest.mark.parametrize("method", ["randsfq", "slotcontrast", "videosaur"])
def test_what_is_published_for_one_data_set_is_so_for_the_others(method):
    fields = [Config.preset(preset, method=method).to_dict() for preset in ("movi_c", "movi_d", "movi_e")]
    assert [{name for name in one if one[name] != fields[0][name]} for one in fields[1:]] == [{"data", "num_slots"}] * 2


# Another method's weights

SMALL = dict(backbone=False, dim=12, hidden=24, D=8, slots=3, locations=16, layers=2, mlp_dim=16)
TINIEST = {
    "smoothsa": clips(3, **SIZES), "randsfq": randsfq(3, **SIZES), "slotcontrast": port("slotcontrast", **SMALL),
    "videosaur": port("videosaur", **SMALL), "dias": genera1z("dias", **SIZES),
}  # fmt: skip
SAID = {
    "smoothsa": "SmoothSA for videos", "randsfq": "RandSF.Q, for videos", "slotcontrast": "SlotContrast, for videos",
    "videosaur": "VideoSAUR, for videos", "dias": "DIAS",
}  # fmt: skip


@pytest.mark.parametrize("given", TINIEST)
@pytest.mark.parametrize("asked", ["smoothsa", "randsfq", "slotcontrast", "videosaur"])
def test_weights_of_another_method_for_videos_are_refused_by_its_name(asked, given):
    if asked == given:
        return
    words = rf"published {asked} model for clips.*these are the weights of {re.escape(SAID[given])}: method=\"{given}\""
    with pytest.raises(ValueError, match=words):
        reference.load(constants(TINIEST[given]), method=asked, preset="ytvis", **TINY)


@pytest.mark.parametrize("method", ["randsfq", "slotcontrast", "videosaur"])
def test_one_missing_name_is_refused_with_it(method):
    state = constants(TINIEST[method])
    del state["m.aggregat.norm2.bias"]
    fields = TINY if method == "randsfq" else PORT | dict(decoder_heads=4)
    with pytest.raises(ValueError, match=f"published {method} model for clips.*: 1 missing: m.aggregat.norm2.bias$"):
        reference.load(state, method=method, preset="ytvis", **fields)


def test_a_method_for_clips_is_refused_with_a_preset_for_images():
    with pytest.raises(ValueError, match=r"randsfq is a method for clips: take a preset for clips \(clips, ytvis, "):
        reference.load({}, method="randsfq", preset="coco")
    with pytest.raises(ValueError, match="of dias no such weights are known here; there are: smoothsa, randsfq, slotcontrast, videosaur"):
        reference.load({}, method="dias", preset="ytvis")


# The measured numbers of tiny models, through the published names

PORT = TINY | dict(project_dim=8, project_hidden_dim=24, decoder_mlp_dim=16)


def tiny(method, shapes, boxes=False, fields=TINY, keys=None):
    assert keys is None or len(shapes) == keys
    model = reference.load(swollen(shapes), method=method, preset="movi_c" if boxes else "ytvis", **fields).double()
    given = dict(boxes=torch.tensor(BOXES, dtype=torch.float64)) if boxes else dict(draws={"slots": swell(2, 3, 8, phase=5)})
    with torch.no_grad():
        return model, model(None, features=swell(2, 4, 12, 4, 4, phase=0.3), **given)


def test_measured_numbers_of_a_tiny_randsfq():
    model, output = tiny("randsfq", randsfq(3, **SIZES), keys=63)
    near_rows(
        output,
        """
        slots 446.448403 1044.142886 | -1.404226 2.737832 8.701947 -15.459889 | 6.318576 4.441667 8.433180 4.869186
        attention - - | 0.472072 0.016433 0.739604 0.587298 | 0.333609 0.333538 0.333617 0.333257
        decoder_attention - - | 0.517457 0.717283 0.515433 0.324713 | 0.333443 0.333317 0.333366 0.333367
        reconstruction -2287.216011 8953.317293 | 5.317947 7.896791 0.416914 -0.013121 | 9.191275 5.043196 5.408662 6.512624
        """,
    )
    terms, weights = model.losses(output, 0.5)
    assert weights == {"reconstruction": 1.0, "contrast": 0.5}
    assert terms["reconstruction"].item() == pytest.approx(50.748296260, rel=1e-4)
    assert terms["contrast"].item() == pytest.approx(2.399477593, rel=1e-4)


def test_measured_numbers_of_a_tiny_randsfq_that_starts_from_boxes():
    """There the rows of padding are boxes of size 0, and stay equal."""
    _, output = tiny("randsfq", randsfq(3, True, **SIZES), boxes=True)
    near(output.slots, 411.596655, 915.701377, "-7.407452 7.578258 3.463534 -8.596038", "-0.363005 5.360542 13.980187 7.517886")
    assert torch.equal(output.slots[1, :, 1], output.slots[1, :, 2])


def test_measured_numbers_of_a_tiny_slotcontrast():
    _, output = tiny("slotcontrast", port("slotcontrast", **SMALL | dict(layers=3)), fields=PORT | dict(decoder_layers=3), keys=38)
    near_rows(
        output,
        """
        slots 806.354114 1578.192372 | -2.016757 1.410022 7.577589 -10.159113 | 15.415693 0.944775 7.934519 1.431499
        attention - - | 0.001621 0.068641 0.130636 0.576979 | 0.240919 0.427578 0.270054 0.461667
        reconstruction -509.848170 33196.955024 | -42.975400 -42.760407 -42.998929 -40.512886 | 17.617118 10.862312 21.379156 12.389501
        """,
    )


def test_measured_numbers_of_a_tiny_videosaur():
    fields = PORT | dict(decoder_layers=2, decoder_heads=4)
    model, output = tiny("videosaur", port("videosaur", **SMALL), fields=fields)
    near_rows(
        output,
        """
        slots 490.799324 1109.318601 | 1.040039 9.629368 1.579803 -10.120435 | 5.256811 -0.464557 6.745171 -0.500059
        decoder_attention - - | 0.279976 0.265001 0.282289 0.228950 | 0.619231 0.767298 0.588861 0.641232
        """,
    )
    near(
        torch.cat([output.reconstruction, output.similarity], dim=2), -963.570800, 11035.814155,
        "-7.206155 -7.012038 -7.085435 -6.975243", "-7.928408 -8.195215 -7.760754 -7.931586",
    )  # fmt: skip
    terms, weights = model.losses(output, 0.5)
    assert weights == {"reconstruction": 1.0, "similarity": 0.1}
    assert terms["reconstruction"].item() == pytest.approx(9.184218004, rel=1e-4)
    assert terms["similarity"].item() == pytest.approx(11.476556708, rel=1e-4)
    assert losses.time_similarity_loss(output.similarity, output.features, frames=torch.ones(2, 4, dtype=torch.bool)) == terms["similarity"]


@pytest.mark.parametrize("name", ["transit.norm1.weight", "transit.norm2.weight"])
def test_a_norm_in_another_place_shows_on_the_second_frame_alone(name):
    shapes = port("slotcontrast", **SMALL | dict(layers=3))
    state, fields = swollen(shapes), PORT | dict(decoder_layers=3)
    _, right = tiny("slotcontrast", shapes, fields=fields)
    state[f"m.{name}"] = state[f"m.{name}"].flip(0)
    model = reference.load(state, method="slotcontrast", preset="ytvis", **fields).double()
    wrong = model(None, features=swell(2, 4, 12, 4, 4, phase=0.3)).slots
    gap = (wrong - right.slots).abs().amax(dim=(0, 2, 3))
    assert gap[0] < 1e-9 and (gap[1:] > 1e-2).all()


@pytest.mark.parametrize("row", [1, 2])
def test_a_row_of_the_time_table_shows_on_later_frames_alone(row):
    """Row 1 is the slots' of the frame before; row 0 the features'; row 2 is read in training alone."""
    state = swollen(randsfq(3, **SIZES))
    _, right = tiny("randsfq", randsfq(3, **SIZES))
    state["m.transit.te.weight"][row] += 1
    model = reference.load(state, method="randsfq", preset="ytvis", **TINY).double()
    wrong = model(None, features=swell(2, 4, 12, 4, 4, phase=0.3), draws={"slots": swell(2, 3, 8, phase=5)}).slots
    gap = (wrong - right.slots).abs().amax(dim=(0, 2, 3))
    assert gap[0] < 1e-9 and ((gap[1:] > 1e-3).all() if row == 1 else (gap < 1e-9).all())


@pytest.mark.parametrize("method", ["randsfq", "slotcontrast", "videosaur"])
def test_a_clip_longer_than_the_trained_window_runs_and_streams(method):
    """RandSF.Q looks back as far as its table goes; the others have no table."""
    fields = TINY if method == "randsfq" else PORT | dict(decoder_heads=4)
    model = reference.load(random_state(TINIEST[method]), method=method, preset="ytvis", **fields).double()
    clip, state, draws = torch.randn(1, 7, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double(), None, model.draw([0], seed=1)
    whole = model(clip, draws=draws)
    for f in range(7):
        one, state = model.step(clip[:, f], state, draws=draws)
        torch.testing.assert_close(one.reconstruction, whole.reconstruction[:, f], atol=1e-5, rtol=1e-5)
    assert len(state.past.slots) == (2 if method == "randsfq" else 1)
