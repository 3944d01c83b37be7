"""The quantizer, and the methods whose target are codes: VQDINO, SLATE, and DIAS on VQDINO's target."""


import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.losses import code_loss
from dias_lab.methods import build, checkpoint
from dias_lab.trace import AttentionTrace
from dias_lab.training.loop import fit

QUANTISED = {
    "vqdino": dict(method="vqdino", codebook_size=16, code_dim=10),
    "slate": dict(method="slate", codebook_size=16, code_dim=10),
    "dias": dict(target="quantised", codebook_size=16, code_dim=10),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_slots_and_quantizer_learn_each_from_its_own_loss(name, small_config, images):
    model = build(small_config.replace(**QUANTISED[name])).train()
    losses, weights = model.losses(model(images), 0.5)
    assert weights["quantization"] == weights["reconstruction"] == 1 and weights["perplexity"] == 0
    assert 1 <= losses["perplexity"] <= 16
    named = dict(model.named_parameters())
    parameters = list(named.values())
    for loss, own in (("quantization", True), ("reconstruction", False)):
        gradients = torch.autograd.grad(losses[loss], parameters, allow_unused=True, retain_graph=True)
        reached = {part for part, gradient in zip(named, gradients) if gradient is not None and gradient.abs().max() > 0}
        assert reached and {part.startswith("quantizer.") for part in reached} == {own}
    if name != "slate":
        everything = {part for part in named if part.startswith("quantizer.")}
        assert {p for p, g in zip(named, torch.autograd.grad(losses["quantization"], parameters, allow_unused=True)) if g is not None} == everything
    shares = [group["share"] for group in model.parameter_groups()]
    assert shares == [small_config.aggregator_rate, 1.0, 10.0]
    grouped = [id(parameter) for group in model.parameter_groups() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in parameters if parameter.requires_grad)


@torch.no_grad()
def test_the_target_is_the_code_and_the_reconstruction_the_expected_one(small_config, images):
    model = build(small_config.replace(**QUANTISED["vqdino"])).eval()
    output = model(images)
    codes, encoded = model.quantizer.codes(), model.quantizer.encode(model.backbone(images))
    torch.testing.assert_close(output.features, codes[output.quantised.index].movedim(-1, 1))
    assert (torch.cdist(encoded.movedim(1, -1).flatten(0, 2), codes).argmin(dim=1) == output.quantised.index.flatten()).all()
    probable = output.logits.softmax(dim=1)  # [B K h w]
    expected = sum(probable[:, k, None] * codes[k][None, :, None, None] for k in range(16))
    torch.testing.assert_close(output.reconstruction, expected)
    plain = -torch.stack([F.log_softmax(output.logits[b, :, y, x], 0)[output.quantised.index[b, y, x]]
                          for b in range(3) for y in range(8) for x in range(8)]).mean()  # fmt: skip
    torch.testing.assert_close(code_loss(output.logits, output.quantised.index), plain)


@torch.no_grad()
def test_codes_of_the_same_picture_are_the_same_in_any_batch(small_config, images):
    for fields in QUANTISED.values():
        model = build(small_config.replace(**fields)).eval()
        assert torch.equal(model(images).quantised.index[1:2], model(images[1:2]).quantised.index)


@torch.no_grad()
def test_a_token_of_slate_is_its_own_square_of_pixels(small_config, images):
    model = build(small_config.replace(**QUANTISED["slate"], image_size=32, backbone_size=128)).eval()
    picture = images[:1, :, :32, :32]  # 8x8 locations of 4x4 pixels
    before = model.quantizer.encode(picture)
    changed = picture.clone()
    changed[:, :, 4:8, 12:16] += 1
    moved = (model.quantizer.encode(changed) - before).abs().amax(dim=1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[1, 3]]
    assert model(picture).quantised.index.shape == (1, 8, 8)


# Settings and files


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config.preset("coco", method="vqdino", codebook_size=1), "at least 2"),
        (lambda: Config.preset("coco", method="vqdino", codebook_size=0), "at least 2"),
        (lambda: Config.preset("coco", code_dim=-1), "code_dim must not be negative"),
        (lambda: Config.preset("coco", commitment_weight=-0.1), "commitment_weight must not be negative"),
        (lambda: Config.preset("coco", method="slate", code_dim=0), "must be above 0"),
        (lambda: Config.preset("coco", method="slate", cache_views=1), "come from pixels"),
        (lambda: Config.preset("coco", method="spot", target="quantised"), "belongs to DIAS"),
        (lambda: Config.preset("coco", target="quantized"), "did you mean 'quantised'"),
        (lambda: build(Config.preset("shapes", method="vqdino", code_dim=10)), "does not divide the 10"),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_numbers_of_the_paper_and_those_of_shapes():
    photos, shapes = (Config.preset(name, method="vqdino") for name in ("coco", "shapes"))
    assert (photos.codebook_size, photos.code_dim, photos.commitment_weight, photos.initializer) == (4096, 256, 0.25, "separate")
    assert (shapes.codebook_size, shapes.code_dim) == (256, 0)
    assert Config.preset("coco").target == "features" and Config.preset("coco", method="slate").code_dim == 256


@pytest.mark.parametrize("name", QUANTISED)
def test_two_codes_one_slot_and_features_of_another_width(name, small_config, images):
    two = QUANTISED[name] | dict(codebook_size=2, num_slots=1)
    model = build(small_config.replace(**two)).train()
    losses, weights = model.losses(model(images), 0.5)
    assert 1 <= losses["perplexity"] <= 2 and torch.isfinite(sum(weights[part] * losses[part] for part in losses))
    with pytest.raises(RuntimeError, match="20"):
        model(images, features=torch.randn(3, 20, 8, 8))


def test_weights_of_another_method_or_codebook_are_refused(small_config):
    models = {name: build(small_config.replace(**fields)) for name, fields in QUANTISED.items()}
    models["dinosaur"] = build(small_config.replace(method="dinosaur", decoder="raster"))
    for ours in models.values():
        for theirs in models.values():
            if ours is not theirs:
                with pytest.raises(ValueError, match=f"not of this {type(ours).__name__}"):
                    ours.load_trained_state(theirs.trained_state())
    other = build(small_config.replace(**QUANTISED["vqdino"] | dict(codebook_size=17)))
    with pytest.raises(ValueError, match="decoder.readout.weight is"):
        other.load_trained_state(models["vqdino"].trained_state())


@pytest.mark.parametrize("name", QUANTISED)
def test_training_says_how_many_codes_are_used(name, small_config, small_scenes, tmp_path):
    config = small_config.replace(**QUANTISED[name], steps=40, learning_rate=2e-3, evaluate_every=40)
    fit(config, tmp_path / "run", progress=False)
    lines = [line for line in runs.read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert all(1 <= line["perplexity"] <= 16 and line["weight_perplexity"] == 0 for line in lines)
    assert lines[-1]["perplexity"] > 3
    terms = ("reconstruction", "quantization", "distillation")
    for line in lines:  # the perplexity is no part of the loss; the weights are those of the step that is logged
        if line.get("weight_distillation", 0) == 0:
            np.testing.assert_allclose(line["loss"], sum(line.get(term, 0) for term in terms[:2]), rtol=1e-4)
    model = checkpoint.load_model(tmp_path / "run")
    assert torch.equal(model.quantizer.codes(), checkpoint.load_model(tmp_path / "run").quantizer.codes())


@pytest.mark.parametrize("options", ["--method vqdino", "--method slate --code-dim 8", "--target quantised"])
def test_the_same_commands_from_training_to_the_explorer(options, small_scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = "--preset shapes --backbone-size 128 --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --num-slots 4 --decoder-heads 2"
    rest = f"{options} {sizes} --codebook-size 8 --steps 2 --batch-size 2 --evaluate-images 1 --device cpu --data {small_scenes}"
    assert main(["train", *rest.split(), "--run-dir", "run"]) == 0
    assert main(["evaluate", "--run-dir", "run", "--data", str(small_scenes), "--limit", "1"]) == 0
    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.png")
    assert main(["trace", "--run-dir", "run", "--images", "photo.png", "--out", "maps.npz"]) == 0
    assert main(["explore", "maps.npz", "--out", "page.html"]) == 0
    trace = AttentionTrace.load(tmp_path / "maps.npz")
    assert trace.about["method"] == Config.load(tmp_path / "run").method
    assert (tmp_path / "page.html").stat().st_size > 10_000
