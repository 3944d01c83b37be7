import pytest
import torch

from dias_lab.methods import build, segments_from
from dias_lab.methods.dias import DIASOutput
from dias_lab.modules.redundancy import cluster

FORMS = {
    "released": dict(merging="none", matching="identity", distillation="release"),
    "complete": dict(merge_threshold=0.5),
    "merge only": dict(merging="merge", merge_threshold=0.5),
    "sample": dict(reinitialize_from="sample", merge_threshold=0.5),
    "survivor": dict(reinitialize_from="survivor", merge_threshold=0.5),
    "unmasked": dict(mask_reinitialized=False, merge_threshold=0.5),
    "before": dict(teacher="before_merging", merge_threshold=0.5),
    "sometimes": dict(merge_probability=0.5, merge_draw="batch", merge_threshold=0.5),
    "average": dict(linkage="average", merge_gradient=False, merge_threshold=0.5),
    "mlp": dict(decoder="mlp", decoder_mlp_dim=16),
    "separate": dict(initializer="separate", distillation="none"),
}


@pytest.fixture
def images(small_config):
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_and_evaluates(form, small_config, images):
    config = small_config.replace(**FORMS[form])
    model = build(config).train()
    output = model(images)
    assert isinstance(output, DIASOutput) and output.decoder_attention is None
    losses, weights = model.losses(output, progress=0.3)
    assert losses.keys() == weights.keys()
    sum(weights[name] * losses[name] for name in losses).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    output = model.eval()(images)
    T, B, N = config.num_iterations, 3, config.num_slots
    assert output.features.shape == output.reconstruction.shape == (B, 16, 8, 8)
    assert output.slots.shape == (B, N, 12) and output.attention.shape == (T, B, N, 8, 8)
    assert output.keep.shape == (B, N) and output.decoder_attention.shape == (B, N, 8, 8)
    for maps in (*output.attention, output.decoder_attention):
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(B, 8, 8))


def test_merged_slots_get_exactly_nothing_after_reinitialization(small_config, images):
    output = build(small_config.replace(merge_threshold=1.0, min_kept=1)).eval()(images)
    assert not output.keep.all()
    gone = ~output.keep
    assert (output.attention[-1][gone] == 0).all() and (output.decoder_attention[gone] == 0).all()
    assert (output.attention[1][gone] > 0).all()
    for maps in (output.attention[-1], output.decoder_attention):  # U12: they never win a place
        for segments, keep in zip(segments_from(maps, 64), output.keep):
            assert set(segments.unique().tolist()) <= set(keep.nonzero().flatten().tolist())


def test_without_redundant_slots_the_complete_form_is_the_released_one(small_config, images):
    complete = build(small_config.replace(merge_threshold=0.0)).eval()
    released = build(small_config.replace(merging="none")).eval()
    draws = complete.draw(range(3), seed=1)
    for a, b in zip(vars(complete(images, draws=draws)).values(), vars(released(images, draws=draws)).values()):
        torch.testing.assert_close(a, b)


def test_merging_alone_adds_up_the_members_maps(small_config, images):
    merged = build(small_config.replace(merging="merge", merge_threshold=1.0, min_kept=1)).eval()
    plain = build(small_config.replace(merging="none")).eval()
    draws = merged.draw(range(3), seed=1)
    a, b = merged(images, draws=draws), plain(images, draws=draws)
    torch.testing.assert_close(a.attention[:-1], b.attention[:-1])
    assert (a.attention[-1][~a.keep] == 0).all() and not a.keep.all()
    for image in range(3):
        leader = cluster(b.slots[image : image + 1], 1.0, small_config.linkage, min_kept=1)[0]
        for slot in range(5):
            expected = b.attention[-1, image, leader == slot].sum(dim=0)
            torch.testing.assert_close(a.attention[-1, image, slot], expected)


def test_initial_values_are_those_of_the_release(small_config):
    model = build(small_config)
    biases = [p for name, p in model.named_parameters() if "bias" in name and "norm" not in name and "project.0" not in name]
    assert len(biases) == 8 and all((bias == 0).all() for bias in biases)  # projector, GRU, the slots' MLP; and two norms
    first, second = model.decoder.layers
    assert torch.equal(first.mlp[0].weight, second.mlp[0].weight)  # layers start equal
    assert model.decoder.position.abs().max() <= 2 and 0.7 < model.decoder.position.std() < 1
    assert 0.1 < model.decoder.mask_token.std() < 0.5  # 16 ** -0.5
    bound = (6 / 24) ** 0.5
    assert model.initializer.log_std.abs().max() <= bound and model.initializer.mean.abs().max() <= bound


def test_released_form_is_permutation_equivariant(small_config, images):
    model = build(small_config.replace(merging="none")).eval()
    slots = torch.randn(3, 5, 12)
    order = torch.tensor([4, 2, 0, 1, 3])
    a, b = model(images, initial_slots=slots), model(images, initial_slots=slots[:, order])
    torch.testing.assert_close(a.attention[:, :, order], b.attention, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.decoder_attention[:, order], b.decoder_attention, atol=1e-4, rtol=1e-4)


def test_a_keep_mask_from_outside_leaves_slots_out_from_the_start(small_config, images):
    keep = torch.tensor([[True, True, False, True, False]] * 3)
    output = build(small_config).eval()(images, keep=keep)
    assert torch.equal(output.keep, keep) and (output.attention[:, ~keep] == 0).all()


def test_draws_decide_everything_and_follow_seed_step_and_place(small_config, images):
    model = build(small_config).train()
    draws = model.draw([0, 1, 2], seed=5, step=9)
    assert torch.equal(model(images, draws=draws).slots, model(images, draws=draws).slots)
    alone = model.draw([1], seed=5, step=9)
    assert draws.keys() == alone.keys() and all(torch.equal(draws[name][1:2], alone[name]) for name in draws)
    for other in (model.draw([0, 1, 2], 6, 9), model.draw([0, 1, 2], 5, 10), model.draw([1, 2, 3], 5, 9)):
        assert not torch.equal(draws["slots"], other["slots"]) and not torch.equal(draws["order"], other["order"])
    torch.manual_seed(3)
    first = model(images).slots
    torch.manual_seed(3)
    assert torch.equal(model(images).slots, first)


def test_visible_locations_follow_the_release(small_config):
    model = build(small_config.replace(visible_probability=0.5, visible_fraction=0.1))
    visible = model.draw(range(400), seed=0, num_locations=256)["visible"]
    assert (visible == 24).float().mean().sub(0.5).abs() < 0.1
    assert visible.max() <= 254 and visible.min() >= 0 and len(visible.unique()) > 100


def test_prepare_takes_the_centre_square_and_normalises(small_config):
    model = build(small_config)
    images = torch.zeros(2, 3, 100, 300, dtype=torch.uint8)
    images[..., 100:200] = 255
    segments = torch.zeros(2, 100, 300, dtype=torch.uint8)
    segments[..., 100:200] = 1
    prepared, cut = model.prepare(images, segments)
    assert prepared.shape == (2, 3, 128, 128) and cut.shape == (2, 128, 128)
    assert (cut == 1).all() and torch.allclose(prepared, torch.tensor(2.0))  # (1 - mean) / std
    assert model.prepare(images).shape == (2, 3, 128, 128)


@pytest.mark.parametrize(
    "images, segments, words",
    [
        (torch.full((1, 3, 8, 8), float("nan")), None, "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, r"\[B 3 H W\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, r"\[B 3 H W\]"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), None, "at least one pixel"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 9, 8), "segments"),
    ],
)
def test_wrong_images_are_refused(images, segments, words, small_config):
    with pytest.raises(ValueError, match=words):
        build(small_config).prepare(images, segments)


def test_trace_of_an_image_does_not_depend_on_the_batch(small_config):
    model = build(small_config).train()
    images = torch.randint(0, 255, (3, 3, 140, 150), dtype=torch.uint8)
    trace = model.trace(images, seed=4, names=["a", "b", "c"])
    assert model.training and trace.names == ["a", "b", "c"] and trace.about["seed"] == 4
    assert trace.attention.shape == (3, 3, 5, 8, 8) and trace.images.shape == (3, 128, 128, 3)
    one = model.trace(images[:1], seed=4)
    assert abs(one.attention[:, 0].astype(float) - trace.attention[:, 0]).max() < 2e-3


def test_segments_are_the_arg_max_of_the_upsampled_maps():
    maps = torch.tensor([[[[0.9, 0.1], [0.9, 0.1]], [[0.1, 0.9], [0.1, 0.9]]]])
    segments = segments_from(maps, 4)
    assert segments.tolist() == [[[0, 0, 1, 1]] * 4]


def test_weights_of_another_model_are_refused_by_name(small_config):
    model, other = build(small_config), build(small_config.replace(slot_dim=16))
    with pytest.raises(ValueError, match=r"initializer.mean is \(1, 1, 16\), not \(1, 1, 12\)"):
        model.load_trained_state(other.trained_state())
    state = model.trained_state()
    state["extra"] = state.pop("decoder.mask_token")
    with pytest.raises(ValueError, match="missing decoder.mask_token; unknown extra"):
        model.load_trained_state(state)


def test_same_seed_same_weights_whatever_happened_before(small_config):
    torch.manual_seed(99)
    first = build(small_config).trained_state()
    torch.randn(5)
    second = build(small_config).trained_state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["decoder.mask_token"], build(small_config.replace(seed=1)).trained_state()["decoder.mask_token"])
