"""Properties of the parts, with small unequal sizes, and the numbers measured on the reference's code."""

import math

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.spatial.distance
import torch

from dias_lab.data.draws import draw
from dias_lab.losses import distillation_loss, schedule
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.decoder import MLPDecoder, RandomOrderDecoder
from dias_lab.modules.initializer import SeparateGaussian, SharedGaussian
from dias_lab.modules.matching import match_segments
from dias_lab.modules.redundancy import cluster, cut, dendrogram, is_leader, merge_redundant, otsu_threshold
from dias_lab.modules.transformer import resize_position

B, N, L, C, D = 2, 4, 9, 12, 8


@pytest.fixture
def aggregate():
    torch.manual_seed(0)
    return SlotAttention(C, D, 10, 3), torch.randn(B, L, C), torch.randn(B, N, D)


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_a_threshold_of_zero_merges_nothing_not_even_twins(linkage):
    slots = torch.randn(1, 1, 64).expand(8, N, 64)
    assert merge_redundant(slots, 0.0, linkage, min_kept=1)[1].all()
    assert (merge_redundant(slots, 1e-3, linkage, min_kept=1)[1].sum(dim=1) == 1).all()


# The decoder's start as a lookup


@torch.no_grad()
@pytest.mark.parametrize("slot_dim", [48, 64, 80])
def test_a_decoder_that_starts_as_a_lookup_finds_the_slot_that_holds_a_locations_feature(slot_dim):
    torch.manual_seed(0)
    features = torch.randn(B, N, 64)
    features[..., slot_dim:] = 0
    slots = torch.nn.functional.pad(features, (0, slot_dim - 64))  # slot n holds the feature of location n
    decoder = RandomOrderDecoder(64, slot_dim, N, num_layers=1, num_heads=2).eval()
    decoder.start_as_lookup()
    decoder.layers[0].self_attention.out_proj.weight.zero_()  # no look at the other locations
    _, attention = decoder(features, slots)
    assert torch.equal(attention.argmax(dim=1), torch.arange(N).expand(B, N))


# Slot Attention


def test_permuting_slots_permutes_maps(aggregate):
    model, features, slots = aggregate
    order = torch.tensor([2, 0, 3, 1])
    expected = model(features, slots)
    permuted = model(features, slots[:, order])
    torch.testing.assert_close(permuted.attention, expected.attention[:, :, order])
    torch.testing.assert_close(permuted.slots, expected.slots[:, order])


def test_fewer_iterations_are_a_prefix(aggregate):
    model, features, slots = aggregate
    full = model(features, slots).attention
    assert full.shape == (3, B, N, L)
    torch.testing.assert_close(model(features, slots, num_iterations=2).attention, full[:2])


def test_slots_compete_for_each_location(aggregate):
    model, features, slots = aggregate
    torch.testing.assert_close(model(features, slots).attention.sum(dim=2), torch.ones(3, B, L))


@pytest.mark.parametrize("slot_dim", [D, C])
def test_the_start_as_k_means_is_an_iteration_of_soft_k_means(slot_dim):
    torch.manual_seed(0)
    model, features, slots = SlotAttention(C, slot_dim, 10), torch.randn(B, L, C), torch.randn(B, N, slot_dim)
    model.start_as_k_means(sharpness=2.0)
    points = torch.nn.functional.layer_norm(features, (C,))[..., :slot_dim]  # as many channels as fit into a slot
    centres = torch.nn.functional.layer_norm(slots, (slot_dim,))
    weights = (2 * centres @ points.transpose(1, 2) / slot_dim**0.5).softmax(dim=1)
    means = weights @ points / weights.sum(dim=2, keepdim=True)
    key, value = model.keys_and_values(features)
    updated, attention = model.step(slots, key, value)
    torch.testing.assert_close(attention, weights)
    old = torch.sigmoid(torch.tensor(-4.0))  # the share of the old slot that the GRU keeps
    torch.testing.assert_close(updated, (1 - old) * means.tanh() + old * slots, atol=1e-4, rtol=1e-4)


def test_masked_slots_get_exactly_nothing_and_change_nobody(aggregate):
    model, features, slots = aggregate
    keep = torch.tensor([[True, False, True, True], [True, True, False, False]])
    masked = model(features, slots, keep)
    assert (masked.attention.transpose(0, 2)[~keep.T] == 0).all()
    alone = model(features[1:], slots[1:, :2])
    torch.testing.assert_close(masked.slots[1:, :2], alone.slots)
    torch.testing.assert_close(masked.attention[:, 1:, :2], alone.attention)


def test_the_state_of_the_gru_is_the_slot_before_its_norm(aggregate):
    model, features, slots = aggregate
    key, value = model.keys_and_values(features)
    seen = []
    model.gru.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    model.step(slots, key, value)
    torch.testing.assert_close(seen[0], slots.flatten(0, 1))


def test_nothing_to_aggregate_is_refused(aggregate):
    model, features, slots = aggregate
    with pytest.raises(ValueError, match="at least 1"):
        model(features, slots, num_iterations=0)
    with pytest.raises(ValueError, match="every slot"):
        model(features, slots, torch.tensor([[True] * N, [False] * N]))


# The reference's numbers: every float tensor is .2 sin(.7 i + rank of its name), plus 1 for the weights of norms

SLOT_ATTENTION_NAMES = {
    "norm_slots": "norm1q", "to_query": "proj_q", "norm_features": "norm1kv", "to_key": "proj_k", "to_value": "proj_v",
    "gru": "rnn", "norm_mlp": "norm2", "mlp": "ffn",
}  # fmt: skip
DECODER_NAMES = {
    "position": "posit_embed._pe", "project_features": "project1", "project_slots": "project2", "norm_input": "norm0",
    "layers": "backbone.layers", "norm_self": "norm1", "norm_cross": "norm2", "norm_mlp": "norm3", "mlp.0": "linear1",
    "mlp.2": "linear2", "self_attention": "self_attn", "cross_attention": "multihead_attn",
}  # fmt: skip


def fill(module, names):
    def reference_name(name):
        for ours, theirs in names.items():
            name = ".".join(name.split(".")).replace(ours, theirs)
        return name

    state = module.state_dict()
    ranks = {name: rank for rank, name in enumerate(sorted(map(reference_name, state)))}
    for name, tensor in state.items():
        theirs = reference_name(name)
        values = 0.2 * torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + ranks[theirs])
        norm = theirs.endswith("weight") and ("norm" in theirs or tensor.ndim == 1)
        state[name] = (values.view(tensor.shape) + norm).float()
    module.load_state_dict(state)
    return module.eval()


def wave(shape, phase):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape).float()


@pytest.fixture
def filled():
    model = fill(SlotAttention(12, 8, 16, 3), SLOT_ATTENTION_NAMES)
    return model, wave((2, 16, 12), 0), wave((2, 3, 8), 1)


def close(tensor, *values):
    torch.testing.assert_close(tensor.flatten(), torch.tensor(values), atol=1e-4, rtol=1e-4)


def test_fixture_of_slot_attention(filled):
    model, features, slots = filled
    result, attention = model(features, slots)
    close(result.sum(), 3.710116)
    close(result.abs().sum(), 31.29826)
    close(result.flatten()[:4], -0.421462, 1.109288, 1.406338, -0.30969)
    close(result.flatten()[-2:], 0.555998, -0.262425)
    close(attention[0].flatten()[:4], 0.352877, 0.321033, 0.319507, 0.352612)
    close(attention[1].flatten()[:4], 0.325634, 0.331936, 0.339265, 0.329457)
    close(attention[2].flatten()[:4], 0.343488, 0.330993, 0.327422, 0.340942)
    close(attention.sum(dim=(1, 2, 3)), 32.0, 32.0, 32.0)
    single, _ = model(features, slots, num_iterations=1)
    close(single.sum(), -0.847523)
    close(single.abs().sum(), 30.079795)


KEEP = torch.tensor([[True, True, False], [True, True, True]])


def test_fixture_of_masked_slot_attention(filled):
    model, features, slots = filled
    result, attention = model(features, slots, KEEP)
    close(result.sum(), 3.666926)
    close(result.abs().sum(), 31.205873)
    close(attention[-1].flatten()[:4], 0.527619, 0.494423, 0.484205, 0.520182)


def test_fixture_of_distillation(filled):
    _, attention = filled[0](*filled[1:])
    close(distillation_loss(attention, "release"), 1.0974584818)
    close(distillation_loss(attention, "cross_entropy"), 1.1074175835)


def test_fixture_of_random_order_decoder(filled):
    model, features, slots = filled
    slots, _ = model(features, slots)
    decoder = fill(RandomOrderDecoder(12, 8, 16, 2, 2, 24), DECODER_NAMES)
    reconstruction, attention = decoder(features, slots)
    close(reconstruction.sum(), -6.301358)
    close(reconstruction.abs().sum(), 345.009396)
    close(reconstruction.flatten()[:4], -1.410266, 0.626065, 1.241295, -1.826186)
    close(attention.flatten()[:4], 0.287171, 0.362995, 0.376515, 0.285632)
    reconstruction, attention = decoder(features, slots, KEEP)
    close(reconstruction.sum(), -6.38128)
    close(attention.flatten()[:4], 0.404821, 0.566166, 0.602327, 0.400663)


# Redundancy


def alike_slots() -> torch.Tensor:
    """Slots [12 9 5] of which some are alike."""
    slots = torch.randn(12, 9, 5, generator=torch.Generator().manual_seed(1))
    slots[:, 5:] = slots[:, :4] + 0.3 * slots[:, 5:]
    return slots


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.9])
def test_clusters_are_those_of_scipy(linkage, threshold):
    slots = alike_slots()
    leaders = cluster(slots, threshold, linkage, min_kept=1)
    for image, leader in zip(slots, leaders):
        distances = scipy.spatial.distance.pdist(image.double().numpy(), "cosine")
        tree = scipy.cluster.hierarchy.linkage(distances, linkage)
        labels = scipy.cluster.hierarchy.fcluster(tree, threshold, "distance")
        assert ((labels[:, None] == labels) == (leader[:, None] == leader).numpy()).all()
        assert all(leader[i] == np.flatnonzero(labels == labels[i])[0] for i in range(len(labels)))


@pytest.mark.parametrize(
    "threshold, keep", [(0.001, "11111"), (0.01, "11010"), (0.5, "11010"), (1.5, "11111")]
)  # at 1.5 fewer than 3 clusters would be left, so nothing is merged
def test_fixture_of_merging(threshold, keep):
    slots = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0.1, 0, 0], [0, 0, 1, 0], [0, 1, 0.1, 0]])[None]
    merged, kept = merge_redundant(slots, threshold, guard="cancel")
    assert kept[0].tolist() == [digit == "1" for digit in keep]
    if "0" in keep:
        torch.testing.assert_close(merged[0, 0], (slots[0, 0] + slots[0, 2]) / 2)
        assert (merged[0, ~kept[0]] == 0).all()
    else:
        torch.testing.assert_close(merged, slots)


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_heights_are_those_of_scipy(linkage):
    slots = alike_slots()
    for image, heights in zip(slots, dendrogram(slots, linkage).heights):
        distances = scipy.spatial.distance.pdist(image.double().numpy(), "cosine")
        np.testing.assert_allclose(heights, scipy.cluster.hierarchy.linkage(distances, linkage)[:, 2], atol=1e-6)


def test_guards_cancel_or_stop():
    tree = dendrogram(alike_slots())
    counts = lambda **options: is_leader(cut(tree, 2.01, **options)).sum(1).tolist()  # noqa: E731
    assert counts(min_kept=4, guard="cancel") == [9] * 12
    assert counts(min_kept=4) == counts(min_kept=4, guard="stop") == [4] * 12
    assert counts(min_kept=1) == [1] * 12
    assert counts(min_kept=20, guard="stop") == [9] * 12  # more than there are slots


@pytest.mark.parametrize("min_kept", [1, 3, 8])
def test_rules_without_a_threshold_against_a_plain_search(min_kept):
    tree = dendrogram(alike_slots(), "average")
    for rule in ("gap", "otsu"):
        kept = is_leader(cut(tree, 0.0, min_kept, rule)).sum(dim=1)
        for heights, count in zip(tree.heights.double().numpy(), kept):
            values, best = np.append(0, heights), {}
            for merges in range(9 - min_kept + 1):
                below, above = values[: merges + 1], values[merges + 1 :]
                if len(above):
                    between = len(below) * len(above) * (below.mean() - above.mean()) ** 2
                    best[merges] = above[0] - below[-1] if rule == "gap" else between
            assert count == 9 - max(best, key=best.get)


@pytest.mark.parametrize("rule", ["threshold", "gap", "otsu"])
def test_who_is_with_whom_does_not_depend_on_the_order_of_the_slots(rule):  # U11
    slots, order = alike_slots(), torch.randperm(9, generator=torch.Generator().manual_seed(2))
    leader, permuted = (cluster(x, 0.4, "average", rule=rule, guard="stop") for x in (slots, slots[:, order]))
    together = leader[:, :, None] == leader[:, None, :]
    assert torch.equal(together[:, order][:, :, order], permuted[:, :, None] == permuted[:, None, :])
    assert not together.all() and together.sum() > 12 * 9
    assert (leader <= torch.arange(9)).all()  # the lowest index leads


def test_a_threshold_between_two_groups_of_heights():
    low, high = torch.linspace(0.01, 0.2, 50), torch.linspace(0.6, 0.9, 20)
    mixed = torch.cat([high, low])[torch.randperm(70, generator=torch.Generator().manual_seed(0))]
    assert otsu_threshold(mixed.view(7, 10)) == pytest.approx(0.4)


def test_rules_without_a_threshold_find_groups_that_anybody_sees():
    groups = torch.eye(4).repeat_interleave(3, dim=0) + 0.05 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    for rule in ("gap", "otsu"):
        leader = cluster(groups[None], 0.0, min_kept=1, rule=rule)[0]
        assert leader.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
        assert cluster(torch.randn(2, 1, 4), 0.0, rule=rule).tolist() == [[0], [0]]


def test_gradient_reaches_every_member_of_a_cluster_unless_declined():
    slots = torch.tensor([[[1.0, 0], [0, 1], [1, 0.1], [-1, 0]]], requires_grad=True)
    merge_redundant(slots, 0.1)[0].sum().backward()
    torch.testing.assert_close(slots.grad[0, :, 0], torch.tensor([0.5, 1, 0.5, 1]))
    slots.grad = None
    merge_redundant(slots, 0.1, gradient=False)[0].sum().backward()
    torch.testing.assert_close(slots.grad[0, :, 0], torch.tensor([0.0, 1, 0, 1]))


def test_clusters_do_not_depend_on_reduced_precision():
    slots = torch.randn(64, 7, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 1
    with torch.autocast("cpu", torch.bfloat16):
        reduced = cluster(slots, 0.05)
    assert torch.equal(reduced, cluster(slots, 0.05))


@pytest.mark.parametrize("option", ["linkage", "rule", "guard"])
def test_unknown_linkage_rule_or_guard_is_refused(option):
    with pytest.raises(ValueError, match="ward"):
        merge_redundant(torch.randn(1, 3, 2), 0.1, **{option: "ward"})


# Losses


def test_distillation_gradient_reaches_the_first_map_only():
    attention = torch.rand(3, B, N, L).softmax(2).requires_grad_()
    distillation_loss(attention).backward()
    assert attention.grad[0].abs().sum() > 0 and attention.grad[1:].abs().sum() == 0


def test_the_release_form_has_a_floor():
    maps = torch.nn.functional.one_hot(torch.arange(70).view(1, 70) % 7, 7).transpose(1, 2).float()
    same = torch.stack([maps, maps])
    assert distillation_loss(same, "release").item() == pytest.approx(math.log((math.e + 6) / math.e), abs=1e-5)
    assert distillation_loss(same, "cross_entropy").item() == pytest.approx(0, abs=1e-5)


def test_hungarian_matching_undoes_a_permutation():
    student = torch.rand(B, N, 40).mul(9).softmax(1)
    order = torch.tensor([[2, 0, 3, 1], [1, 2, 3, 0]])
    teacher = student.gather(1, order[..., None].expand_as(student))
    assert (order.gather(1, match_segments(student, teacher)) == torch.arange(N)).all()
    permuted = torch.stack([student, teacher])
    plain = distillation_loss(torch.stack([student, student]))
    torch.testing.assert_close(distillation_loss(permuted, match="hungarian"), plain)
    assert distillation_loss(permuted, match="identity") > plain


def test_unknown_forms_and_matches_are_refused():
    maps = torch.rand(2, 1, 3, 4)
    with pytest.raises(ValueError, match="'kl'"):
        distillation_loss(maps, form="kl")
    with pytest.raises(ValueError, match="'greedy'"):
        distillation_loss(maps, match="greedy")


def test_schedules():
    assert [schedule("cosine", t) for t in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.1464, 0.5, 1], abs=1e-4)
    assert [schedule("square", t) for t in (0, 0.3, 0.8)] == [0, 1, 0]
    assert schedule("constant", 0.2, start=0.5) == 0 and schedule("cosine", 1, start=1.0) == 0


# Decoders


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return RandomOrderDecoder(C, D, L, 2, 2), torch.randn(B, L, C), torch.randn(B, N, D)


def test_masking_in_place_equals_permuting_and_permuting_back(decoder):
    model, features, slots = decoder
    order = torch.stack([torch.randperm(L) for _ in range(B)])
    visible = torch.tensor([2, 5])
    result, _ = model(features, slots, order=order, visible=visible)
    for b in range(B):  # as the release does it
        tokens = model.project_features(features[b : b + 1])[:, order[b]]
        tokens[:, visible[b] :] = model.mask_token
        hidden = model.norm_input(tokens + model.position[:, order[b]])
        for layer in model.layers:
            hidden, _ = layer(hidden, model.project_slots(slots[b : b + 1]))
        torch.testing.assert_close(result[b], hidden[0, order[b].argsort()])


def test_hidden_locations_do_not_leak(decoder):
    model, features, slots = decoder
    order, visible = torch.arange(L).expand(B, L), torch.tensor([3, 3])
    changed = features.clone()
    changed[:, 3:] += 1
    expected, _ = model(features, slots, order=order, visible=visible)
    torch.testing.assert_close(model(changed, slots, order=order, visible=visible)[0], expected)


def test_given_order_means_no_sampling(decoder):
    model, features, slots = decoder
    order = torch.arange(L).expand(B, L)
    everything = model(features, slots, order=order, visible=torch.tensor([L, L]))[0]
    assert torch.equal(model(features, slots, order=order)[0], everything)  # in training as well
    with pytest.raises(ValueError, match="give the order"):
        model(features, slots, visible=torch.tensor([1, 2]))


def test_the_decoders_own_draws_follow_the_release():
    drawn = draw(3, 0, range(300), RandomOrderDecoder(C, D, 256, 1).requests(256))
    order, visible = drawn["order"], drawn["visible"]
    assert torch.equal(order.sort(1).values, torch.arange(256).expand(300, 256))
    assert 0.35 < (visible == 24).float().mean() < 0.65 and 0 <= visible.min() and visible.max() <= 254


def test_evaluation_hides_nothing_and_is_deterministic(decoder):
    model, features, slots = decoder
    model.eval()
    assert torch.equal(model(features, slots)[0], model(features, slots)[0])
    model.train()
    assert not torch.equal(model(features, slots)[0], model(features, slots)[0])


def test_training_computes_no_attention_weights_unless_somebody_reads_them(decoder, monkeypatch):
    model, features, slots = decoder
    asked = []
    forward = torch.nn.MultiheadAttention.forward
    spy = lambda self, *a, need_weights=True, **k: asked.append(need_weights) or forward(self, *a, need_weights=need_weights, **k)  # noqa: E731, E501
    monkeypatch.setattr(torch.nn.MultiheadAttention, "forward", spy)
    assert model(features, slots)[1] is None and not any(asked)
    asked.clear()
    attention = model(features, slots, need_attention=True)[1]
    assert sum(asked) == 1  # the last layer's cross-attention
    torch.testing.assert_close(attention.sum(1), torch.ones(B, L))


@pytest.mark.parametrize("kind", [RandomOrderDecoder, MLPDecoder])
def test_decoder_gives_masked_slots_exactly_nothing(kind):
    torch.manual_seed(0)
    model = kind(C, D, L, 2).eval()
    keep = torch.tensor([[True, False, True, True], [False, True, False, True]])
    slots = torch.randn(B, N, D)
    reconstruction, attention = model(torch.randn(B, L, C).zero_(), slots, keep)
    assert (attention[~keep] == 0).all()
    torch.testing.assert_close(attention.sum(1), torch.ones(B, L))
    slots[~keep] += 1
    torch.testing.assert_close(model(torch.zeros(B, L, C), slots, keep)[0], reconstruction)


def test_position_table_resizes_and_says_so(decoder):
    model, _, slots = decoder
    with pytest.warns(UserWarning, match="3x3 to 4x4"):
        reconstruction, _ = model(torch.randn(B, 16, C), slots)
    assert reconstruction.shape == (B, 16, C)
    with pytest.raises(ValueError, match="12"):
        resize_position(model.position, 12)
    assert resize_position(model.position, L) is model.position


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="decoder_heads = 5"):
        RandomOrderDecoder(C, D, L, num_heads=5)


# Initializers


def test_shared_gaussian_draws_in_evaluation_too_and_separate_does_not():
    shared, separate = SharedGaussian(N, D).eval(), SeparateGaussian(N, D).eval()
    assert shared.mean.abs().max() <= math.sqrt(6 / (D + D)) + 1e-6
    assert not torch.equal(shared(B), shared(B))
    assert torch.equal(separate(B), separate(B))
    assert not torch.equal(separate.train()(B), separate(B))
    noise = torch.zeros(B, N, D)
    assert torch.equal(shared(B, noise=noise), shared.mean.expand(B, N, D))
