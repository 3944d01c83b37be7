"""DIAS in time: which slots are kept, when they are looked at again, at which number they come back, and what distils."""

import pytest
import torch

from dias_lab import losses as formulas
from dias_lab.methods import build
from dias_lab.methods.dias import elect

B, F, N = 2, 5, 5
ALONE = torch.arange(N).expand(B, N)


@pytest.fixture
def config(small_config):
    return small_config.replace(clip_frames=F, merge_threshold=1.0, min_kept=2)


@pytest.fixture
def clips():
    return torch.rand(B, F, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def led(*pairs):
    """Leaders by hand: each pair is (slot, its leader)."""
    leader = ALONE.clone()
    for slot, by in pairs:
        leader[:, slot] = by
    return leader


def decided(model, *leaders):
    """The model, which finds these leaders, one time after the other."""
    left = iter(leaders)
    model.redundant = lambda slots, draws=None: next(left)
    return model


def test_the_loop_by_hand(config, clips):
    model, image = build(config.replace(next_iterations=2)).eval(), build(config.replace(clip_frames=0)).eval()
    draws = model.draw(range(B), seed=1)
    output, first = model(clips, draws=draws), image(clips[:, 0], draws=draws)
    slots, keep, layer = first.slots, first.keep, model.transition.layer
    for f in range(1, F):
        heads = torch.nn.functional.multi_head_attention_forward(
            *[slots.transpose(0, 1)] * 3, 12, 4, layer.self_attention.in_proj_weight, None, None, None, False, 0.0,
            layer.self_attention.out_proj.weight, None, training=False, key_padding_mask=~keep, need_weights=False,
        )[0]  # fmt: skip
        predicted = layer.norm_self(slots + heads.transpose(0, 1))
        predicted = layer.norm_mlp(predicted + layer.mlp(predicted))
        features = model.backbone(clips[:, f]).flatten(2).transpose(1, 2)
        found, attention = image.aggregator(image.project(features), predicted, keep, 2)
        slots = torch.where(keep[..., None], found, slots)
        torch.testing.assert_close(output.slots[:, f], slots, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.attention[-2:, :, f].flatten(3), attention, atol=1e-5, rtol=1e-5)
        rebuilt, decoded = image.decoder(features, slots, keep)
        torch.testing.assert_close(output.reconstruction[:, f].flatten(2).transpose(1, 2), rebuilt, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.decoder_attention[:, f].flatten(2), decoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_slots_that_the_first_frame_leaves_out_stay_out(training, config, clips):
    output = build(config).train(training)(clips, decoder_attention=True)
    assert not output.keep.all() and (output.keep == output.keep[:, :1]).all()
    gone = ~output.keep
    assert (output.attention[-1][gone] == 0).all() and (output.decoder_attention[gone] == 0).all()
    assert (output.attention[:, :, 1:][:, gone[:, 1:]] == 0).all()  # on later frames in every iteration
    assert (output.leader is None) == training
    if not training:
        assert torch.equal(output.leader[-1] == torch.arange(N), output.keep)
        assert (output.leader[:, :, 1:] == output.leader[-1, :, :1]).all() and (output.leader[0, :, 0] == torch.arange(N)).all()


def test_who_leads_a_cluster_later_on():
    attention = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05])[None, :, None].expand(B, N, 9)
    on = torch.tensor([[True, True, True, True, True], [True, False, True, False, False]])
    leader = elect(led((1, 0), (2, 0), (4, 3)), attention, on.long())
    assert leader[0].tolist() == [1, 1, 1, 3, 3]  # the largest attention
    assert leader[1].tolist() == [2, 2, 2, 3, 3]  # of those that are on; where none is, of all
    assert torch.equal(elect(ALONE, attention, on.long()), ALONE)


def test_a_slot_comes_back_at_its_own_number_and_only_if_it_says_something_new(config, clips):
    model = build(config.replace(refresh=2)).eval()
    first, second, third = led((1, 0), (3, 2)), led((3, 2)), led((1, 0), (3, 2), (4, 3))
    third[:, 4] = 2
    draws = model.draw(range(B), seed=1)
    output = decided(model, first, second, third)(clips, draws=draws)
    assert output.iterations == (3, 1, 3, 1, 3)
    keep = output.keep[0].int().tolist()
    assert keep[:2] == [[1, 0, 1, 0, 1]] * 2 and keep[2:4] == [[1, 1, 1, 0, 1]] * 2
    for clip in range(B):  # slots 0 and 1, and 2 and 4: who sees the most stays; 3 was off, and does not take their place
        assert output.keep[clip, 4, :2].sum() == 1 and output.keep[clip, 4, [2, 4]].sum() == 1 and not output.keep[clip, 4, 3]
    assert torch.equal(output.leader[-1] == torch.arange(N), output.keep)
    assert (output.leader[:2, :, 2] == torch.arange(N)).all()  # all compete before it is decided
    gone = ~output.keep
    assert (output.attention[-1][gone] == 0).all() and (output.decoder_attention[gone] == 0).all()
    assert (output.attention[0, :, 2] > 0).all()
    whole = decided(model, first, second)(clips[:, :4], draws=draws)
    torch.testing.assert_close(output.slots[:, :4], whole.slots)  # what comes later changes nothing before


def test_slots_of_boxes_stay(config, clips):
    model, keep = build(config.replace(refresh=2, condition="boxes")).eval(), []
    for boxes in torch.rand(3, B, 4, 4):  # whoever sees the most
        decided(model, led((1, 0)), led((1, 0), (2, 0), (4, 3)))
        keep.append(model(clips[:, :3], boxes=boxes, draws=model.draw(range(B), seed=1)).keep[:, 2])
    assert torch.stack(keep).int().tolist() == [[[1, 0, 0, 1, 0]] * B] * 3


def test_a_slot_that_is_off_is_judged_from_where_it_started(config, clips):
    model, seen = build(config.replace(refresh=1, transition="identity")).eval(), []
    aggregate = model.aggregate
    model.aggregate = lambda projected, slots, *more, **named: (seen.append(slots), aggregate(projected, slots, *more, **named))[1]
    draws = model.draw(range(B), seed=1)
    output = decided(model, led((1, 0)), led((1, 0), (2, 0)), ALONE)(clips[:, :3], draws=draws)
    initial = model.initializer(B, noise=draws["slots"])
    assert torch.equal(seen[0], initial)
    on = output.keep[:, :2]
    for number in (1, 2):
        before = on[:, number - 1]
        assert torch.equal(seen[number][~before], initial[~before])
        assert torch.equal(seen[number][before], output.slots[:, number - 1][before])
    assert output.keep[:, 2].all()


def test_nothing_is_looked_at_again_without_merging_in_evaluation_or_under_a_given_mask(config, clips):
    model = build(config.replace(refresh=2, merge_in_evaluation=False)).eval()
    assert model(clips).iterations == (3, 1, 1, 1, 1) and model.train()(clips).iterations == (3, 1, 3, 1, 3)
    keep = torch.tensor([[True, True, False, True, True]] * B)
    assert build(config.replace(refresh=2)).eval()(clips, keep=keep).iterations == (3, 1, 1, 1, 1)


@pytest.mark.parametrize(
    "fields, frames",
    [(dict(), [0]), (dict(next_iterations=2), range(F)), (dict(refresh=2), [0, 2, 4]), (dict(teacher="before_merging", num_iterations=4, refresh=3, next_iterations=2), range(F))],
    ids=str,
)  # fmt: skip
def test_self_distillation_is_the_mean_over_frames_with_two_maps(fields, frames, config, clips):
    model = build(config.replace(**fields)).train()
    output = model(clips, draws=model.draw(range(B), seed=1))
    losses, weights = model.losses(output, 1.0)
    expected = []
    for f in frames:
        teacher = -2 if "teacher" in fields and f % 3 == 0 else -1  # the map before merging, where there was some
        own = output.attention[-output.iterations[f] :, :, f].flatten(3)
        expected.append(formulas.distillation_loss(own, "cross_entropy", "hungarian", teacher))
    torch.testing.assert_close(losses["distillation"], torch.stack(expected).mean())
    assert weights["distillation"] == pytest.approx(0.1)
    output.frames = torch.tensor([[True] * F, [False] * F])  # whole clips of padding: the other alone
    alone = formulas.distillation_loss(
        torch.stack([torch.stack([output.attention[-output.iterations[f], 0, f], output.attention[-2 if "teacher" in fields and f % 3 == 0 else -1, 0, f]]) for f in frames], 1).flatten(3)
    )  # fmt: skip
    torch.testing.assert_close(model.losses(output, 1.0)[0]["distillation"], alone)


def test_released_form_keeps_all_and_distils_as_released(config, clips):
    model = build(config.replace(merging="none", matching="identity", distillation="release"))
    output = model(clips)
    assert output.keep.all() and output.leader is None and model.losses(output, 1.0)[0].keys() == {"reconstruction", "distillation"}
