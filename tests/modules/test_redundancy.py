"""Which slots say the same thing, how they are merged, and aggregation from those that are left."""

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.spatial.distance
import torch

from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.redundancy import (
    cluster,
    cut,
    dendrogram,
    is_leader,
    merge_redundant,
    otsu_threshold,
    reinitialize,
)


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


@pytest.mark.parametrize("linkage", ["complete", "average", "single"])
def test_heights_are_those_of_scipy(linkage):
    slots = alike_slots()
    for image, heights in zip(slots, dendrogram(slots, linkage).heights):
        distances = scipy.spatial.distance.pdist(image.double().numpy(), "cosine")
        np.testing.assert_allclose(heights, scipy.cluster.hierarchy.linkage(distances, linkage)[:, 2], atol=1e-6)


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
def test_a_threshold_of_zero_merges_nothing_not_even_twins(linkage):
    slots = torch.randn(1, 1, 64).expand(8, 4, 64)
    assert merge_redundant(slots, 0.0, linkage, min_kept=1)[1].all()
    assert (merge_redundant(slots, 1e-3, linkage, min_kept=1)[1].sum(dim=1) == 1).all()


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


# Re-initialization


@pytest.fixture
def competing():
    """An aggregator, features [2 9 12], slots [2 4 8] to restart from, and those of them that are kept."""
    torch.manual_seed(0)
    keep = torch.tensor([[True, False, True, True], [True, True, False, False]])
    return SlotAttention(12, 8, 10, 3), torch.randn(2, 9, 12), torch.randn(2, 4, 8), keep


def test_reinitialization_aggregates_over_the_slots_that_are_kept_alone(competing):
    aggregator, features, slots, keep = competing
    found, attention, still = reinitialize(features, slots, keep, aggregator, num_iterations=2)
    assert attention.shape == (2, 2, 4, 9) and torch.equal(still, keep)
    assert (attention[:, ~keep] == 0).all()
    for image in range(2):
        alone, maps = aggregator(features[image : image + 1], slots[image : image + 1, keep[image]], num_iterations=2)
        torch.testing.assert_close(found[image, keep[image]], alone[0])
        torch.testing.assert_close(attention[:, image, keep[image]], maps[:, 0])


def test_reinitialization_without_a_mask_lets_all_slots_compete_again(competing):
    aggregator, features, slots, keep = competing
    found, attention, still = reinitialize(features, slots, keep, aggregator, num_iterations=2, mask=False)
    expected, maps = aggregator(features, slots, num_iterations=2)
    assert torch.equal(found, expected) and torch.equal(attention, maps)
    assert still.all() and still.dtype == torch.bool and not keep.all()


def test_reinitialization_takes_as_many_iterations_as_the_aggregator_unless_told(competing):
    aggregator, features, slots, keep = competing
    assert len(reinitialize(features, slots, keep, aggregator)[1]) == 3
    slots.requires_grad_()
    reinitialize(features, slots, keep, aggregator)[0][keep].sum().backward()
    assert (slots.grad[keep] != 0).any() and (slots.grad[~keep] == 0).all()
