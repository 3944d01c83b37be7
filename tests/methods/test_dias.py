"""DIAS: merging, re-initialization, the start and the draws of the release."""

import pytest
import torch
from PIL import Image
from small_methods import VIT

from dias_lab.analysis.interventions import with_fields
from dias_lab.analysis.sweep import merge_sweep
from dias_lab.data import store
from dias_lab.methods import build, segments_from
from dias_lab.methods.dias import DIASOutput
from dias_lab.methods.tracing import photo_side, picture_side
from dias_lab.modules.redundancy import cluster


def test_the_output_is_its_own_and_has_codes_where_these_are_the_target(small_config, images):
    for fields in ({}, dict(target="quantised", codebook_size=16)):
        output = build(small_config.replace(**fields))(images)
        assert isinstance(output, DIASOutput) and (output.quantised is not None) == bool(fields)


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
    ours, theirs = (vars(model(images, draws=draws)) for model in (complete, released))
    assert (ours.pop("leader") == torch.arange(5)).all() and theirs.pop("leader") is None
    for a, b in zip(ours.values(), theirs.values()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fields", [{}, {"merging": "merge"}, {"num_iterations": 5, "reinitialized_iterations": 3}])
def test_leaders_tell_into_whom_a_slot_went_and_when(small_config, images, fields):
    model = build(small_config.replace(merge_threshold=1.0, min_kept=1, **fields)).eval()
    output, trace = model(images, draws=model.draw(range(3), seed=1)), model.trace(images.byte(), seed=1)
    leader, own = output.leader, torch.arange(5)
    assert leader.shape == output.attention.shape[:3] and not output.keep.all()
    gone = (output.attention == 0).flatten(3).all(-1)  # [T B N]
    assert torch.equal(leader != own, gone) and torch.equal(leader[-1] == own, output.keep)
    assert (leader[0] == own).all() and output.keep.gather(1, leader[-1]).all()
    assert trace.leader.shape == tuple(leader.shape) and ((trace.leader[-1] == own.numpy()) == trace.keep).all()
    alone = model(images, keep=torch.tensor([[True, True, False, True, True]] * 3))
    assert alone.leader is None  # nothing is merged where the caller says who takes part


def test_who_competes_again_is_led_by_nobody(small_config, images):
    model = build(small_config.replace(merge_threshold=1.0, min_kept=1, mask_reinitialized=False)).eval()
    output = model(images)
    assert output.keep.all() and output.leader is None and model.trace(images.byte()).leader is None


def test_a_trace_shows_pictures_in_their_own_size(small_config):
    model = build(small_config).eval()
    for height, width, side in ((150, 200, 150), (40, 50, 40), (800, 900, 768)):
        images = torch.randint(0, 255, (2, 3, height, width), dtype=torch.uint8)
        true = torch.randint(0, 4, (2, height, width))
        trace = model.trace(images, true)
        assert trace.images.shape == (2, side, side, 3) and trace.segments.shape == (2, side, side)
        seen = model(model.prepare(images), draws=model.draw(range(2), 0))
        torch.testing.assert_close(torch.from_numpy(trace.attention).float(), seen.attention, atol=1e-3, rtol=0)
    assert [picture_side(count, 128) for count in (1, 113, 1000, 100_000)] == [768, 768, 259, 128]


def test_photos_are_read_in_the_size_that_is_shown(tmp_path):
    sizes = {"small.png": (50, 40), "middle.png": (600, 500), "large.png": (1500, 1000)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / name)
    small, middle, large = (tmp_path / name for name in sizes)
    (tmp_path / "notes.txt").write_text("no photo")
    none = tmp_path / "none.jpg"
    cases = {(small,): 128, (middle,): 500, (small, middle): 500, (large,): 768, (tmp_path,): 768, (none,): 128, (none, middle): 500}
    assert {paths: photo_side(paths, 128) for paths in cases} == cases
    assert photo_side([large] * 1000, 128) == 259 and photo_side([small], 224) == 224


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


def test_visible_locations_follow_the_release(small_config):
    model = build(small_config.replace(visible_probability=0.5, visible_fraction=0.1))
    visible = model.draw(range(400), seed=0, num_locations=256)["visible"]
    assert (visible == 24).float().mean().sub(0.5).abs() < 0.1
    assert visible.max() <= 254 and visible.min() >= 0 and len(visible.unique()) > 100


def test_what_is_of_dias_alone_refuses_the_others(small_config, small_scenes):
    model = build(small_config.replace(method="spot"))
    with pytest.raises(ValueError, match="merging is part of DIAS.*'spot'"):
        merge_sweep(model, store.open(small_scenes / "test.lmdb"), {"none": {"merging": "none"}})
    fine_tuned = build(small_config.replace(**VIT, method="spot", image_size=64, stage=2, fine_tuned_blocks=1))
    with pytest.raises(ValueError, match="trained its backbone"):
        fine_tuned.untrained()
    assert model.untrained().backbone is model.backbone
    assert with_fields(model, evaluation_permutations="all").decoder.evaluation == "all"
