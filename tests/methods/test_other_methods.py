"""SmoothSA, SPOT, DINOSAUR, VQDINO, SLATE, and DIAS on VQDINO's target: what all methods promise, what each does differently, and their training."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import ORDERS

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.analysis.baselines import baseline_scores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import decode, untrained, with_fields
from dias_lab.analysis.sweep import merge_sweep
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.losses import matched_segments_loss
from dias_lab.methods import Output, build, checkpoint
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.backbone import FourierBackbone
from dias_lab.modules.permuted import PermutedDecoder, permutations
from dias_lab.trace import AttentionTrace
from dias_lab.training.loop import Training, fit

METHODS = {
    "smoothsa": dict(method="smoothsa"),
    "spot": dict(method="spot"),
    "spot, original parts": dict(method="spot", spot_parts="original"),
    "spot, all orders": dict(method="spot", evaluation_permutations="all"),
    "dinosaur": dict(method="dinosaur", decoder_mlp_dim=16),
    "dinosaur, raster": dict(method="dinosaur", decoder="raster"),
    "vqdino": dict(method="vqdino", codebook_size=16, code_dim=10),
    "vqdino, codes are features": dict(method="vqdino", codebook_size=16, code_dim=0),
    "slate": dict(method="slate", codebook_size=16, code_dim=10),
    "dias, quantised": dict(target="quantised", codebook_size=16, code_dim=10, merging="none"),
    "dias, codes are features": dict(target="quantised", codebook_size=16, merging="none"),
}
VIT = dict(
    backbone="vit_tiny_patch16_224", backbone_weights="random", backbone_arguments='{"depth": 3}', backbone_size=64
)


@pytest.fixture
def images():
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def total(model, output, progress=0.3):
    losses, weights = model.losses(output, progress)
    assert losses.keys() == weights.keys()
    return sum(weights[name] * losses[name] for name in losses)


def reached(model, loss):
    """The names of the parameters that a loss gives a gradient other than 0."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True, retain_graph=True)
    return {name for (name, _), gradient in zip(named, gradients) if gradient is not None and gradient.abs().max() > 0}


# What all methods promise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("slots", [1, 5])
def test_every_method_trains_and_evaluates(name, slots, small_config, images):
    model = build(small_config.replace(**METHODS[name], num_slots=slots)).train()
    output = model(images)
    assert isinstance(output, Output) and output.decoder_attention is None
    total(model, output).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model(images, decoder_attention=True).decoder_attention.shape == (3, slots, 8, 8)
    output = model.eval()(images)
    assert output.features.shape == output.reconstruction.shape == (3, model.config.code_dim or 16, 8, 8)
    assert output.slots.shape == (3, slots, 12) and output.attention.shape == (3, 3, slots, 8, 8)
    assert output.keep.dtype == torch.bool and output.keep.all() and output.keep.shape == (3, slots)
    for maps in (*output.attention, output.decoder_attention):
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(3, 8, 8))
    assert model(images, decoder_attention=False).decoder_attention is None


@pytest.mark.parametrize("name", METHODS)
def test_draws_decide_everything(name, small_config, images):
    model = build(small_config.replace(**METHODS[name])).train()
    draws = model.draw([0, 1, 2], seed=5, step=9)
    first, second = model(images, draws=draws), model(images, draws=draws)
    assert torch.equal(first.slots, second.slots) and torch.equal(first.reconstruction, second.reconstruction)
    other = model(images, draws=model.draw([0, 1, 2], seed=5, step=10))
    assert not torch.equal(first.slots, other.slots)
    model.eval()
    alone = model(images[1:2], draws=model.draw([1], seed=5))
    together = model(images, draws=model.draw([0, 1, 2], seed=5))
    torch.testing.assert_close(alone.decoder_attention[0], together.decoder_attention[1], atol=1e-4, rtol=1e-4)


def test_the_order_of_a_step_is_one_for_the_batch_and_new_each_step(small_config):
    model = build(small_config.replace(method="spot", stage=2, fine_tuned_blocks=0))
    steps = [model.draw(range(4), seed=1, step=step) for step in range(60)]
    for name in ("permutation", "teaching"):
        numbers = torch.stack([draws[name] for draws in steps])
        assert (numbers == numbers[:, :1]).all() and set(numbers[:, 0].tolist()) == set(range(9))
        other = torch.stack([model.draw([7], seed=1, step=step)[name] for step in range(60)])
        assert torch.equal(other[:, 0], numbers[:, 0])  # whatever the places: every device decodes in the same order
    assert any(draws["permutation"][0] != draws["teaching"][0] for draws in steps)


@pytest.mark.parametrize("name", METHODS)
def test_known_features_and_masks_from_outside(name, small_config, images):
    model = build(small_config.replace(**METHODS[name])).eval()
    draws, slots = model.draw(range(3), seed=0), torch.randn(3, 5, 12)
    from_images = model(images, draws=draws)
    if name == "slate":
        with pytest.raises(ValueError, match="come from pixels"):
            model(None, draws=draws, features=model.backbone(images))
    else:
        from_features = model(None, draws=draws, features=model.backbone(images))
        assert torch.equal(from_images.reconstruction, from_features.reconstruction)
    given = model(images, initial_slots=slots, draws=draws)
    assert torch.equal(given.slots, model(images, initial_slots=slots, draws=model.draw(range(3), seed=1)).slots)
    assert not torch.equal(given.slots, from_images.slots)
    keep = torch.tensor([[True, True, False, True, False]] * 3)
    output = model(images, keep=keep, draws=draws)
    assert torch.equal(output.keep, keep) and (output.attention[:, ~keep] == 0).all()
    assert (output.decoder_attention[~keep] == 0).all()
    decoded = decode(model, given.features, given.slots, given.keep)
    torch.testing.assert_close(decoded.attention, given.decoder_attention)


@pytest.mark.parametrize("name", METHODS)
def test_maps_that_are_no_squares_work(name, small_config, images, monkeypatch):
    monkeypatch.setattr(FourierBackbone, "features", lambda self, images: torch.randn(len(images), 16, 15, 17))
    model = build(small_config.replace(**METHODS[name])).train()
    assert model.backbone.grid == (15, 17)
    output = model(images)
    assert output.attention.shape == (3, 3, 5, 15, 17)
    assert output.reconstruction.shape == (3, model.config.code_dim or 16, 15, 17)
    total(model, output).backward()
    assert model.eval()(images).decoder_attention.shape == (3, 5, 15, 17)


@pytest.mark.parametrize("name", METHODS)
def test_maps_of_another_size_than_the_models_are_refused(name, small_config, images):
    model = build(small_config.replace(**METHODS[name])).eval()
    with pytest.raises(ValueError, match="255"):
        model(images[:2], features=torch.randn(2, 16, 15, 17))


# Permuted decoding


def test_the_nine_orders_are_those_of_spot():
    assert permutations(4, 4).tolist() == ORDERS
    spiral = permutations(14, 14)[8]
    assert spiral[:2].tolist() == [6 * 14 + 6, 7 * 14 + 6] and spiral[-1] == 13


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (3, 5), (15, 17)])
def test_every_order_visits_every_location_once(grid):
    orders, locations = permutations(*grid), math.prod(grid)
    assert orders.shape == (9, locations)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(locations).expand(9, -1))
    steps = orders[8].diff()  # a spiral goes to a neighbour each time
    assert set(steps.abs().tolist()) <= {1, grid[1]}


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 3), (2, 4)])
def test_a_location_depends_on_those_before_it_in_the_order_and_on_no_other(grid):
    torch.manual_seed(0)
    decoder = PermutedDecoder(12, 8, grid, num_layers=2, num_heads=2).eval()
    L = math.prod(grid)
    features, slots = torch.randn(1, L, 12), torch.randn(1, 3, 8)
    for number, order in enumerate(permutations(*grid)):
        before, maps = decoder(features, slots, permutation=torch.tensor([number]))
        for place, location in enumerate(order):
            changed = features.clone()
            changed[0, location] += 1
            after, other = decoder(changed, slots, permutation=torch.tensor([number]))
            moved = ((after - before).abs().amax(dim=2)[0] > 1e-6) | ((other - maps).abs().amax(dim=1)[0] > 1e-6)
            assert set(moved.nonzero().flatten().tolist()) == set(order[place + 1 :].tolist())


@torch.no_grad()
def test_each_image_may_have_its_own_order_and_evaluation_takes_raster_or_the_mean_of_all():
    torch.manual_seed(0)
    decoder = PermutedDecoder(12, 8, (2, 3), num_layers=1, num_heads=2)
    features, slots = torch.randn(2, 6, 12), torch.randn(2, 3, 8)
    each = [decoder(features, slots, permutation=torch.tensor([k, k]), need_attention=True) for k in range(9)]
    mixed = decoder(features, slots, permutation=torch.tensor([4, 8]))[0]
    torch.testing.assert_close(mixed, torch.stack([each[4][0][0], each[8][0][1]]))
    decoder.eval()
    torch.testing.assert_close(decoder(features, slots), each[0])
    decoder.evaluation = "all"
    expected = tuple(torch.stack(parts).mean(dim=0) for parts in zip(*each))
    torch.testing.assert_close(decoder(features, slots), expected)
    decoder.train()
    drawn = [decoder(features, slots)[0] for _ in range(80)]
    numbers = [[k for k in range(9) if torch.allclose(each[k][0], found, atol=1e-5)] for found in drawn]
    assert all(len(number) == 1 for number in numbers) and {number[0] for number in numbers} == set(range(9))


# Truncation and preheating


def test_truncated_gradients_are_those_of_the_last_iteration_alone():
    torch.manual_seed(0)
    aggregator, features = SlotAttention(12, 8, 10, 3), torch.randn(2, 9, 12)
    initial = torch.randn(2, 4, 8, requires_grad=True)
    truncated, whole = aggregator(features, initial, truncate=True), aggregator(features, initial)
    for a, b in zip(truncated, whole):
        assert torch.equal(a, b)
    weights = [*aggregator.parameters(), initial]
    found = torch.autograd.grad(truncated.slots.square().sum(), weights)
    start = aggregator(features, initial, num_iterations=2).slots.detach().requires_grad_()
    last = aggregator(features, start, num_iterations=1).slots.square().sum()
    for a, b in zip(found, torch.autograd.grad(last, [*aggregator.parameters(), start])):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(found[-1], torch.autograd.grad(whole.slots.square().sum(), initial)[0])
    single = torch.autograd.grad(aggregator(features, initial, num_iterations=1, truncate=True).slots.sum(), initial)[0]
    torch.testing.assert_close(
        single, torch.autograd.grad(aggregator(features, initial, num_iterations=1).slots.sum(), initial)[0]
    )


def test_logits_are_there_where_asked_and_give_the_last_map():
    torch.manual_seed(0)
    aggregator, features, slots = SlotAttention(12, 8, 10, 3), torch.randn(2, 9, 12), torch.randn(2, 4, 8)
    assert len(aggregator(features, slots)) == 2
    _, attention, logits = aggregator(features, slots, need_logits=True)
    torch.testing.assert_close(logits.softmax(dim=1), attention[-1])


@pytest.mark.parametrize("progress, reaches_projector", [(0.0, False), (0.0999, False), (0.1, True), (1.0, True)])
def test_which_parameters_the_losses_of_smoothsa_reach(progress, reaches_projector, small_config, images):
    model = build(small_config.replace(method="smoothsa")).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.progress = progress
    losses, weights = model.losses(model(images), progress)
    assert weights == {"reconstruction": 1.0, "preheat": 100.0}
    parts = lambda names: {name.split(".")[0] for name in names}  # noqa: E731
    predicting = {name for name, _ in model.initializer.named_parameters(prefix="initializer")} - {
        "initializer.log_std_around"
    }
    preheat, reconstruction = reached(model, losses["preheat"]), reached(model, losses["reconstruction"])
    assert {name for name in preheat if name.startswith("initializer")} == predicting
    assert parts(preheat) == {"initializer", "project"} if reaches_projector else parts(preheat) == {"initializer"}
    assert {name for name in reconstruction if name.startswith("initializer")} == {"initializer.log_std_around"}
    assert parts(reconstruction) == {"initializer", "project", "aggregator", "decoder"}


@torch.no_grad()
def test_preheating_predicts_in_both_modes_and_adds_noise_in_training_only(small_config, images):
    model = build(small_config.replace(method="smoothsa"))
    draws = model.draw(range(3), seed=0)
    training, evaluation = model.train()(images, draws=draws), model.eval()(images, draws=draws)
    assert torch.equal(training.preheated, evaluation.preheated)
    projected = model.project(evaluation.features.flatten(2).transpose(1, 2))
    started = evaluation.preheated, training.preheated + draws["restart"]
    for slots, output in zip(started, (evaluation, training)):
        torch.testing.assert_close(model.aggregator(projected, slots).slots, output.slots)
    other = model(images, draws=model.draw(range(3), seed=1)).preheated
    assert not torch.equal(other, evaluation.preheated)  # the sample is random in evaluation, too
    given = model(images, initial_slots=draws["slots"]).preheated  # mean 0, spread 1 at the start: the same sample
    torch.testing.assert_close(given, evaluation.preheated)


@torch.no_grad()
def test_dinosaurs_evaluation_is_the_same_whatever_is_drawn(small_config, images):
    model = build(small_config.replace(method="dinosaur", decoder_mlp_dim=16)).eval()
    assert torch.equal(model(images).slots, model(images).slots)
    model = build(small_config.replace(method="dinosaur", decoder_mlp_dim=16, initializer="shared")).eval()
    assert not torch.equal(model(images).slots, model(images).slots)


# SPOT's second stage


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


def test_only_the_student_learns_and_of_its_backbone_the_last_blocks(small_config):
    config = small_config.replace(**VIT, method="spot", image_size=64, fine_tuned_blocks=2)
    teacher, student = build(config), build(config.replace(stage=2, seed=1))
    student.learn_from(teacher)
    model, picture = student.train(), torch.randn(2, 3, 64, 64)
    output = model(picture)
    losses, weights = model.losses(output, 0.0)
    assert weights == {"reconstruction": 1.0, "teacher": 0.005}
    assert not output.teacher_attention.requires_grad and output.attention_logits.requires_grad
    blocks = {
        name
        for name, _ in model.backbone.named_parameters(prefix="backbone")
        if ".blocks.1." in name or ".blocks.2." in name
    }
    for name, parts in (
        ("reconstruction", {"project", "initializer", "aggregator", "decoder"}),
        ("teacher", {"project", "initializer", "aggregator"}),
    ):
        found = reached(model, losses[name])
        biases = {name for name in blocks if name.endswith("qkv.bias")}  # a part of them, that of the keys, has none
        assert blocks - biases <= {name for name in found if name.startswith("backbone")} <= blocks
        assert {name.split(".")[0] for name in found} - {"backbone"} == parts
    total(model, output).backward()
    others = [*teacher.parameters(), *model.target_backbone.parameters()]
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in others)
    assert all(parameter.grad is None for parameter in others)
    assert not any(name.startswith("teacher") for name, _ in model.named_parameters())
    trained = {id(parameter) for group in model.parameter_groups() for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    saved = {name for name in model.trained_state() if "backbone" in name}
    assert saved == blocks


@torch.no_grad()
def test_targets_stay_those_of_the_frozen_backbone(small_config):
    config = small_config.replace(**VIT, method="spot", image_size=64, stage=2, fine_tuned_blocks=1)
    model, picture = build(config).eval(), torch.randn(2, 3, 64, 64)
    before = model(picture)
    torch.testing.assert_close(before.features, model.backbone(picture))
    for parameter in model.backbone.model.blocks[-1].parameters():
        parameter += 0.1
    after = model(picture)
    assert torch.equal(after.features, before.features) and not torch.allclose(after.slots, before.slots)
    with pytest.raises(ValueError, match="fine-tunes the backbone"):
        model(None, features=before.features)


@torch.no_grad()
def test_the_teacher_teaches_from_a_random_order_in_evaluation_mode(small_config, images):
    config = small_config.replace(method="spot", fine_tuned_blocks=0)
    teacher, student = build(config).train(), build(config.replace(stage=2, seed=1)).train()
    student.learn_from(teacher)
    assert not teacher.training
    draws = student.draw(range(3), seed=0, step=4)
    output = student(images, draws=draws)
    slots = teacher(images, initial_slots=teacher.initializer(3, noise=draws["restart"])).slots
    tokens = output.features.flatten(2).transpose(1, 2)
    _, expected = teacher.decoder(tokens, slots, permutation=draws["teaching"], need_attention=True)
    torch.testing.assert_close(output.teacher_attention.flatten(2), expected)
    assert student.eval()(images).teacher_attention is None and student(images).attention_logits is None


def test_a_student_may_start_from_the_teachers_weights(small_config):
    config = small_config.replace(method="spot", fine_tuned_blocks=0)
    teacher = build(config.replace(seed=1))
    student = build(config.replace(stage=2, student_start="teacher"))
    before = student.trained_state()["initializer.mean"].clone()
    student.learn_from(teacher)
    ours, theirs = student.trained_state(), teacher.trained_state()
    same = {name for name in ours if torch.equal(ours[name], theirs[name])} if ours.keys() == theirs.keys() else set()
    assert same == {name for name in ours if not name.startswith("initializer")}
    assert torch.equal(student.initializer.mean, before)
    other = build(config.replace(decoder_mlp_dim=20))
    with pytest.raises(ValueError, match="decoder_mlp_dim differ"):
        student.learn_from(other)


@pytest.mark.parametrize(
    "student, teacher, words",
    [
        ({}, dict(num_slots=6), "its num_slots is 6, the student's 5"),
        ({}, dict(backbone_size=112), "its backbone_size is 112"),
        ({}, dict(fourier_bandwidth=2.0), "fourier_bandwidth"),
        ({}, dict(method="dias"), "the teacher is dias"),
        ({}, dict(stage=2), "the teacher is spot stage 2"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(student, teacher, words, small_config):
    config = small_config.replace(method="spot", fine_tuned_blocks=0)
    pupil = build(config.replace(stage=2, **student))
    with pytest.raises(ValueError, match=words):
        pupil.learn_from(build(config.replace(**teacher)))


def test_a_teacher_on_another_backbones_weights_is_refused(small_config):
    config = small_config.replace(**VIT, method="spot", image_size=64)
    teacher, student = build(config), build(config.replace(stage=2, fine_tuned_blocks=1))
    with torch.no_grad():
        teacher.backbone.model.blocks[0].mlp.fc1.bias += 1
    with pytest.raises(ValueError, match="other weights"):
        student.learn_from(teacher)


def test_stage_two_without_a_teacher_says_so(small_config, images):
    model = build(small_config.replace(method="spot", stage=2, fine_tuned_blocks=0)).train()
    with pytest.raises(ValueError, match="learn_from"):
        model.losses(model(images), 0.0)


# Settings


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config(method="dinosour"), "did you mean 'dinosaur'"),
        (lambda: Config(method="dinosaur"), 'method="dinosaur"'),
        (lambda: Config.preset("coco", method="dinosaur", decoder_layers=1), "at least 2"),
        (lambda: Config.preset("coco", stage=2), "belong to SPOT"),
        (lambda: Config.preset("coco", method="smoothsa", teacher_run="runs/x"), "belong to SPOT"),
        (lambda: Config.preset("coco", method="spot", teacher_run="runs/x"), "take stage=2"),
        (lambda: Config.preset("coco", method="spot", stage=3), "stage cannot be 3"),
        (lambda: Config(preheat_detached=2), "preheat_detached is a share"),
        (lambda: build(Config.preset("scenes", method="smoothsa", slot_dim=10)), "preheat_heads = 4 does not divide"),
        (lambda: build(Config.preset("scenes", method="spot", stage=2, fine_tuned_blocks=1)), "no blocks"),
        (
            lambda: build(Config.preset("coco", **VIT, method="spot", stage=2, decoder_heads=3, fine_tuned_blocks=4)),
            "has 3 blocks",
        ),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_method_brings_its_own_settings_and_those_by_hand_win():
    spot = Config.preset("coco", method="spot")
    assert (spot.gradient_clip, spot.gradient_norm) == (0.3, "largest")
    assert {"merging", "target", "preheat_heads"} <= spot.unread() and not spot.unread() & {"stage", "num_slots", "steps"}
    assert Config.preset("coco").replace(method="spot") == spot
    assert spot.replace(method="spot", gradient_clip=2.0).gradient_clip == 2.0
    assert Config.preset("coco", method="spot", gradient_clip=1.0).gradient_clip == 1.0
    assert Config.from_parameters({"preset": "coco", "method": "dinosaur"}).decoder == "mlp"
    assert Config.from_parameters({"preset": "scenes", "method": "dinosaur"}).decoder == "raster"
    assert Config.preset("coco", method="dias") == Config.preset("coco")


def test_what_is_of_dias_alone_refuses_the_others(small_config, small_scenes):
    model = build(small_config.replace(method="spot"))
    with pytest.raises(ValueError, match="merging is part of DIAS.*'spot'"):
        merge_sweep(model, store.open(small_scenes / "test.lmdb"), {"none": {"merging": "none"}})
    fine_tuned = build(small_config.replace(**VIT, method="spot", image_size=64, stage=2, fine_tuned_blocks=1))
    with pytest.raises(ValueError, match="trained its backbone"):
        untrained(fine_tuned)
    assert untrained(model).backbone is model.backbone
    assert with_fields(model, evaluation_permutations="all").decoder.evaluation == "all"


# Training


TRAINED = [name for name in METHODS if name not in ("spot, original parts", "spot, all orders")]


@pytest.fixture(scope="module")
def teacher_run(small_scenes, tmp_path_factory):
    """A run of SPOT's stage 1 on a small vision transformer."""
    run_dir = tmp_path_factory.mktemp("teacher")
    config = stage_one(small_scenes)
    fit(config, run_dir, progress=False)
    return run_dir


def stage_one(small_scenes, **fields):
    sizes = dict(
        slot_dim=12, slot_mlp_dim=16, num_slots=5, decoder_layers=1, decoder_heads=2, steps=6, batch_size=4, log_every=2, evaluate_every=3,
        evaluate_images=2, device="cpu", data=str(small_scenes), image_size=64, num_iterations=3, aggregator_start="random",
    )  # fmt: skip
    return Config.preset("scenes", **{**sizes, **VIT, "method": "spot", "fine_tuned_blocks": 1, **fields})


def interrupted(config, run_dir, at, monkeypatch):
    update = Training.update

    def stop(self, batch):
        if self.step == at:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(Training, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(config, run_dir, progress=False)
    monkeypatch.undo()
    torch.randn(3)
    return fit(config, run_dir, progress=False)


def states(*run_dirs):
    return [checkpoint.load_model(run_dir, "last").trained_state() for run_dir in run_dirs]


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("cache", [0, 1])
def test_each_method_trains_resumes_evaluates_and_traces(
    name, cache, small_config, small_scenes, tmp_path, monkeypatch
):
    if name == "slate" and cache:
        pytest.skip("refused: its tokens come from pixels")
    config = small_config.replace(
        **METHODS[name], steps=12, cache_views=cache, learning_rate=2e-3, preheat_detached=0.5
    )
    result = fit(config, tmp_path / "whole", progress=False)
    assert ("perplexity" in result["loss"]) == ("codebook_size" in METHODS[name])
    assert {"loss", "reconstruction"} <= result["loss"].keys() and ("preheat" in result["loss"]) == (name == "smoothsa")
    lines = [line for line in runs.read_lines(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    falls = "quantization" if "codebook_size" in METHODS[name] else "reconstruction"  # of a target that still moves
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


def test_the_second_stage_trains_resumes_and_needs_no_teacher_afterwards(
    teacher_run, small_scenes, tmp_path, monkeypatch
):
    own = tmp_path / "teacher"
    own.symlink_to(teacher_run)
    config = stage_one(small_scenes, stage=2, teacher_run=str(own))
    result = fit(config, tmp_path / "whole", progress=False)
    assert result["loss"].keys() == {"loss", "reconstruction", "teacher"}
    interrupted(config, tmp_path / "parts", 4, monkeypatch)
    own.unlink()
    whole, parts = states(tmp_path / "whole", tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    model, start = checkpoint.load_model(tmp_path / "whole", "last"), build(config)
    for (name, ours), theirs in zip(model.backbone.named_parameters(), start.backbone.parameters()):
        assert torch.equal(ours, theirs) == (".blocks.2." not in name)
        assert (f"backbone.{name}" in whole) == (".blocks.2." in name)
    assert all(
        torch.equal(a, b) for a, b in zip(model.target_backbone.parameters(), start.target_backbone.parameters())
    )
    assert evaluate(model, small_scenes / "test.lmdb", limit=1).scores["images"] == 1
    with pytest.raises(ValueError, match="no config.json"):
        fit(config.replace(steps=9), tmp_path / "more", progress=False)


def test_a_resumed_student_wants_the_same_teacher(teacher_run, small_scenes, tmp_path, monkeypatch):
    config = stage_one(small_scenes, stage=2, teacher_run=str(teacher_run))
    load = checkpoint.load_model

    def later(*arguments, **options):
        model = load(*arguments, **options)
        model.step += 1
        return model

    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish", lambda self: {})
        fit(config, tmp_path, progress=False)
    monkeypatch.setattr(checkpoint, "load_model", later)
    with pytest.raises(ValueError, match="old data and teacher"):
        fit(config, tmp_path, progress=False)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(cache_views=1), "fine-tunes the last blocks of its own.*fine_tuned_blocks=0"),
        (dict(num_slots=4), "its num_slots is 5, the student's 4"),
        (dict(teacher_run=""), "--from RUN"),
        (dict(teacher_run="nowhere"), "no config.json"),
        (dict(slot_dim=16), "slot_dim"),
    ],
)
def test_what_the_second_stage_cannot_do_is_refused_before_anything_is_written(
    fields, words, teacher_run, small_scenes, tmp_path
):
    config = stage_one(small_scenes, **{"stage": 2, "teacher_run": str(teacher_run), **fields})
    with pytest.raises(ValueError, match=words):
        fit(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_cache_is_fine_where_the_second_stages_backbone_stays_frozen(small_config, tmp_path):
    config = small_config.replace(method="spot", fine_tuned_blocks=0, steps=3, cache_views=1)
    fit(config, tmp_path / "one", progress=False)
    result = fit(config.replace(stage=2, teacher_run=str(tmp_path / "one")), tmp_path / "two", progress=False)
    assert result["steps"] == 3 and result["loss"]["teacher"] > 0


def test_gradients_are_clipped_by_the_norm_of_the_method(small_config, tmp_path):
    seen = {}
    for kind in ("l2", "largest"):
        config = small_config.replace(method="spot", gradient_norm=kind, gradient_clip=1e-3, steps=1, warmup=0.0)
        training = Training(config, tmp_path)
        training.model.train()
        batch = next(iter(train_batches(training)))
        training.update(batch)
        gradients = torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None])
        seen[kind] = float(gradients.norm(2 if kind == "l2" else math.inf))
    np.testing.assert_allclose(list(seen.values()), 1e-3, rtol=1e-3)


def test_the_loop_says_how_far_the_training_is(small_config, tmp_path):
    training, seen = Training(small_config.replace(method="smoothsa", steps=4), tmp_path), []
    training.model.register_forward_pre_hook(lambda module, inputs: seen.append(module.progress))
    for batch in train_batches(training):
        training.update(batch)
        training.step += 1
    assert seen == [0.0, 0.25, 0.5, 0.75]


def train_batches(training):
    from dias_lab.data.dataset import batches

    return batches(training.task.train_store, training.config)


def test_both_stages_from_the_shell(small_scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = "--backbone-size 128 --fourier-dim 16 --fourier-stride 16 --slot-dim 12 --slot-mlp-dim 16 --num-slots 4 --decoder-heads 2"
    rest = f"{sizes} --steps 2 --batch-size 2 --evaluate-images 1 --device cpu --data {small_scenes}".split()
    assert main(["train", "--method", "spot", "--run-dir", "one", *rest]) == 0
    assert Config.load(tmp_path / "one").gradient_norm == "largest"
    assert main(["train", "--method", "spot", "--stage", "2", "--from", "one", "--run-dir", "two", *rest]) == 0
    config = Config.load(tmp_path / "two")
    assert (config.stage, config.teacher_run) == (2, str(tmp_path / "one"))
    assert main(["evaluate", "--run-dir", "two", "--data", str(small_scenes), "--limit", "1"]) == 0
    from PIL import Image

    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.png")
    assert main(["trace", "--run-dir", "two", "--images", "photo.png", "--out", "maps.npz"]) == 0
    assert AttentionTrace.load(tmp_path / "maps.npz").about["method"] == "spot"
    capsys.readouterr()
    assert main(["train", "--method", "spot", "--stage", "2", "--run-dir", "three", *rest]) == 2
    assert "--from RUN" in capsys.readouterr().err
    assert main(["train", "--method", "spott", "--run-dir", "three", *rest]) == 2
    assert "did you mean 'spot'" in capsys.readouterr().err
