"""Published weights of STEVE and VVO-TfdT (Genera1Z/VQ-VFM-OCL): names, shapes, and the measured numbers of their parts."""

import pytest
import torch
from published import load_swollen, near, swell
from test_published_clips import TINY
from test_published_methods import attention, constants, genera1z, linear, norm, random_state
from torch import nn

from dias_lab import losses, reference
from dias_lab.methods import checkpoint
from dias_lab.modules.permuted import PermutedDecoder
from dias_lab.reference import published_names
from dias_lab.reference.codes import FixedCodes, PublishedTfdT
from dias_lab.reference.names import NAMES

pytestmark = pytest.mark.xdist_group("reference")


def convolution(name, source, target, side=3, bias=True):
    return {f"{name}.weight": (target, source, side, side)} | ({f"{name}.bias": (target,)} if bias else {})


def published(method, backbone=True, dim=384, hidden=768, D=256, slot_mlp_dim=1024, locations=256, layers=4, mlp_dim=1024, codes=4096):
    """Name -> shape of STEVE (`steve`) and TfdT (`tfdt`), second stage."""
    image = genera1z("dinosaur", backbone, dim, D, hidden, D, slot_mlp_dim, locations=locations)
    shapes = {name[2:]: shape for name, shape in image.items() if not name.startswith(("m.initializ.", "m.decode."))}
    encode = "mediat.encode"
    if method == "tfdt":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("encode_project.")}
        shapes |= linear("encode_project.0", dim, hidden) | linear("encode_project.2", hidden, D)
        for number in (0, 3, 6):
            shapes |= convolution(f"{encode}.0.{number}", dim, dim)
        shapes |= norm(f"{encode}.0.1", dim) | norm(f"{encode}.0.4", dim) | norm(f"{encode}.1", dim)
        shapes |= convolution(f"{encode}.2", dim, D, 1) | linear("mediat.quant.project", 4 * D, D)
        shapes |= {"mediat.quant.codebook.weight": (codes, 4 * D)}
    else:
        shapes |= convolution(f"{encode}.1.0", 3, 64)
        for number in (2, 6, 10):
            shapes |= convolution(f"{encode}.1.{number}", 64, 64, bias=False)
        for number in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
            for part in (0, 2, 4):
                shapes |= convolution(f"{encode}.1.{number}.conv.{part}", 64, 64)
        shapes |= norm(f"{encode}.2", 64) | convolution(f"{encode}.3", 64, D, 1)
        shapes |= {"mediat.codebook.templat.weight": (codes, D)}
    shapes |= linear("initializ.0", 4, D) | linear("initializ.2", D, D) | attention("transit.self_attn", D)
    shapes |= {"transit.linear1.weight": (4 * D, D), "transit.linear2.weight": (D, 4 * D)}
    shapes |= {f"transit.norm{number}.weight": (D,) for number in (1, 2)}
    shapes |= {"decode.bos": (1, 1, D), "decode.posit_embed.pe": (1, locations, D)}
    shapes |= {"decode.norm0.weight": (D,), "decode.readout.weight": (codes, D)}
    for layer, number in ((f"decode.backbone.layers.{number}", number) for number in range(layers)):
        shapes |= attention(f"{layer}.self_attn", D) | attention(f"{layer}.multihead_attn", D)
        shapes |= {f"{layer}.linear1.weight": (mlp_dim, D), f"{layer}.linear2.weight": (D, mlp_dim)}
        shapes |= {f"{layer}.norm{place}.weight": (D,) for place in (1, 2, 3) if number or place > 1}
    return {f"m.{name}": shape for name, shape in shapes.items()}


FULL = {"steve": (316, 31_691_904), "tfdt": (261, 37_945_600)}
PLACES = {
    "steve": {
        "quantizer.encode.1.13.conv.4.bias": "mediat.encode.1.13.conv.4.bias",
        "quantizer.encode.1.10.weight": "mediat.encode.1.10.weight",
        "quantizer.codebook": "mediat.codebook.templat.weight",
    },
    "tfdt": {
        "quantizer.encode.0.6.bias": "mediat.encode.0.6.bias",
        "quantizer.codebook": "mediat.quant.codebook.weight",
        "quantizer.to_code.bias": "mediat.quant.project.bias",
        "project.2.bias": "encode_project.2.bias",
    },
}


@pytest.mark.parametrize("method", FULL)
def test_full_size_state_dicts_load_strictly(method):
    shapes = published(method)
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == FULL[method]
    state = constants(shapes)
    model = reference.load(state, method=method, preset="movi_d", device="cpu")
    found, config = model.state_dict(), model.config
    assert sum(value.numel() for value in found.values()) == FULL[method][1] and config.method == f"{method}_published"
    assert (config.num_slots, config.num_iterations, config.next_iterations, config.condition) == (21, 1, 1, "boxes")
    places = {"boxes.2.bias": "initializ.2.bias", "decoder.start": "decode.bos", "decoder.position": "decode.posit_embed.pe"}
    places |= {"aggregator.mlp.2.bias": "aggregat.ffn.3.bias", "decoder.norm_input.weight": "decode.norm0.weight"}
    for ours, theirs in (PLACES[method] | places).items():
        assert (found[ours] == state[f"m.{theirs}"].flatten()[0]).all(), ours


SMALL = dict(backbone=False, dim=12, hidden=24, D=8, slot_mlp_dim=32, locations=16, layers=2, mlp_dim=32, codes=10)
FIELDS = TINY | dict(decoder_mlp_dim=32, decoder_heads=4, project_dim=8, project_hidden_dim=24, code_dim=8, codebook_size=10)
FIELDS |= dict(image_size=64)  # eight by eight pixels of half the size are a code


@pytest.mark.parametrize("method", FULL)
def test_published_codes_run_stream_and_are_saved(method, tmp_path):
    state = random_state(published(method, **SMALL))
    model = reference.load(state, method=method, preset="movi_d", **FIELDS, num_iterations=1)
    clip, boxes, before = torch.randn(2, 5, 3, 64, 64), torch.rand(2, 2, 4), None
    whole = model(clip, boxes=boxes)
    assert whole.logits.shape == (2, 5, 10, 4, 4) and whole.iterations == (1,) * 5 and model.evaluated_map == "last"
    for f in range(5):
        one, before = model.step(clip[:, f], before, boxes=boxes if f == 0 else None)
        torch.testing.assert_close(one.reconstruction, whole.reconstruction[:, f], atol=1e-5, rtol=1e-5)
    terms, weights = model.losses(whole, 0.5)
    assert terms["quantization"] == 0 and weights["reconstruction"] == 1
    torch.testing.assert_close(terms["reconstruction"], losses.code_loss(whole.logits.flatten(0, 1), whole.quantised.index))
    reference.save(model, tmp_path / "run")
    again = checkpoint.load_model(tmp_path / "run", device="cpu")(clip, boxes=boxes)
    assert torch.equal(again.logits, whole.logits)


def test_another_methods_weights_and_another_width_are_refused():
    for asked, given, said in (("steve", "tfdt", "VVO-TfdT"), ("tfdt", "steve", "STEVE"), ("smoothsa", "steve", "STEVE"), ("dias", "tfdt", "VVO-TfdT")):
        with pytest.raises(ValueError, match=f"these are the weights of {said}, for videos: method=\"{given}\""):
            preset = "coco" if asked == "dias" else "movi_d"
            reference.load(constants(published(given, **SMALL)), method=asked, preset=preset, **FIELDS)
    with pytest.raises(ValueError, match="slots are a decoder's memory as they are: slot_dim 8, code_dim 10"):
        reference.load(constants(published("steve", **SMALL)), method="steve", preset="movi_d", **FIELDS | dict(code_dim=10))
    stage = {name: shape for name, shape in published("steve", **SMALL).items() if name.startswith("m.mediat.")}
    with pytest.raises(ValueError, match="these are the weights of a codebook"):
        reference.load(constants(stage), method="steve", preset="movi_d", **FIELDS)


# The measured numbers


def theirs(method, prefix):
    return lambda name: published_names(name, NAMES[f"{method}_published clips"])[0].removeprefix(prefix)


@torch.no_grad()
def test_measured_numbers_of_the_causal_decoder():
    decoder = PermutedDecoder(8, 8, (4, 4), 2, 4, 32, num_permutations=1, positions=True, num_codes=10)
    decoder.project_features = decoder.project_slots = nn.Identity()
    load_swollen(nn.ModuleDict({"decoder": decoder}), theirs("steve", "decode."))
    codes, slots = swell(2, 16, 8), swell(2, 3, 8, phase=1)
    logits, _ = decoder(codes, slots)
    near(logits, 649.727769, 3139.954179, "-6.514128 -20.983967 9.937468 -20.593248", "-8.900333 -2.014467 -11.208365 -3.106790")
    changed = codes.clone()
    changed[:, 9, 0] += 1
    gap = (decoder(changed, slots)[0] - logits).abs().amax(dim=(0, 2))
    assert (gap[:10] == 0).all() and (gap[10:] > 0).all()


@torch.no_grad()
def test_measured_numbers_of_the_codes():
    values = 2 * swell(2, 4, 4, 8, phase=2).movedim(-1, 1)
    drawn = FixedCodes(nn.Identity(), 12, 8, drawn_dim=10)
    load_swollen(nn.ModuleDict({"quantizer": drawn}), theirs("tfdt", "mediat.quant."))
    found = drawn(values)
    indices = "6 7 1 7 8 7 7 9 5 0 10 10 6 1 9 9 9 0 1 5 5 9 6 9 1 7 1 6 8 4 6 8"
    assert found.index.flatten().tolist() == [int(number) for number in indices.split()]
    assert found.features.sum().item() == pytest.approx(-13.444404, rel=1e-6)
    assert found.features.abs().sum().item() == pytest.approx(171.701303, rel=1e-6)
    table = FixedCodes(nn.Identity(), 12, 8)
    load_swollen(nn.ModuleDict({"quantizer": table}), theirs("steve", "mediat."))
    indices = "0 0 5 0 1 10 2 2 6 5 2 9 11 8 11 11 11 11 8 9 9 7 5 6 6 6 2 0 1 1 0 4"
    assert table(values).index.flatten().tolist() == [int(number) for number in indices.split()]


def test_features_are_projected_by_two_linear_layers_alone():
    model = reference.load(random_state(published("tfdt", **SMALL)), method="tfdt", preset="movi_d", **FIELDS)
    a, b = torch.randn(2, 1, 16, 12)
    origin = model.project(torch.zeros_like(a))
    assert isinstance(model, PublishedTfdT)
    torch.testing.assert_close(model.project(a + b) + origin, model.project(a) + model.project(b), atol=1e-5, rtol=1e-5)
