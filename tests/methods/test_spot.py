"""SPOT: its orders, its two stages, and their training."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_methods import VIT, interrupted, reached, states, total

from dias_lab.__main__ import main
from dias_lab.analysis.evaluate import evaluate
from dias_lab.config import Config
from dias_lab.methods import build, checkpoint
from dias_lab.trace import AttentionTrace
from dias_lab.training.loop import Training, fit


def test_the_order_of_a_step_is_one_for_the_batch_and_new_each_step(small_config):
    model = build(small_config.replace(method="spot", stage=2, fine_tuned_blocks=0))
    steps = [model.draw(range(4), seed=1, step=step) for step in range(60)]
    for name in ("permutation", "teaching"):
        numbers = torch.stack([draws[name] for draws in steps])
        assert (numbers == numbers[:, :1]).all() and set(numbers[:, 0].tolist()) == set(range(9))
        other = torch.stack([model.draw([7], seed=1, step=step)[name] for step in range(60)])
        assert torch.equal(other[:, 0], numbers[:, 0])  # whatever the places: every device decodes in the same order
    assert any(draws["permutation"][0] != draws["teaching"][0] for draws in steps)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Config.preset("coco", stage=2), "belong to SPOT"),
        (lambda: Config.preset("coco", method="smoothsa", teacher_run="runs/x"), "belong to SPOT"),
        (lambda: Config.preset("coco", method="spot", teacher_run="runs/x"), "take stage=2"),
        (lambda: Config.preset("coco", method="spot", stage=3), "stage cannot be 3"),
        (
            lambda: Config.preset("coco", method="spot", stage=2, teacher_run="x", parent="y", student_start="teacher"),
            "of parent, or of the teacher",
        ),
        (lambda: build(Config.preset("shapes", method="spot", stage=2, fine_tuned_blocks=1)), "no blocks"),
        (
            lambda: build(Config.preset("coco", **VIT, method="spot", stage=2, decoder_heads=3, fine_tuned_blocks=4)),
            "has 3 blocks",
        ),
    ],
)
def test_wrong_settings_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# The second stage


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


# Training


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
    return Config.preset("shapes", **{**sizes, **VIT, "method": "spot", "fine_tuned_blocks": 1, **fields})


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


def test_a_student_may_start_from_another_student_but_not_from_its_teacher(teacher_run, small_scenes, tmp_path):
    config = stage_one(small_scenes, stage=2, teacher_run=str(teacher_run))
    fit(config, tmp_path / "one", progress=False)
    training = Training(config.replace(parent=str(tmp_path / "one"), seed=5), tmp_path / "two")
    ours, theirs = training.model.trained_state(), checkpoint.load_model(tmp_path / "one").trained_state()
    assert any(name.startswith("backbone") for name in ours) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match="backbone.* is missing.*What differs: stage is 1 there, 2 here"):
        fit(config.replace(parent=str(teacher_run)), tmp_path / "two", progress=False)


def test_a_resumed_student_wants_the_same_teacher(teacher_run, small_scenes, tmp_path, monkeypatch):
    teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
    config, run_dir = stage_one(small_scenes, stage=2, teacher_run=str(teacher)), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish", lambda self: {})
        fit(config, run_dir, progress=False)
    model = checkpoint.load_model(teacher)
    model.aggregator.to_key.weight.data += 0.01
    checkpoint.prune(teacher, keep=set())
    checkpoint.save(teacher, model.trained_steps, model, {}, {})  # the same step, other weights
    with pytest.raises(ValueError, match=r"\(teacher differ\).*old data and teacher"):
        fit(config, run_dir, progress=False)
    checkpoint.prune(teacher, keep=set())
    (teacher / "checkpoints" / "best.json").unlink()
    checkpoint.save(teacher, model.trained_steps + 1, model, {}, {})
    with pytest.raises(ValueError, match=r"\(teacher, teacher_step differ\)"):
        fit(config, run_dir, progress=False)


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
        batch = next(iter(training.task.batches(training.learner.places, training.step)))
        training.update(batch)
        gradients = torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None])
        seen[kind] = float(gradients.norm(2 if kind == "l2" else math.inf))
    np.testing.assert_allclose(list(seen.values()), 1e-3, rtol=1e-3)


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

    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.png")
    assert main(["trace", "--run-dir", "two", "--images", "photo.png", "--out", "maps.npz"]) == 0
    assert AttentionTrace.load(tmp_path / "maps.npz").about["method"] == "spot"
    capsys.readouterr()
    assert main(["train", "--method", "spot", "--stage", "2", "--run-dir", "three", *rest]) == 2
    assert "--from RUN" in capsys.readouterr().err
    assert main(["train", "--method", "spott", "--run-dir", "three", *rest]) == 2
    assert "did you mean 'spot'" in capsys.readouterr().err
