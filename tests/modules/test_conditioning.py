"""Conditioning: what the statistics become, what is refused, and that a run keeps them."""

import pytest
import torch

from dias_lab import fit
from dias_lab.methods import build, checkpoint
from dias_lab.modules.backbone import ColourBackbone
from dias_lab.modules.conditioning import Conditioned, positions
from dias_lab.training.cost import step_costs

KINDS = ("scale", "standardise", "pca", "whiten")


@pytest.fixture
def images():
    return torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1)


def fitted(kind, images, dim=0, position=0.0):
    backbone = ColourBackbone(64, 8)
    found = Conditioned(backbone, kind, dim, position)
    found.fit(backbone(images).movedim(1, -1).flatten(0, 2))
    return found


def channels(features):
    return features.movedim(1, -1).flatten(0, 2)  # [M K]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_centred_and_of_the_promised_spread(kind, images):
    backbone = fitted(kind, images)
    found = channels(backbone(images))
    assert found.shape == (6 * 64, 6) and backbone.feature_dim == 6 and backbone.grid == (8, 8)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    deviation, covariance = found.std(dim=0), torch.cov(found.T)
    if kind == "scale":
        assert deviation.square().mean().sqrt() == pytest.approx(1, abs=1e-3) and deviation.max() > 2 * deviation.min()
    if kind in ("standardise", "whiten"):
        torch.testing.assert_close(deviation, torch.ones(6), atol=1e-3, rtol=0)
    if kind in ("pca", "whiten"):  # channels are uncorrelated
        assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    if kind == "pca":
        assert deviation[0] == pytest.approx(1, abs=1e-3) and (deviation.diff() <= 1e-6).all()


def test_a_conditioning_keeps_the_distances_that_it_should(images):
    plain, scaled, turned = channels(ColourBackbone(64, 8)(images)), *(channels(fitted(k, images)(images)) for k in ("scale", "pca"))
    ratio = torch.pdist(scaled[:50]) / torch.pdist(plain[:50])
    assert ratio.std() < 1e-3 * ratio.mean()
    ratio = torch.pdist(turned[:50]) / torch.pdist(plain[:50])
    assert ratio.std() < 1e-3 * ratio.mean()  # a rotation


def test_fewer_components_keep_the_loud_ones_and_position_is_appended(images):
    found = fitted("pca", images, dim=2, position=0.5)
    assert found.feature_dim == 4
    features = found(images)
    torch.testing.assert_close(features[:, :2], fitted("pca", images)(images)[:, :2])
    torch.testing.assert_close(features[0, 2:], 0.5 * positions((8, 8)))
    assert positions((40, 40)).std(dim=(1, 2)).sub(1).abs().max() < 0.05


@pytest.mark.parametrize("kind, dim, words", [("pca", 7, "has 6 channels"), ("standardise", 3, 'is for "pca" and "whiten"')])
def test_more_components_than_there_are_is_refused(kind, dim, words):
    with pytest.raises(ValueError, match=words):
        Conditioned(ColourBackbone(64, 8), kind, dim)


def test_channels_that_never_change_cannot_be_scaled():
    with pytest.raises(ValueError, match=r"channels \[3, 4, 5\] never change"):
        fitted("standardise", torch.tensor([[0.5, 0.25, 0.75], [0.25, 0.5, 0.0]]).view(2, 3, 1, 1).expand(2, 3, 64, 64))


TOYS = dict(
    backbone="colour", colour_stride=16, conditioning="whiten", position_weight=0.3, steps=4, evaluate_every=2, fourier_dim=16
)


@pytest.mark.parametrize("cache", [0, 1])
def test_a_run_fits_keeps_and_resumes_it(cache, small_config, tmp_path):
    config = small_config.replace(**TOYS, cache_views=cache)
    with pytest.raises(RuntimeError, match="not fitted"):
        build(config).backbone(torch.zeros(1, 3, 128, 128))
    fit(config, tmp_path, progress=False)
    model = checkpoint.load_model(tmp_path)
    assert not model.backbone.waiting and "backbone.matrix" in model.trained_state()
    twin = model.untrained()
    assert torch.equal(twin.backbone.matrix, model.backbone.matrix) and not torch.equal(
        twin.aggregator.to_key.weight, model.aggregator.to_key.weight
    )
    trace = model.trace(torch.randint(0, 255, (2, 3, 140, 130), dtype=torch.uint8))
    assert trace.attention.shape == (3, 2, 5, 8, 8)


def test_the_cost_of_a_step_needs_no_data_to_fit(small_config):
    config = small_config.replace(backbone="colour", colour_stride=16, conditioning="standardise")
    assert step_costs({"toys": config}, repeats=0).loc["toys", "operations"] > 0


def test_a_backbone_in_half_precision_gives_conditioned_features(images):
    full = fitted("standardise", images)
    expected = full(images)

    def half(values):
        assert values.dtype == torch.bfloat16  # what the backbone inside computes in
        return ColourBackbone.features(full.backbone, values.float()).bfloat16()

    full.backbone.dtype, full.backbone.features = torch.bfloat16, half
    found = full(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)
