"""First stages of STEVE and TfdT: names, shapes, the measured numbers of their parts, and second stages on them."""

import pytest
import torch
from published import measured, near, wave
from test_published_codes import FIELDS, convolution, published
from test_published_methods import constants, norm, random_state, vit

from dias_lab import fit, reference
from dias_lab.data.convert import scenes
from dias_lab.methods import checkpoint
from dias_lab.reference import stages
from dias_lab.reference.codes import pixel_codes

pytestmark = pytest.mark.xdist_group("reference")
METHODS = ("steve", "tfdt")


def block(name):
    return {key: value for part in (0, 2, 4) for key, value in convolution(f"{name}.conv.{part}", 64, 64).items()}


def first(method, backbone=True, dim=384, D=256, codes=4096, **_):
    """Name -> shape of a first stage: its codes have the names of the second stage's, and it has a decoder."""
    second = published(method, backbone=False, dim=dim, D=D, codes=codes)
    own = {name.removeprefix("m.mediat."): shape for name, shape in second.items() if name.startswith("m.mediat.")}
    if method == "steve":
        shapes = own | convolution("decode.0", D, 64, 1) | norm("decode.1", 64)
        for part in (0, 1, 2, 5, 6, 7, 10, 11, 12, 15):
            shapes |= block(f"decode.2.{part}")
        for part in (4, 9, 14):
            shapes |= convolution(f"decode.2.{part}", 64, 64, bias=False)
        return {f"m.{name}": shape for name, shape in (shapes | convolution("decode.2.16", 64, 3)).items()}
    shapes = own | convolution("decode.0", D, 256, 1) | convolution("decode.1.0", 256, 256, 1) | norm("decode.1.1", 256)
    shapes |= convolution("decode.1.3.0", 256, 256, 1) | norm("decode.1.4", 64) | convolution("decode.1.6", 64, 64, 1)
    shapes |= norm("decode.2", 64) | {key: value for part in (0, 1, 2) for key, value in block(f"decode.4.{part}").items()}
    for part in (1, 2, 3, 6, 7, 8, 11):
        shapes |= block(f"decode.5.{part}")
    for part in (0, 5, 10):
        shapes |= convolution(f"decode.5.{part}", 64, 64, bias=False)
    shapes = {f"mediat.{name}": shape for name, shape in (shapes | convolution("decode.5.12", 64, 3)).items()}
    if backbone:
        shapes |= vit("encode_backbone.1", dim, 12, 14, 256, 0, 1, True, True)
    return {f"m.{name}": shape for name, shape in shapes.items()}


FULL = {"steve": (139, 3_522_307), "tfdt": (270, 31_591_299)}
SMALL = dict(backbone=False, dim=12, D=8, codes=10)


@pytest.mark.parametrize("method", METHODS)
def test_full_size_state_dicts_load_strictly(method):
    shapes = first(method)
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == FULL[method]
    state = constants(shapes)
    found = stages.load(state, device="cpu").state_dict()
    assert sum(value.numel() for value in found.values()) == FULL[method][1]
    prefix = "m.mediat." if method == "tfdt" else "m."
    last = "decode.5.12.bias" if method == "tfdt" else "decode.2.16.bias"
    for ours, theirs in {last: last, "decode.0.bias": "decode.0.bias", "quantizer.encode.2.bias": "encode.2.bias"}.items():
        assert (found[ours] == state[prefix + theirs].flatten()[0]).all(), ours


@torch.no_grad()
def test_measured_numbers_of_the_convolutions():
    """Measured with the parts of TAESD as diffusers builds them (DecoderTiny, EncoderTiny)."""

    def filled(part):
        state = measured(part.state_dict(), "")
        part.load_state_dict({name: value * (0.1 if value.ndim > 1 else 1) for name, value in state.items()})
        return part.double()

    found = filled(stages.pixels_of_codes(8))(wave(1, 8, 2, 2).double()) * 2 - 1
    near(found, -799.842712, 1700.250608, "2.192799 4.474599 5.892621 6.891173", "-2.801218 -2.417733 -1.807286 -0.590423")
    found = filled(stages.pixels_of_features(8))(wave(1, 8, 2, 2).double()) * 2 - 1
    near(found, -336.205733, 1937.654370, "2.721891 2.957319 3.308774 3.558381", "10.064421 8.710512 6.754645 3.709284")
    encode = pixel_codes(stages.Config.preset("movi_d", method="steve_published", code_dim=8, codebook_size=10)).encode
    found = filled(encode)(wave(1, 3, 16, 16).double())
    near(found, 0.099957, 4.700838, "-0.309939 -0.319029 -0.234509 -0.224932", "-0.088454 -0.093628 -0.040668 -0.024865")


@pytest.mark.parametrize("method", METHODS)
def test_codes_of_pictures_and_a_second_stage_that_trains_on_them(method, tmp_path):
    one = stages.load(random_state(first(method, **SMALL)), **FIELDS | dict(num_slots=8))
    pictures = one.look(torch.randint(0, 255, (2, 3, 80, 100), dtype=torch.uint8))
    assert pictures.shape[:2] == (2, 3) and pictures.dtype == torch.uint8
    model = one.second_stage("random", seed=7, num_iterations=1)
    for name, value in one.quantizer.state_dict().items():
        assert torch.equal(model.quantizer.state_dict()[name], value), name
    reference.save(model, tmp_path / "first")
    before = checkpoint.load_model(tmp_path / "first", device="cpu")
    scenes.convert_clips(tmp_path / "clips", train=3, validation=2, test=1, frames=4)
    config = before.config.replace(
        data=str(tmp_path / "clips"), parent=str(tmp_path / "first"), steps=2, batch_size=2, clip_frames=3,
        evaluate_images=2, log_every=1, warmup=0.0, precision="32-true",
    )  # fmt: skip
    fit(config, tmp_path / "run", progress=False)
    after = checkpoint.load_model(tmp_path / "run", device="cpu")
    for name, value in one.quantizer.state_dict().items():
        assert torch.equal(after.quantizer.state_dict()[name], value), name
    assert not torch.equal(after.decoder.readout.weight, before.decoder.readout.weight)


def test_other_files_are_refused_with_what_they_are(tmp_path):
    small = constants(first("tfdt", **SMALL))
    with pytest.raises(ValueError, match="these are the weights of a first stage of TfdT.*dias_lab.reference.stages"):
        reference.load(small, method="tfdt", preset="movi_d", **FIELDS)
    with pytest.raises(ValueError, match="holds no first stage of STEVE or TfdT: these are the weights of STEVE, for videos"):
        stages.load(constants(published("steve", **SMALL, hidden=24, slot_mlp_dim=32, locations=16, layers=2, mlp_dim=32)))
    with pytest.raises(ValueError, match="the state dict holds no first stage of STEVE or TfdT$"):
        stages.load({"m.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="there is no file"):
        stages.load(tmp_path / "none.pth")
    for change, said in {
        "m.mediat.decode.4.0.conv.0.weight": "1 missing: m.mediat.decode.4.0.conv.0.weight",
        "m.mediat.quant.project.bias": "1 missing: m.mediat.quant.project.bias",
    }.items():
        with pytest.raises(ValueError, match=said):
            stages.load({name: value for name, value in small.items() if name != change}, **FIELDS)
    with pytest.raises(ValueError, match="1 unknown: m.mediat.decode.9.weight"):
        stages.load(small | {"m.mediat.decode.9.weight": torch.zeros(1)}, **FIELDS)
    steve = stages.load(constants(first("steve", **SMALL)), **FIELDS)
    with pytest.raises(ValueError, match='a second stage is to be trained: backbone_weights is "pretrained"'):
        steve.second_stage(backbone_weights="checkpoint")
    for field, value in dict(method="dias", code_dim=16, codebook_size=20).items():
        with pytest.raises(ValueError, match=f"{field} is that of the first stage"):
            steve.second_stage("random", **{field: value})
    for field in ("method", "backbone_weights"):
        with pytest.raises(ValueError, match=f"{field} follows from the file: leave it out"):
            stages.load(small, **FIELDS | {field: "random"})


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_pictures_are_of_codes_or_of_what_was_encoded(method):
    state = random_state(first(method, **SMALL))
    one = stages.load({name: 0.2 * value for name, value in state.items()}, **FIELDS)  # larger ones would overflow
    images = torch.randn(2, 3, 64, 64)
    told, pictures = one(images)
    torch.testing.assert_close(pictures, one.decode(told.features) * 2 - 1)
    assert pictures.isfinite().all() and not torch.allclose(one(images, codes=False)[1], pictures)
    one.quantizer.forward = lambda values: told._replace(features=one.quantizer.encode(values))  # were every code exact
    torch.testing.assert_close(one(images)[1], one(images, codes=False)[1])
