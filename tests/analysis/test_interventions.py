"""Interventions change what they say, and nothing else."""

import pytest
import torch

from dias_lab import build
from dias_lab.analysis.interventions import decode, decode_edited, edit, with_fields


@pytest.fixture
def run(small_config):
    model = build(small_config).eval()
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model, model(x, initial_slots=torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)))


def test_other_fields_keep_the_weights(run):
    model, _ = run
    other = with_fields(model, num_slots=9, merge_threshold=1.5, num_iterations=6)
    assert other.config.num_slots == 9 and model.config.num_slots == 5
    for name, value in model.trained_state().items():
        assert other.trained_state()[name].equal(value)
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert other(x).attention.shape[:3] == (6, 1, 9)
    with pytest.raises(ValueError, match="not of this DIAS"):
        with_fields(model, slot_dim=8)
    with pytest.raises(ValueError, match="no field"):
        with_fields(model, slot=8)


def test_decoding_unchanged_slots_is_the_forward_pass(run):
    model, out = run
    again = decode(model, out.features, *edit(out.slots, out.keep, "keep", 0))
    torch.testing.assert_close(again.attention, out.decoder_attention)
    torch.testing.assert_close(again.error, (out.reconstruction - out.features).square().mean(dim=(1, 2, 3)))


def test_a_dropped_slot_has_no_map_and_the_others_share_it(run):
    model, out = run
    keep = torch.ones_like(out.keep)
    slots, kept = edit(out.slots, keep, "drop", 2)
    maps = decode(model, out.features, slots, kept).attention
    assert (maps[:, 2] == 0).all() and keep.all()
    torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
    with pytest.raises(ValueError, match="no slot would be left"):
        edit(out.slots, torch.arange(5)[None] == 2, "drop", 2)


def test_merging_takes_the_mean_and_swapping_within_a_picture_changes_only_names(run):
    model, out = run
    keep = torch.ones_like(out.keep)
    merged, kept = edit(out.slots, keep, "merge", 1, 3)
    torch.testing.assert_close(merged[:, 1], out.slots[:, [1, 3]].mean(dim=1))
    assert kept[0].tolist() == [True, True, True, False, True]
    before, after = (decode(model, out.features, *edit(out.slots, keep, action, 0, 4)) for action in ("keep", "swap"))
    torch.testing.assert_close(after.attention[:, [4, 1, 2, 3, 0]], before.attention)
    torch.testing.assert_close(after.error, before.error)


def test_swapping_with_another_picture_changes_one_slot(run):
    _, out = run
    slots, keep = edit(out.slots[:1], torch.ones_like(out.keep[:1]), "swap", 0, 4, donor=out.slots[1:])
    assert slots[0, 0].equal(out.slots[1, 4]) and slots[0, 1:].equal(out.slots[0, 1:]) and keep.all()
    with pytest.raises(ValueError, match="action is one of"):
        edit(out.slots, out.keep, "dorp", 0)


def test_slots_bring_their_frames_along(small_config):
    """Where a slot paints in the frame of its map, names still mean nothing, and a stranger comes with its own frame."""
    model = build(small_config.replace(slot_frames=True, merging="none", evaluation_visible="none")).eval()
    with torch.no_grad():
        out, other = (model(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(n))) for n in (0, 1))
    base = decode_edited(model, out, "keep", 0)
    torch.testing.assert_close(base.attention, out.decoder_attention)
    swapped = decode_edited(model, out, "swap", 0, 4)
    torch.testing.assert_close(swapped.attention[:, [4, 1, 2, 3, 0]], base.attention)
    torch.testing.assert_close(swapped.error, base.error)
    assert (decode_edited(model, out, "drop", 2).attention[:, 2] == 0).all()
    maps = torch.cat([other.attention[-1][:, 4:], out.attention[-1][:, 1:]], dim=1)
    expected = decode(model, out.features, torch.cat([other.slots[:, 4:], out.slots[:, 1:]], dim=1), out.keep, maps)
    torch.testing.assert_close(decode_edited(model, out, "swap", 0, 4, donor=other).attention, expected.attention)
