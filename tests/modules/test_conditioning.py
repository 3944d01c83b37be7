"""Conditioning: what the statistics become, what is refused, and that a run keeps them."""

import pytest
import torch

from dias_lab import fit
from dias_lab.__main__ import main
from dias_lab.analysis.interventions import with_fields
from dias_lab.methods import build, checkpoint
from dias_lab.modules.backbone import ColourBackbone
from dias_lab.modules.conditioning import Conditioned, positions
from dias_lab.training.cost import step_costs

KINDS = ("scale", "standardise", "pca", "whiten", "half_whiten")


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
    if kind in ("pca", "whiten", "half_whiten"):  # channels are uncorrelated
        assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    if kind == "half_whiten":  # the standardised channels have variances of 1, which their components share out
        assert (deviation.diff() <= 1e-6).all() and deviation[0] > deviation[-1] + 0.02
        assert (deviation**4).sum() == pytest.approx(6, abs=0.05)
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


@pytest.mark.parametrize("kind, dim, words", [("pca", 7, "has 6 channels"), ("standardise", 3, 'is for pca, whiten, half_whiten')])
def test_more_components_than_there_are_is_refused(kind, dim, words):
    with pytest.raises(ValueError, match=words):
        Conditioned(ColourBackbone(64, 8), kind, dim)


def test_channels_that_never_change_cannot_be_scaled():
    with pytest.raises(ValueError, match=r"channels \[3, 4, 5\] never change"):
        fitted("standardise", torch.tensor([[0.5, 0.25, 0.75], [0.25, 0.5, 0.0]]).view(2, 3, 1, 1).expand(2, 3, 64, 64))


def test_a_single_scale_needs_one_channel_that_changes():
    assert fitted("scale", torch.rand(2, 3, 1, 1).expand(2, 3, 64, 64)).matrix.isfinite().all()
    with pytest.raises(ValueError, match=r"channels \[0, 1, 2, 3, 4, 5\] never change"):
        fitted("scale", torch.full((2, 3, 64, 64), 0.5))


def test_components_that_never_change_cannot_be_whitened():
    grey = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(6, 3, 64, 64)
    with pytest.raises(ValueError, match="only 2 of the 6 components .* take conditioning_dim=2"):
        fitted("whiten", grey)
    assert fitted("whiten", grey, dim=2)(grey).std() < 2
    assert fitted("pca", grey)(grey).isfinite().all()


@pytest.mark.parametrize("kind", ("none", *KINDS))
@pytest.mark.parametrize("other", ("none", *KINDS))
def test_the_conditioning_of_another_kind_is_refused_by_name(kind, other, images):
    saved = Conditioned(ColourBackbone(64, 8), "none", position=0.5) if kind == "none" else fitted(kind, images, position=0.5)
    model = torch.nn.ModuleDict({"backbone": Conditioned(ColourBackbone(64, 8), other, position=0.5)})
    state = {f"backbone.{name}": value for name, value in saved.state_dict().items()}
    if kind == other or (kind, other) == ("scale", "standardise"):  # one scale for all may be one each
        model.load_state_dict(state)
        return
    with pytest.raises(ValueError, match=f"conditioning of these weights is .*{kind}.*, and the config's '{other}'"):
        model.load_state_dict(state)


def test_channels_that_are_alike_do_not_make_it_another_kind():
    grey = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(6, 3, 64, 64)
    for kind, dim in (("standardise", 0), ("pca", 0), ("pca", 1), ("whiten", 1), ("whiten", 2)):
        Conditioned(ColourBackbone(64, 8), kind, dim).load_state_dict(fitted(kind, grey, dim).state_dict())


def test_the_weights_of_a_run_refuse_another_conditioning(small_config):
    config = small_config.replace(backbone="colour", colour_stride=16, conditioning="whiten")
    model = build(config)
    model.backbone.fit(torch.rand(100, 6))
    with pytest.raises(ValueError, match="these weights is 'whiten', and the config's 'pca'"):
        with_fields(model, conditioning="pca")
    with pytest.raises(ValueError, match=r"backbone.matrix is \(6, 6\), not \(2, 6\)"):
        with_fields(model, conditioning_dim=2)
    with pytest.raises(ValueError, match="unknown backbone.centre"):
        with_fields(model, conditioning="none")


def test_it_is_fitted_on_all_images_where_there_are_fewer_than_it_may_take(small_config, tmp_path):
    config, found = small_config.replace(backbone="colour", colour_stride=16, conditioning="pca", steps=1), []
    for images in (10, 11, 1000):  # the store has 10
        fit(config.replace(conditioning_images=images), tmp_path / str(images), progress=False)
        found.append(checkpoint.load_model(tmp_path / str(images)).backbone.matrix)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(conditioning="pca", conditioning_dim=7), "conditioning_dim is 7, and the backbone has 6 channels"),
        (dict(conditioning="standardise", conditioning_dim=3), 'conditioning_dim is for pca, whiten, half_whiten'),
        (dict(decoder="mlp", decoder_locations=65), "decoder_locations is 65, and the feature map has 64 locations"),
        (dict(decoder="mlp", decoder_start="lookup", position_weight=1.0, slot_dim=9), "slot_dim is 9; take at least 10"),
    ],
)
def test_what_only_the_built_model_knows_is_refused_before_anything_is_written(fields, words, small_config, tmp_path, capsys):
    config = small_config.replace(backbone="colour", colour_stride=16, **fields)
    with pytest.raises(ValueError, match=words):
        fit(config, tmp_path / "run", progress=False)
    options = [word for name, value in config.to_dict().items() if not isinstance(value, bool) for word in option(name, value)]
    assert main(["train", "--preset", "shapes", "--run-dir", str(tmp_path / "run"), *options]) == 2
    said = capsys.readouterr().err
    assert "refused" in said and words in said and not (tmp_path / "run").exists()


def option(name, value):
    return [f"--{name.replace('_', '-')}", str(value)]


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
