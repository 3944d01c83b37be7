"""What all methods promise, each with the settings that change its parts."""

import pickle

import pytest
import torch
from small_methods import interrupted, states, total

from dias_lab import runs
from dias_lab.analysis.baselines import baseline_scores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import decode, with_fields
from dias_lab.config import METHODS
from dias_lab.data import store
from dias_lab.data.draws import draw
from dias_lab.methods import Output, build, checkpoint
from dias_lab.modules.backbone import FourierBackbone
from dias_lab.training.loop import fit

CODES = dict(codebook_size=16, code_dim=10)
VARIANTS = {
    "dias": dict(merge_threshold=0.5),
    "dias, released": dict(merging="none", matching="identity", distillation="release"),
    "dias, merge only": dict(merging="merge", merge_threshold=0.5),
    "dias, sample": dict(reinitialize_from="sample", merge_threshold=0.5),
    "dias, survivor": dict(reinitialize_from="survivor", merge_threshold=0.5),
    "dias, unmasked": dict(mask_reinitialized=False, merge_threshold=0.5),
    "dias, before": dict(teacher="before_merging", merge_threshold=0.5),
    "dias, sometimes": dict(merge_probability=0.5, merge_draw="batch", merge_threshold=0.5),
    "dias, average": dict(linkage="average", merge_gradient=False, merge_threshold=0.5),
    "dias, mlp": dict(decoder="mlp", decoder_mlp_dim=16),
    "dias, some locations": dict(decoder="mlp", decoder_mlp_dim=16, decoder_locations=7),
    "dias, some framed": dict(decoder="mlp", decoder_mlp_dim=16, decoder_locations=7, slot_frames=True),
    "dias, some codes": dict(decoder="mlp", decoder_mlp_dim=16, decoder_locations=7, target="quantised", **CODES),
    "dias, separate": dict(initializer="separate", distillation="none"),
    "dias, quantised": dict(target="quantised", merging="none", **CODES),
    "dias, codes are features": dict(target="quantised", merging="none", codebook_size=16),
    "smoothsa": dict(method="smoothsa"),
    "smoothsa, some locations": dict(method="smoothsa", decoder="mlp", decoder_mlp_dim=16, decoder_locations=7),
    "spot": dict(method="spot"),
    "spot, original parts": dict(method="spot", spot_parts="original"),
    "spot, all orders": dict(method="spot", evaluation_permutations="all"),
    "dinosaur": dict(method="dinosaur", decoder_mlp_dim=16),
    "dinosaur, raster": dict(method="dinosaur", decoder="raster"),
    "vqdino": dict(method="vqdino", **CODES),
    "vqdino, codes are features": dict(method="vqdino", **CODES | dict(code_dim=0)),
    "slate": dict(method="slate", **CODES),
}
STUDENT = {"spot, student": dict(method="spot", stage=2, fine_tuned_blocks=0)}  # learns where a teacher is given only
DRAWING = VARIANTS | STUDENT
ONE_EACH = [name for name, fields in VARIANTS.items() if name == fields.get("method", "dias")]
TRAINED = [*ONE_EACH, "dias, some locations", "dinosaur, raster", "vqdino, codes are features"]
TRAINED += ["dias, quantised", "dias, codes are features"]
# draws of all methods; what a pass wants of them is its own affair
NAMES = {"slots", "restart", "order", "visible", "merge", "permutation", "teaching", "sampled"}


def merges(config):
    return config.method == "dias" and config.merging != "none"


def test_every_method_is_here():
    assert {fields.get("method", "dias") for fields in VARIANTS.values()} == set(ONE_EACH)
    assert set(ONE_EACH) == {method for method, entry in METHODS.items() if entry.place}  # those for clips alone: test_clip.py


# What a pass takes and gives


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("slots", [1, 5])
def test_every_method_trains_and_evaluates(name, slots, small_config, images):
    model = build(small_config.replace(**VARIANTS[name], num_slots=slots)).train()
    output = model(images)
    assert isinstance(output, Output) and output.decoder_attention is None
    total(model, output).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model(images, decoder_attention=True).decoder_attention.shape == (3, slots, 8, 8)
    output = model.eval()(images)
    assert output.features.shape == output.reconstruction.shape == (3, model.config.code_dim or 16, 8, 8)
    assert output.slots.shape == (3, slots, 12) and output.attention.shape == (3, 3, slots, 8, 8)
    assert output.keep.dtype == torch.bool and output.keep.shape == (3, slots)
    assert output.keep.all() or merges(model.config)
    for maps in (*output.attention, output.decoder_attention):
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(3, 8, 8))
    assert model(images, decoder_attention=False).decoder_attention is None


@pytest.mark.parametrize("name", [*ONE_EACH, "dias, merge only", "dias, sample"])
def test_an_evaluation_may_have_more_iterations(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name], evaluation_iterations=5)).train()
    assert len(model(images).attention) == 3
    output = model.eval()(images)
    assert len(output.attention) == 5 and len(model.trace(images.byte()).attention) == 5
    other = with_fields(model, num_iterations=4)
    assert len(other(images).attention) == 4
    if merges(model.config):
        assert (output.attention[-1].amax(dim=(2, 3)) == 0).equal(~output.keep) or model.config.merging == "merge"
        with pytest.raises(ValueError, match="evaluation_iterations 1"):
            model.config.replace(merging="reinitialize", evaluation_iterations=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_known_features_and_masks_from_outside(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name])).eval()
    draws, slots = model.draw(range(3), seed=0), torch.randn(3, 5, 12)
    from_images = model(images, draws=draws)
    if name == "slate":
        with pytest.raises(ValueError, match="come from pixels"):
            model(None, draws=draws, features=model.backbone(images))
    else:
        from_features = model(None, draws=draws, features=model.backbone(images))
        assert torch.equal(from_images.reconstruction, from_features.reconstruction)
    given = model(images, initial_slots=slots, draws=draws)
    others = model.draw(range(3), seed=1)
    if name == "dias, sample":  # whose slots are drawn a second time
        others["restart"] = draws["restart"]
    assert torch.equal(given.slots, model(images, initial_slots=slots, draws=others).slots)
    assert not torch.equal(given.slots, from_images.slots)
    keep = torch.tensor([[True, True, False, True, False]] * 3)
    output = model(images, keep=keep, draws=draws)
    assert torch.equal(output.keep, keep) and (output.attention[:, ~keep] == 0).all()
    assert (output.decoder_attention[~keep] == 0).all()
    decoded = decode(model, given.features, given.slots, given.keep, given.attention[-1])
    torch.testing.assert_close(decoded.attention, given.decoder_attention)


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_that_are_no_squares_work(name, small_config, images, monkeypatch):
    monkeypatch.setattr(FourierBackbone, "features", lambda self, images: torch.randn(len(images), 16, 15, 17))
    model = build(small_config.replace(**VARIANTS[name])).train()
    assert model.backbone.grid == (15, 17)
    output = model(images)
    assert output.attention.shape == (3, 3, 5, 15, 17)
    assert output.reconstruction.shape == (3, model.config.code_dim or 16, 15, 17)
    total(model, output).backward()
    assert model.eval()(images).decoder_attention.shape == (3, 5, 15, 17)


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_of_another_size_than_the_models_are_refused(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name])).eval()
    with pytest.raises(ValueError, match="255"):
        model(images[:2], features=torch.randn(2, 16, 15, 17))


@pytest.mark.parametrize("name", ONE_EACH)
def test_trace_of_an_image_does_not_depend_on_the_batch(name, small_config):
    model = build(small_config.replace(**VARIANTS[name])).train()
    images = torch.randint(0, 255, (3, 3, 140, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trace = model.trace(images, seed=4, names=["a", "b", "c"])
    assert model.training and trace.names == ["a", "b", "c"] and trace.about["seed"] == 4
    assert trace.attention.shape == (3, 3, 5, 8, 8) and trace.images.shape == (3, 140, 140, 3)
    one = model.trace(images[:1], seed=4)
    assert abs(one.attention[:, 0].astype(float) - trace.attention[:, 0]).max() < 2e-3


# Random numbers


@pytest.mark.parametrize("name", VARIANTS)
def test_draws_decide_everything(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name])).train()
    draws = model.draw([0, 1, 2], seed=5, step=9)
    first, second = model(images, draws=draws), model(images, draws=draws)
    assert torch.equal(first.slots, second.slots) and torch.equal(first.reconstruction, second.reconstruction)
    other = model(images, draws=model.draw([0, 1, 2], seed=5, step=10))
    assert not torch.equal(first.slots, other.slots)
    torch.manual_seed(3)
    drawn = model(images).slots
    torch.manual_seed(3)
    assert torch.equal(model(images).slots, drawn)
    model.eval()
    alone = model(images[1:2], draws=model.draw([1], seed=5))
    together = model(images, draws=model.draw([0, 1, 2], seed=5))
    torch.testing.assert_close(alone.decoder_attention[0], together.decoder_attention[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DRAWING)
def test_draws_follow_seed_step_and_place(name, small_config):
    model = build(small_config.replace(**DRAWING[name]))
    draws, places = model.draw([0, 1, 2], seed=5, step=9), slice(1, 3)
    part = model.draw([1, 2], seed=5, step=9)  # what another process draws of the batch
    assert draws.keys() == part.keys() and all(torch.equal(draws[key][places], part[key]) for key in draws)
    images = [request for request in model.requests() if request.per == "image" and request.stream != "merging"]
    own = draw(5, 9, [0, 1, 2], images).keys()
    assert "slots" in own
    for other in (model.draw([0, 1, 2], 6, 9), model.draw([0, 1, 2], 5, 10), model.draw([1, 2, 3], 5, 9)):
        different = {key for key in own if not torch.equal(draws[key], other[key])}
        assert own - different <= {"visible"}  # few numbers, which may fall alike


@pytest.mark.parametrize("name", DRAWING)
def test_requests_travel_to_the_processes_that_read_batches(name, small_config):
    model = build(small_config.replace(**DRAWING[name]))
    requests = pickle.loads(pickle.dumps(model.requests()))
    drawn, expected = draw(5, 9, [4, 7], requests), model.draw([4, 7], seed=5, step=9)
    assert drawn.keys() == expected.keys() and all(torch.equal(drawn[key], expected[key]) for key in drawn)
    larger = model.draw([4, 7], seed=5, step=9, num_locations=100)
    assert "order" not in larger or larger["order"].shape == (2, 100)
    assert torch.equal(larger["slots"], expected["slots"])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_draws_of_another_method_are_not_needed(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name])).train()
    draws = model.draw(range(3), seed=5)
    assert draws.keys() <= NAMES
    foreign = {other: torch.full((3,), torch.nan) for other in NAMES - draws.keys()}
    first, second = model(images, draws=draws), model(images, draws=draws | foreign)
    assert torch.equal(first.slots, second.slots) and torch.equal(first.reconstruction, second.reconstruction)


@pytest.mark.parametrize("name", VARIANTS)
def test_same_seed_same_weights_whatever_happened_before(name, small_config):
    config = small_config.replace(**VARIANTS[name])
    torch.manual_seed(99)
    first = build(config).trained_state()
    torch.randn(5)
    second, other = build(config).trained_state(), build(config.replace(seed=1)).trained_state()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {key.partition(".")[0] for key in first if not torch.equal(first[key], other[key])} >= {"aggregator", "decoder"}


# What the training needs


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_weights_have_the_same_names_at_any_time(name, small_config, images):
    model = build(small_config.replace(**VARIANTS[name])).train()
    output, seen = model(images), set()
    for progress in (0.0, 0.5, 1.0):
        losses, weights = model.losses(output, progress)
        assert losses.keys() == weights.keys() and "reconstruction" in losses
        assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
        assert all(isinstance(weight, float) and weight >= 0 for weight in weights.values())
        seen.add(frozenset(losses))
    assert len(seen) == 1


@pytest.mark.parametrize("name", DRAWING)
def test_parameter_groups_hold_each_trained_parameter_once(name, small_config):
    model = build(small_config.replace(**DRAWING[name], aggregator_rate=0.5, quantizer_rate=3.0))
    groups = model.parameter_groups()
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    shares = {id(parameter): group["share"] for group in groups for parameter in group["params"]}
    expected = {"decoder": 1.0, "aggregator": 0.5, "project": 0.5, "quantizer": 3.0}
    for part, parameter in model.named_parameters():
        if (top := part.partition(".")[0]) in expected:
            assert shares[id(parameter)] == expected[top]


@pytest.mark.parametrize("name", DRAWING)
def test_compiled_parts_are_the_models(name, small_config):
    model = build(small_config.replace(**DRAWING[name]))
    parts = {id(module): part for part, module in model.named_modules()}
    compiled = {parts.get(id(module)) for module in model.compiled()}
    assert compiled >= {"project", "aggregator", "decoder"} and None not in compiled and "" not in compiled


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("cache", [0, 1])
def test_each_method_trains_resumes_evaluates_and_traces(name, cache, small_config, small_scenes, tmp_path, monkeypatch):
    if name == "slate" and cache:
        pytest.skip("refused: its tokens come from pixels")
    fields = dict(steps=12, cache_views=cache, learning_rate=2e-3, preheat_detached=0.5)
    config = small_config.replace(**VARIANTS[name], **fields)
    result = fit(config, tmp_path / "whole", progress=False)
    assert ("perplexity" in result["loss"]) == ("codebook_size" in VARIANTS[name])
    assert {"loss", "reconstruction"} <= result["loss"].keys() and ("preheat" in result["loss"]) == (name == "smoothsa")
    lines = [line for line in runs.read_lines(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    falls = "quantization" if "codebook_size" in VARIANTS[name] else "reconstruction"  # of a target that still moves
    assert lines[-1][falls] < lines[0][falls]
    interrupted(config, tmp_path / "parts", 7, monkeypatch)
    whole, parts = states(tmp_path / "whole", tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    before = build(config).trained_state()
    assert all(not torch.equal(whole[key], before[key]) for key in whole if not key.endswith("norm_slots.bias"))
    scores = evaluate(tmp_path / "whole", small_scenes / "test.lmdb").scores
    assert scores["images"] == 3 and set(scores["decoder"]) >= {"ari", "fg_ari", "mbo", "miou"}
    model = checkpoint.load_model(tmp_path / "whole")
    trace = model.trace(torch.randint(0, 255, (2, 3, 140, 130), dtype=torch.uint8))
    assert trace.about["method"] == config.method and trace.attention.shape == (3, 2, 5, 8, 8)
    assert len(baseline_scores(model, store.open(small_scenes / "test.lmdb"), limit=1)) == 1
