import pytest
import timm
import torch
from safetensors.torch import save_file

from dias_lab import fit, load_model
from dias_lab.config import Config
from dias_lab.methods import build
from dias_lab.modules.backbone import FourierBackbone, TimmBackbone

VIT = "vit_tiny_patch16_224"


def vit(weights="random", size=64, **arguments):
    return TimmBackbone(VIT, weights, arguments, -1, size)


def test_features_are_those_of_the_last_block_without_the_final_norm():
    backbone = vit()
    images = torch.randn(2, 3, 64, 64)
    seen = []
    backbone.model.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = backbone(images)
    assert features.shape == (2, 192, 4, 4) and (backbone.feature_dim, backbone.grid) == (192, (4, 4))
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), seen[0][:, 1:])


def test_stage_of_a_convolutional_network_is_its_feature_map():
    backbone = TimmBackbone("mobilenetv2_100", "random", {"pad_type": "same"}, 3, 64)
    images = torch.randn(1, 3, 64, 64)
    whole = timm.create_model("mobilenetv2_100", features_only=True, out_indices=(3,), pad_type="same").eval()
    whole.load_state_dict(backbone.model.state_dict(), strict=False)
    torch.testing.assert_close(backbone(images), whole(images)[0])
    assert backbone.feature_dim == 96


def features_of(backbone, images, *names):
    """What the modules give in one pass, by hooks of the test's own."""
    seen = {}
    for name in names:
        module = backbone.model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.setdefault(name, output))
    backbone.model.forward_features(images)
    return [seen[name] for name in names]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_100"])
def test_modules_by_name_are_joined_at_the_resolution_of_the_finest(name):
    backbone = TimmBackbone(name, "random", {}, "blocks.5 blocks.2 blocks.6", 64)
    images = torch.randn(2, 3, 64, 64)
    found = backbone(images)
    coarse, fine, last = features_of(backbone, images, "blocks.5", "blocks.2", "blocks.6")
    assert backbone.grid == (8, 8) and backbone.feature_dim == found.shape[1] == sum(x.shape[1] for x in (coarse, fine, last))
    parts = found.split([coarse.shape[1], fine.shape[1], last.shape[1]], dim=1)
    torch.testing.assert_close(parts[1], fine)
    for part, small in zip(parts[::2], (coarse, last)):
        torch.testing.assert_close(part, torch.nn.functional.interpolate(small, (8, 8), mode="bilinear"))
    assert not any(module._forward_hooks for module in TimmBackbone(name, "random", {}, "blocks.5", 64).modules())


def test_a_module_is_the_stage_that_has_its_features():
    images = torch.randn(2, 3, 64, 64)
    by_name = TimmBackbone("mobilenetv2_100", "random", {"pad_type": "same"}, "blocks.4", 64)
    torch.testing.assert_close(by_name(images), TimmBackbone("mobilenetv2_100", "random", {"pad_type": "same"}, 3, 64)(images))
    for name, stage, norm in (("blocks.3", 3, False), ("norm", -1, True)):
        by_name, by_number = (TimmBackbone(VIT, "random", {}, one, 64, norm=one == stage and norm) for one in (name, stage))
        torch.testing.assert_close(by_name(images), by_number(images))


def test_channels_that_come_last_are_put_first():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", "random", {}, "layers.2", 64)
    assert backbone.grid == (4, 4) and backbone.feature_dim == 384


@pytest.mark.parametrize(
    "model, stage, words",
    [
        ("mobilenetv2_100", "blocks.4 block.5", r"no module 'block.5'; near: blocks\.5"),
        ("mobilenetv2_100", "classifier", "module 'classifier' gives no map of features; it gave nothing on the way"),
        ("efficientnet_b0", "blocks.1 blocks.1.0.se.conv_reduce", r"'blocks.1.0.se.conv_reduce' gives no map .*\(\[1, 4, 1, 1\]\)"),
        (VIT, "blocks.3 fc_norm", "module 'fc_norm' gives no map of features"),
        (VIT, "blocks.3.attn.q_norm", r"'blocks.3.attn.q_norm' gives no map of features"),
    ],
)
def test_a_module_that_is_not_there_or_gives_no_map_is_refused_by_name(model, stage, words):
    with pytest.raises(ValueError, match="^backbone_stage: .*" + words):
        TimmBackbone(model, "random", {}, stage, 64)


def test_normalised_features_are_those_of_a_stage():
    with pytest.raises(ValueError, match="name the module that normalises"):
        TimmBackbone(VIT, "random", {}, "blocks.3", 64, norm=True)


def test_a_run_of_modules_by_name_is_conditioned_cached_and_comes_back(small_config, tmp_path):
    config = small_config.replace(
        backbone="mobilenetv2_100", backbone_weights="random", backbone_stage="blocks.5, blocks.6", backbone_size=64,
        backbone_arguments='{"output_stride": 16}', image_mean="0.5", image_std="0.5", conditioning="whiten",
        conditioning_dim=4, position_weight=1.0, cache_views=1, steps=2,
    )  # fmt: skip
    fit(config, tmp_path / "run", progress=False)
    model = load_model(tmp_path / "run")
    assert model.config.backbone_stage == "blocks.5 blocks.6" and model.backbone.feature_dim == 6
    images = torch.randn(2, 3, 64, 64)
    assert model.backbone(images).shape == (2, 6, 4, 4) and model.untrained().backbone is model.backbone
    with pytest.raises(ValueError, match="another config"):
        fit(config.replace(backbone_stage="blocks.5"), tmp_path / "run", progress=False)


def test_larger_squares_are_resized_without_antialias():
    backbone, images = vit(), torch.randn(1, 3, 80, 80)
    smaller = torch.nn.functional.interpolate(images, size=(64, 64), mode="bicubic", align_corners=False)
    torch.testing.assert_close(backbone(images), backbone(smaller))


def test_backbone_is_frozen_and_stays_in_evaluation():
    config = Config.preset("coco", backbone=VIT, backbone_weights="random", backbone_size=64, image_size=64, decoder_layers=1)
    model = build(config).train()
    assert model.training and not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not any(name.startswith("backbone") for name in model.trained_state())


def test_random_weights_are_always_the_same_ones():
    torch.manual_seed(1)
    first = vit()
    state = torch.get_rng_state()
    second = vit()
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(first(images), second(images))


def test_local_weights_load_strictly_and_wrong_ones_are_refused(tmp_path):
    model = timm.create_model(VIT)
    save_file(model.state_dict(), tmp_path / "right.safetensors")
    backbone = vit(str(tmp_path / "right.safetensors"))  # its position table is resampled to 4x4
    torch.testing.assert_close(backbone.model.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert backbone.model.pos_embed.shape == (1, 17, 192)
    wrong = {name: value for name, value in model.state_dict().items() if "blocks.5" not in name}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"(?s)wrong.safetensors does not hold the weights.*blocks\.5"):
        vit(str(tmp_path / "wrong.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="broken.safetensors"):
        vit(str(tmp_path / "broken.safetensors"))
    with pytest.raises(ValueError, match=r"no file .*nowhere"):
        vit(str(tmp_path / "nowhere.safetensors"))


def test_no_network_for_pretrained_weights_names_the_ways_out(monkeypatch):
    create_model = timm.create_model

    def fail(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("connection refused")
        return create_model(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match="local file as backbone_weights, or use backbone=\"fourier\""):
        vit("pretrained")


def test_unknown_arguments_are_named():
    with pytest.raises(ValueError, match="does not take backbone_arguments.*foo"):
        vit(foo=1)


def test_unknown_model_names_near_ones():
    with pytest.raises(ValueError, match="no model 'vit_tiny_patch17_224'"):
        TimmBackbone("vit_tiny_patch17_224", "random", {}, -1, 64)


@pytest.mark.parametrize(
    "name, size, wanted",
    [
        ("vit_small_patch14_dinov2", 256, "backbone_size=252 or 266"), ("vit_tiny_patch16_224", 230, "backbone_size=224 or 240"),
        ("vit_small_patch16_dinov3", 250, "backbone_size=240 or 256"), ("vit_tiny_patch16_224", 8, "backbone_size=16"),
    ],
)  # fmt: skip
def test_a_transformer_sees_the_whole_picture_or_names_the_sizes_at_which_it_does(name, size, wanted):
    with pytest.raises(ValueError, match=wanted):
        TimmBackbone(name, "random", {}, -1, size)


@pytest.mark.parametrize(
    "name, near",
    [
        ("dinov2_vits14", "vit_small_patch14_dinov2"), ("vit_small_patch14_dinov2.nope", r"vit_small_patch14_dinov2\.lvd142m"),
        ("resnet5", "resnet50"), ("vit_smal_patch14_dinov2", "vit_small_patch14_dinov2"), ("?", "near: "),
    ],
)  # fmt: skip
def test_an_unknown_model_or_tag_has_suggestions(name, near):
    with pytest.raises(ValueError, match=f"timm has no model .*{near}"):
        TimmBackbone(name, "random", {}, -1, 224)


@pytest.mark.parametrize("make", [lambda: vit(size=8), lambda: FourierBackbone(4)])
def test_image_smaller_than_a_patch_is_refused(make):
    with pytest.raises(ValueError, match=r"4x4|8x8"):
        make()


def test_real_weights_load_with_the_arguments_that_they_need(real_data):
    path = str(real_data / "weights" / "mobilenetv2_100.safetensors")
    backbone = TimmBackbone("mobilenetv2_100", path, {"pad_type": "same"}, 3, 224, (0.5,) * 3, (0.5,) * 3)
    assert backbone.grid == (14, 14) and backbone.feature_dim == 96
    with pytest.raises(ValueError, match="does not hold"):
        TimmBackbone("mobilenetv2_050", path, {}, 3, 224)


def test_fourier_features_tell_colours_apart_and_are_fixed():
    backbone = FourierBackbone(32, dim=64, stride=8)
    plain = torch.zeros(1, 3, 32, 32)
    two = plain.clone()
    two[..., 16:] = 2
    features = backbone(two)
    assert features.shape == (1, 64, 4, 4)
    left, right = features[0, :, 0, 0], features[0, :, 0, 3]
    near = torch.nn.functional.cosine_similarity(left, features[0, :, 0, 1], dim=0)
    assert near > 0.9 > 0.5 > torch.nn.functional.cosine_similarity(left, right, dim=0)
    assert torch.equal(FourierBackbone(32, dim=64, stride=8)(two), features)


def test_texture_counts_as_much_as_its_weight_says():
    plain = torch.zeros(1, 3, 32, 32)
    rough = plain.clone()
    rough[..., ::2], rough[..., 1::2] = 1, -1  # the same mean in every square
    blind, seeing = FourierBackbone(32, stride=8, texture=0.0), FourierBackbone(32, stride=8, texture=0.5)
    torch.testing.assert_close(blind(rough), blind(plain), atol=5e-3, rtol=0)
    assert (seeing(rough) - seeing(plain)).abs().max() > 0.5
