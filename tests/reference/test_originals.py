"""VideoSAUR and SlotContrast of their authors' own code: names, shapes, which file it is, and the measured numbers."""

import json
import re

import pytest
import torch
from published import load_swollen, near, swell
from test_published_clips import TINY
from test_published_methods import constants, linear, norm, vit
from torch import nn

from dias_lab import reference
from dias_lab.config import Config
from dias_lab.methods import build
from dias_lab.modules.decoder import MLPDecoder
from dias_lab.modules.transition import Past
from dias_lab.reference import originals, published_names
from dias_lab.reference.names import NAMES
from dias_lab.reference.originals import OriginalMixer, OriginalSlotAttention, Predictor, SharpLayer

pytestmark = pytest.mark.xdist_group("reference")


def block(name, D):
    shapes = linear(f"{name}.self_attn.qkv", D, 3 * D) | linear(f"{name}.self_attn.out_proj", D, D)
    shapes |= linear(f"{name}.linear1", D, 4 * D) | linear(f"{name}.linear2", 4 * D, D)
    return shapes | norm(f"{name}.norm1", D) | norm(f"{name}.norm2", D)


def chain(name, widths):
    return {key: shape for i, (a, b) in enumerate(zip(widths, widths[1:])) for key, shape in linear(f"{name}.{2 * i}", a, b).items()}


def published(method, C, patch, L, D, slots=7, table=None, layers=3, alone=False):
    """Name -> shape in martius-lab/videosaur and martius-lab/slotcontrast. `table`: locations of the backbone's own table."""
    shapes = vit("encoder.module.backbone.model", C, 12, patch, table or L, class_position=1, scaled=patch == 14)
    out = "encoder.module.output_transform.layers"
    shapes |= norm(f"{out}.0", C) | linear(f"{out}.1", C, 2 * C) | linear(f"{out}.3", 2 * C, D)
    corrector = "processor.module.corrector"
    shapes |= {f"{corrector}.to_{part}.weight": (D, D) for part in "qkv"}
    shapes |= {f"{corrector}.gru.weight_{side}": (3 * D, D) for side in ("ih", "hh")}
    shapes |= {f"{corrector}.gru.bias_{side}": (3 * D,) for side in ("ih", "hh")}
    shapes |= norm(f"{corrector}.norm_features", D) | norm(f"{corrector}.norm_slots", D)
    shapes |= block("processor.module.predictor.blocks.0", D)
    decoder = "decoder.module"
    if method == "slotcontrast":
        shapes |= {"initializer.slots": (1, slots, D), f"{decoder}.pos_emb": (1, 1, L, D)}
        shapes |= norm(f"{corrector}.mlp.layers.0", D) | linear(f"{corrector}.mlp.layers.1", D, 4 * D)
        shapes |= linear(f"{corrector}.mlp.layers.3", 4 * D, D)
        return shapes | chain(f"{decoder}.mlp.layers", [D, 1024, 1024, 1024, C + 1])
    shapes |= {"initializer.mean": (1, 1, D), "initializer.log_std": (1, 1, D), f"{decoder}.pos_emb": (1, L, D)}
    for number in range(layers):
        shapes |= block(f"{decoder}.allocator.blocks.{number}", D)
    shapes |= {f"{decoder}.to_{part}.weight": (D, D) for part in "qk"}
    shapes |= norm(f"{decoder}.norm_k", D) | norm(f"{decoder}.norm_q", D) | norm(f"{decoder}.norm_memory", D)
    shapes |= chain(f"{decoder}.renderer.layers", [D] + [1024] * (3 + alone))
    return shapes | linear(f"{decoder}.output_transform", 1024, L + (0 if alone else C))


FULL = {  # shapes, keys, values, method, preset
    "videosaur ytvis_dinov2": (published("videosaur", 768, 14, 1369, 64), 256, 92_549_209, "videosaur", "ytvis"),
    "videosaur ytvis": (published("videosaur", 768, 16, 196, 64), 232, 90_490_756, "videosaur", "ytvis"),
    "videosaur movi_c": (
        published("videosaur", 768, 8, 784, 128, layers=2, alone=True), 222, 92_147_984, "videosaur", "movi_c"
    ),
    "slotcontrast ytvis2021": (published("slotcontrast", 768, 14, 1369, 64), 217, 91_022_017, "slotcontrast", "ytvis"),
    "slotcontrast movi_c": (
        published("slotcontrast", 384, 14, 576, 64, 11, 1369), 217, 25_119_745, "slotcontrast", "movi_c"
    ),
    "slotcontrast movi_e": (
        published("slotcontrast", 768, 14, 576, 128, 15, 1369), 217, 91_531_777, "slotcontrast", "movi_e"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_the_sizes_are_read_off_the_file(name):
    shapes, keys, values, method, preset = FULL[name]
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (keys, values)
    fields = originals.sizes(constants(shapes))
    config = Config.preset(preset, method=f"{method}_original", **fields)
    P = shapes["decoder.module.pos_emb"][-2]
    assert config.backbone_size == config.image_size == {1369: 518, 576: 336}.get(P, 224) and config.slot_dim in (64, 128)
    assert (config.num_iterations, config.next_iterations, config.truncation, config.condition) == (3, 2, "none", "none")
    assert config.num_slots == (15 if preset == "movi_e" else 11 if preset == "movi_c" else 7)
    assert ("dynamic_img_size" in config.backbone_arguments) == (name in ("slotcontrast movi_c", "slotcontrast movi_e"))


@pytest.mark.parametrize("name", FULL)
def test_full_size_state_dicts_load_strictly(name):
    """Of most, one block of the backbone alone, for speed: they are all alike."""
    shapes, _, values, method, preset = FULL[name]
    state, fields = constants(shapes), {}
    if name not in ("videosaur ytvis", "slotcontrast movi_c"):
        arguments = json.loads(originals.sizes(state)["backbone_arguments"]) | {"depth": 1}
        state = {one: value for one, value in state.items() if not re.search(r"model\.blocks\.([1-9]|1\d)\.", one)}
        fields, values = {"backbone_arguments": json.dumps(arguments)}, sum(value.numel() for value in state.values())
    model = reference.load({"epoch": 1, "state_dict": state}, method=method, preset=preset, device="cpu", **fields)
    found = model.state_dict()
    assert model.config.method == f"{method}_original" and sum(value.numel() for value in found.values()) == values
    places = {
        "transition.layer.norm_mlp.weight": "processor.module.predictor.blocks.0.norm2.weight",
        "aggregator.norm_slots.bias": "processor.module.corrector.norm_slots.bias",
        "project.3.weight": "encoder.module.output_transform.layers.3.weight",
        "decoder.position": "decoder.module.pos_emb",
    }
    if method == "videosaur":
        places |= {"decoder.render.out.bias": "decoder.module.output_transform.bias", "decoder.norm_key.bias": "decoder.module.norm_k.bias"}
        places["decoder.layers.1.mlp.2.bias"] = "decoder.module.allocator.blocks.1.linear2.bias"
    else:
        places |= {"aggregator.mlp.2.bias": "processor.module.corrector.mlp.layers.3.bias", "initializer.slots": "initializer.slots"}
        side = 37 if preset == "ytvis" else 24  # the backbone's own table stays as it is
        assert model.backbone.grid == (side, side) and model.backbone.model.pos_embed.shape[1] == 1370
    for ours, theirs in places.items():
        assert (found[ours] == state[theirs].flatten()[0]).all(), ours


SMALL = dict(method="videosaur", C=12, patch=14, L=16, D=8, layers=2)


def test_originals_that_do_not_fit_are_refused():
    state = constants(published(**SMALL))
    with pytest.raises(ValueError, match="no backbone is known here that has 12 channels and patches of 14 pixels"):
        reference.load(state, method="videosaur", preset="ytvis")
    for asked in ("slotcontrast", "randsfq", "smoothsa"):
        words = f"published {asked} model for clips.*these are the weights of VideoSAUR, of its authors' own code"
        with pytest.raises(ValueError, match=re.escape(words).replace(r"\.\*", ".*")):
            reference.load(state, method=asked, preset="ytvis", **TINY)


# The measured numbers


def loaded(method, prefix, **parts):
    """The parts in the reference's state, one module's names, in double precision."""
    whole = nn.ModuleDict(parts)
    names = NAMES[f"{method}_original clips"]
    load_swollen(whole, lambda name: published_names(name, names)[0].removeprefix(prefix))
    return whole


@torch.no_grad()
def test_measured_numbers_of_the_predictor_and_the_allocator():
    model = loaded("videosaur", "processor.module.", transition=Predictor(8, 4, 32))
    slots = swell(2, 3, 8, phase=1)
    found = model["transition"](Past((slots,), ()))
    near(found, 35.608346, 154.782501, "-3.641788 -1.076521 2.231451 5.433052", "0.374953 -3.136391 9.662276 -1.726337")
    decoder = nn.ModuleDict({"layers": nn.ModuleList(SharpLayer(8, 4, 32) for _ in range(2))})
    values = swell(2, 5, 8)
    for layer in loaded("videosaur", "decoder.module.", decoder=decoder)["decoder"]["layers"]:
        values, _ = layer(values, slots)
    near(values, 181.381729, 465.979050, "-6.637553 -5.344677 13.062541 10.273118", "-0.890575 3.504779 14.388416 1.617100")


@torch.no_grad()
@pytest.mark.parametrize(
    "method, slots, maps",
    [
        (
            "videosaur",
            (-1.606136, 39.401316, "0.447320 1.877254 0.449588 1.024513", "1.094431 -0.460227 -0.910615 -1.881890"),
            ("0.984731 0.999959 0.999862 0.101731", "0.969091 0.029761 0.000000 0.996702"),
        ),
        (
            "slotcontrast",
            (122.754387, 187.119439, "-1.330619 -0.528278 -0.010535 1.406739", "3.343123 1.549746 4.639557 3.067922"),
            ("0.142564 0.124889 0.010443 0.002222", "0.088266 0.150060 0.001622 0.048038"),
        ),
    ],
)
def test_measured_numbers_of_slot_attention(method, slots, maps):
    aggregator = OriginalSlotAttention(12, 8, 32, 2, method == "slotcontrast")
    model = loaded(method, "processor.module.corrector.", aggregator=aggregator)
    found, attention = model["aggregator"](swell(2, 16, 12), swell(2, 3, 8, phase=1))
    near(found, *slots)
    near(attention[-1], None, None, *maps)


@torch.no_grad()
def test_measured_numbers_of_the_decoders():
    slots, features = swell(2, 3, 8, phase=1), torch.zeros(2, 16, 12, dtype=torch.float64)
    mixer = loaded("videosaur", "decoder.module.", decoder=OriginalMixer(20, 8, 16, 2, 4, 16, 3))["decoder"]
    rebuilt, attention = mixer(features, slots)
    near(rebuilt, 648.108051, 2099.100457, "1.159967 3.094258 1.841401 0.019438", "2.540834 -5.758764 6.401645 -8.379777")
    near(attention, None, None, "0.817092 0.994309 0.117897 0.996997", "0.001336 0.005638 0.003597 0.000173")
    keep = torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(mixer(features, slots, keep)[0], mixer(features, slots[:, :2])[0])
    fields = {name: value for name, value in TINY.items() if name != "decoder_layers"} | dict(decoder_mlp_dim=16, decoder_layers=4)
    model = build(Config.preset("ytvis", method="slotcontrast_original", **fields))
    decoder = loaded("slotcontrast", "decoder.module.", decoder=model.decoder)["decoder"]
    assert isinstance(decoder, MLPDecoder)
    rebuilt, attention = decoder(features, slots)
    near(rebuilt, 526.910110, 1160.870566, "1.251692 3.201678 3.824258 0.980928", "-3.382545 5.213312 7.369351 2.462710")
    near(attention, None, None, "0.005595 0.013067 0.085630 0.003104", "0.414192 0.267573 0.055098 0.077427")


@torch.no_grad()
@pytest.mark.parametrize(
    "method, state, predicted",
    [
        (
            "videosaur",
            (4.970961, 187.393202, "0.193999 1.966580 0.234666 1.222711", "0.975172 -0.529221 -0.611637 -1.428595"),
            (-83.210487, 894.893074, "-4.457387 4.255384 5.815146 -5.168528", "3.944442 1.752919 -14.801482 6.495779"),
        ),
        (
            "slotcontrast",
            (512.064247, 732.737765, "3.023880 -1.356360 3.728447 1.860067", "-0.842669 3.985911 6.941267 2.938019"),
            (202.279384, 967.900203, "-5.334411 1.879738 3.539281 -0.336793", "1.935754 0.583650 -3.588581 10.183721"),
        ),
    ],
)
def test_measured_numbers_of_the_loop(method, state, predicted):
    fields = TINY | dict(project_dim=12, decoder_mlp_dim=16)
    model = build(Config.preset("ytvis", method=f"{method}_original", **fields)).double().eval()
    parts = dict(aggregator=model.aggregator, transition=model.transition)
    loaded(method, "processor.module.", **parts)
    model.project = nn.Identity()
    features = swell(2, 4, 16, 12, phase=0.3).transpose(2, 3).unflatten(3, (4, 4))
    output = model(None, features=features, initial_slots=swell(2, 3, 8, phase=1))
    near(output.slots, *state)
    assert output.iterations == (3, 2, 2, 2)
    near(torch.stack([model.transition(Past((slots,), ())) for slots in output.slots.unbind(1)], dim=1), *predicted)


@pytest.mark.parametrize("method, slots", [("videosaur", 5), ("slotcontrast", 3)])
def test_originals_run_and_train(method, slots):
    """VideoSAUR draws in evaluation, too, and any number of slots; SlotContrast has learned ones."""
    fields = TINY | dict(slot_mlp_dim=32, project_dim=8, decoder_mlp_dim=16, num_slots=slots)
    alone = dict(similarity_alone=True) if method == "videosaur" else {}
    model = build(Config.preset("ytvis", method=f"{method}_original", **fields, **alone)).train()
    output = model(torch.randn(2, 3, 3, 32, 32))
    terms, weights = model.losses(output, 0.5)
    assert weights == ({"similarity": 0.1} if alone else {"reconstruction": 1.0, "contrast": 0.5})
    sum(terms.values()).backward()
    a, b = (model.eval()(torch.zeros(1, 1, 3, 32, 32), draws=model.draw([0], seed)).slots for seed in (1, 2))
    assert a.shape == (1, 1, slots, 8) and torch.equal(a, b) == (method == "slotcontrast")
