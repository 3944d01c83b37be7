"""The losses, against plain formulas, the floors that the sources give, and the numbers of the reference's code."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from published import close, measured_slot_attention, swell

from dias_lab.losses import (
    code_loss,
    contrast_loss,
    distillation_loss,
    matched_segments_loss,
    reconstruction_loss,
    schedule,
    time_similarity,
    time_similarity_loss,
)
from dias_lab.modules.matching import match_segments

B, N, L = 2, 4, 9


def test_the_target_of_a_reconstruction_gets_no_gradient():
    reconstruction, features = torch.randn(2, B, N, L, requires_grad=True).unbind()
    loss = reconstruction_loss(reconstruction, features)
    torch.testing.assert_close(loss, ((reconstruction - features) ** 2).sum() / (B * N * L))
    ours, target = torch.autograd.grad(loss, [reconstruction, features], allow_unused=True)
    assert target is None and ours.abs().sum() > 0


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


def test_fixture_of_distillation():
    model, features, slots = measured_slot_attention()
    _, attention = model(features, slots)
    close(distillation_loss(attention, "release"), 1.0974584818)
    close(distillation_loss(attention, "cross_entropy"), 1.1074175835)


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


def test_another_iteration_may_teach():
    attention = torch.rand(3, B, N, L, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    for match in ("identity", "hungarian"):
        expected = distillation_loss(attention[:2], match=match)
        assert torch.equal(distillation_loss(attention, match=match, teacher=-2), expected)
        assert not torch.equal(distillation_loss(attention, match=match), expected)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'linear'"):
        schedule("linear", 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_teachers_loss_is_that_of_the_best_of_all_matchings(seed):
    torch.manual_seed(seed)
    logits, teacher = 3 * torch.randn(3, 4, 30), torch.randn(3, 4, 30).softmax(dim=1)
    teacher += (
        2 * F.one_hot(logits.argmax(dim=1), 4).transpose(1, 2)[:, torch.randperm(4)] * (torch.rand(3, 1, 30) < 0.6)
    )
    expected = []
    for student, target in zip(logits, teacher.argmax(dim=1)):
        segments = student.argmax(dim=0)

        def overlap(order, segments=segments, target=target):
            pairs = [(segments == slot, target == order[slot]) for slot in range(4)]
            return sum(float((a & b).sum() / max((a | b).sum(), 1)) for a, b in pairs)

        best = max(itertools.permutations(range(4)), key=overlap)
        slot_of = torch.tensor([best.index(label) for label in range(4)])
        expected.append(F.cross_entropy(student.T, slot_of[target]))
    torch.testing.assert_close(matched_segments_loss(logits, teacher), torch.stack(expected).mean())
    order = torch.randperm(4)
    torch.testing.assert_close(matched_segments_loss(logits, teacher[:, order]), torch.stack(expected).mean())


def test_the_loss_of_codes_is_the_mean_over_all_locations():
    logits, index = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    plain = [F.log_softmax(logits[b, :, y, x], 0)[index[b, y, x]] for b in range(2) for y in range(3) for x in range(4)]
    torch.testing.assert_close(code_loss(logits, index), -torch.stack(plain).mean())


def test_measured_number_of_the_contrast():
    slots = swell(2, 3, 3, 8, phase=1)
    assert float(contrast_loss(slots)) == pytest.approx(3.575055864, rel=1e-6)
    each = sum(float(contrast_loss(clip[None])) for clip in slots) / 2
    assert each == pytest.approx(3.115820341, rel=1e-6)  # without the slots of other clips


def test_slots_that_are_not_there_do_not_contrast():
    slots = swell(2, 4, 3, 8, phase=1).requires_grad_()
    present = torch.ones(2, 4, 3, dtype=torch.bool)
    present[:, :, 1] = False
    fewer = contrast_loss(slots[:, :, [0, 2]])
    torch.testing.assert_close(contrast_loss(slots, present), fewer)
    present[1, 2:] = False  # padding
    loss = contrast_loss(slots, present)
    gradient = torch.autograd.grad(loss, slots)[0]
    assert (gradient[~present] == 0).all() and gradient.isfinite().all() and gradient[present].abs().min() > 0
    for nobody in (torch.zeros_like(present), present & torch.tensor([True, False, True, False])[:, None]):
        loss = contrast_loss(slots, nobody)
        assert loss == 0 and torch.autograd.grad(loss, slots)[0].abs().max() == 0
    assert contrast_loss(slots[:, :1]) == 0  # one frame


def test_contrast_is_low_where_slots_stay_who_they_are():
    slots = torch.eye(6, 8).view(2, 1, 3, 8).expand(2, 5, 3, 8)
    assert contrast_loss(slots) < 0.001
    assert contrast_loss(torch.stack([slots[:, 0], slots[:, 1].flip(1)], dim=1)) > 5


def test_only_images_that_count_do():
    attention, counted = torch.rand(3, B, N, L).softmax(2), torch.tensor([True, False])
    for form, match in itertools.product(("release", "cross_entropy"), ("identity", "hungarian")):
        found = distillation_loss(attention, form, match, counted=counted)
        torch.testing.assert_close(found, distillation_loss(attention[:, :1], form, match))
    reconstruction, features, sampled = torch.randn(B, N, 3, 3), torch.randn(B, N, 3, 3), torch.tensor([[0, 4], [5, 8]])
    for places in (None, sampled):
        first = None if places is None else places[:1]
        found = reconstruction_loss(reconstruction, features, places, counted)
        torch.testing.assert_close(found, reconstruction_loss(reconstruction[:1], features[:1], first))
        assert reconstruction_loss(reconstruction, features, places, torch.zeros(2, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    "temperature, threshold, first, last, loss",
    [
        (1.0, -1.0, [0.172513, 0.157024, 0.162815, 0.178466], [0.131144, 0.152334, 0.158797, 0.171930], 2.013316816),
        (0.15, 0.0, [0.310499, 0, 0, 0.389290], [0, 0, 0, 0.143885], 2.078107131),
        (0.15, 0.3, [1 / 6] * 4, [0.0] * 4, 2.028783634),
    ],
)
def test_measured_numbers_of_time_similarity(temperature, threshold, first, last, loss):
    features = swell(2, 3, 6, 12).transpose(2, 3)[..., None]  # [B F C L 1]
    found = time_similarity(features, temperature, threshold)
    assert found.shape == (2, 2, 6, 6)
    close(found.flatten()[:4].float(), *first), close(found.flatten()[-4:].float(), *last)
    logits = swell(2, 2, 6, 6, phase=2).transpose(2, 3)[..., None]  # [B F-1 next L 1]
    logits = torch.cat([logits, torch.randn(2, 1, 6, 6, 1)], dim=1)  # the last frame's do not count
    assert float(time_similarity_loss(logits, features, temperature, threshold)) == pytest.approx(loss, rel=1e-6)


def test_frames_of_padding_and_single_frames_have_no_time_similarity():
    features, logits = torch.randn(2, 3, 5, 2, 2), torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    frames = torch.tensor([[True, True, True], [True, False, False]])
    found = time_similarity_loss(logits, features, frames=frames)
    torch.testing.assert_close(found, time_similarity_loss(logits[:1], features[:1]))
    assert torch.autograd.grad(found, logits)[0].flatten(2).abs().sum(2).bool().tolist() == [[True, True, False], [False] * 3]
    assert time_similarity_loss(logits[:, :1], features[:, :1]) == 0
    features.requires_grad_()
    assert not time_similarity(features).requires_grad
