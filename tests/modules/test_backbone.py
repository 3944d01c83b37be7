import pytest
import timm
import torch
from safetensors.torch import save_file

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
