"""A run that starts from another run's weights: what it takes, what it is known by, and what is refused before the start."""

import shutil

import pytest
import torch
from interruptions import stopped
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.methods import build, checkpoint
from dias_lab.modules.conditioning import Conditioned
from dias_lab.training import parent
from dias_lab.training.loop import Training, fit

SMALL = dict(
    backbone="colour", backbone_size=128, colour_stride=16, conditioning="standardise", conditioning_images=4, slot_dim=12, slot_mlp_dim=16,
    num_slots=5, num_iterations=3, decoder_layers=2, decoder_heads=2, decoder_mlp_dim=24, steps=6, batch_size=4, log_every=2,
    evaluate_every=2, evaluate_images=2, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(small_scenes, tmp_path_factory):
    """A trained run whose best checkpoint is not its last one."""
    run_dir = tmp_path_factory.mktemp("base")
    fit(Config.preset("shapes", data=str(small_scenes), **SMALL), run_dir, progress=False)
    step = checkpoint.steps(run_dir)[0]
    if len(checkpoint.steps(run_dir)) == 1:
        model, step = build(Config.load(run_dir)), 5
        checkpoint.save(run_dir, step, model, *checkpoint.load(run_dir, 6, model))
    runs.write_json(run_dir / "checkpoints" / "best.json", {"step": step, "score": 1.0, "scores": {}})
    return run_dir


@pytest.fixture
def child(base):
    """The config of a run that starts from it and is otherwise the same."""
    return Config.load(base).replace(parent=str(base))


@pytest.fixture
def other(base, tmp_path):
    """A copy of the parent, which a test may change."""
    return shutil.copytree(base, tmp_path / "other")


def last(run_dir):
    return load_file(run_dir / "checkpoints" / str(checkpoint.steps(run_dir)[-1]) / "weights.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def nudge(run_dir):
    """Other weights in every checkpoint."""
    for step in checkpoint.steps(run_dir):
        model = checkpoint.load_model(run_dir, step)
        with torch.no_grad():
            model.aggregator.to_key.weight += 0.01
        checkpoint.prune(run_dir, set(checkpoint.steps(run_dir)) - {step})
        checkpoint.save(run_dir, step, model, {}, {"data": {}})


def test_it_begins_with_the_parents_best_weights_and_conditioning(base, child, tmp_path, monkeypatch):
    monkeypatch.setattr(Conditioned, "fit", lambda self, features: pytest.fail("fitted again"))
    training = Training(child, tmp_path)
    best = checkpoint.load_model(base)
    assert best.trained_steps == runs.best_step(base) != checkpoint.steps(base)[-1]
    assert same(training.model.trained_state(), best.trained_state()) and not training.model.backbone.waiting
    assert training.learner.data["parent"] == runs.weights_hash(base) and training.learner.data["parent_step"] == best.trained_steps
    assert not training.optimizer.state_dict()["state"]  # the optimiser starts fresh


def test_fields_may_differ_where_shapes_allow(base, child, small_scenes, tmp_path):
    data = shutil.copytree(small_scenes, tmp_path / "data")
    fields = dict(num_slots=7, num_iterations=4, merging="none", distillation="none", visible_fraction=0.5, learning_rate=1e-4, seed=3)
    config = child.replace(**fields, steps=3, data=str(data), image_size=96, conditioning_images=2, fourier_dim=8)
    result = fit(config, tmp_path / "run", progress=False)
    assert result["about"]["parent"] == runs.weights_hash(base) and Config.load(tmp_path / "run") == config
    again = Config.preset("shapes", parent=str(base), **{**SMALL, "num_slots": 3}, data=str(small_scenes))
    assert fit(again, tmp_path / "preset", progress=False)["steps"] == 6


def test_the_twin_of_a_child_knows_neither_training(base, child, tmp_path):
    fit(child.replace(steps=2), tmp_path, progress=False)
    twin = checkpoint.load_model(tmp_path).untrained()
    fresh = build(Config.load(base)).trained_state()
    ours = twin.trained_state()
    assert all(torch.equal(ours[name], fresh[name]) for name in ours if not name.startswith("backbone."))
    assert torch.equal(twin.backbone.matrix, checkpoint.load_model(base).backbone.matrix)


def test_a_killed_child_goes_on_from_its_own_checkpoint_and_needs_its_parent_no_more(child, other, tmp_path, monkeypatch):
    fit(child, tmp_path / "whole", progress=False)
    config = child.replace(parent=str(other))
    stopped(config, tmp_path / "parts", 3, monkeypatch)
    shutil.rmtree(other)
    monkeypatch.setattr(Conditioned, "fit", lambda self, features: pytest.fail("fitted again"))
    fit(config, tmp_path / "parts", progress=False)
    assert same(last(tmp_path / "parts"), last(tmp_path / "whole"))
    ours, theirs = (runs.read_json(tmp_path / name / "metrics.json") for name in ("parts", "whole"))
    assert ours["scores"] == theirs["scores"] and ours["about"]["parent"] == theirs["about"]["parent"]
    assert checkpoint.load_model(tmp_path / "parts").trained_steps and fit(config, tmp_path / "parts", progress=False) == ours
    with pytest.raises(ValueError, match="no config.json"):  # a new run cannot start from it
        fit(config, tmp_path / "new", progress=False)


@pytest.mark.parametrize("at", [3, None])
def test_other_weights_under_the_same_path_are_noticed(at, child, other, tmp_path, monkeypatch):
    config, run_dir = child.replace(parent=str(other)), tmp_path / "run"
    fit(config, run_dir, progress=False) if at is None else stopped(config, run_dir, at, monkeypatch)
    before = runs.weights_hash(other)
    other.rename(tmp_path / "moved")
    fit(config.replace(parent=str(tmp_path / "moved"), steps=6), run_dir, progress=False)  # the same weights elsewhere will do
    nudge(tmp_path / "moved")
    (tmp_path / "moved").rename(other)
    after = runs.weights_hash(other)
    assert before != after
    with pytest.raises(ValueError, match=f"started from other weights: .*{before}.*asked for are now .*{after}"):
        fit(config, run_dir, progress=False)
    with pytest.raises(ValueError, match=f"{before}.*asked for are now random ones.*another run directory"):
        fit(config.replace(parent=""), run_dir, progress=False)


def test_a_run_with_random_weights_does_not_get_a_parent_later(base, child):
    with pytest.raises(ValueError, match="other weights: random ones; asked for are now those of .*hash"):
        fit(child.replace(parent=str(base)), fresh(base), progress=False)


def fresh(base):
    """A finished run without a parent, with the same fields."""
    return shutil.copytree(base, base.parent / "fresh", dirs_exist_ok=True)


def test_a_child_has_children(child, tmp_path):
    fit(child.replace(steps=2), tmp_path / "one", progress=False)
    config = Config.load(tmp_path / "one").replace(parent=str(tmp_path / "one"))
    result = fit(config, tmp_path / "two", progress=False)
    assert result["about"]["parent"] == runs.weights_hash(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    assert checkpoint.load_model(tmp_path / "two").config == config


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(parent="nowhere"), "no config.json at .*nowhere"),
        (dict(method="smoothsa"), "its method is 'dias', and this one's 'smoothsa'"),
        (dict(slot_dim=16), r"initializer\.mean is \(.*12\) there, \(.*16\) here.*; and \d+ more\. What differs: slot_dim is 12 there, 16 here\. Take"),
        (dict(decoder_layers=3, num_slots=6), r"decoder.* is missing.*What differs: decoder_layers is 2 there, 3 here\."),
        (dict(decoder_layers=1), r"decoder.* is left over.*What differs: decoder_layers is 2 there, 1 here\."),
        (dict(initializer="separate"), "What differs: initializer is 'shared' there"),
        (
            dict(slot_dim=16, slot_mlp_dim=24, merging="none"),
            r"What differs: slot_dim is 12 there, 16 here; slot_mlp_dim is 16 there, 24 here\.",
        ),
        (dict(conditioning="whiten"), "conditioning of the features is another .conditioning is 'standardise' there, 'whiten' here"),
        (dict(backbone="fourier", conditioning="none"), "its backbone is another .backbone is 'colour' there, 'fourier' here"),
        (dict(backbone_size=112), "backbone_size is 128 there, 112 here"),
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_written(fields, words, child, tmp_path):
    with pytest.raises(ValueError, match=words):
        fit(child.replace(**fields), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_parent_without_whole_weights_is_refused(child, other, tmp_path):
    config = child.replace(parent=str(other))
    for step in checkpoint.steps(other):
        path = other / "checkpoints" / str(step) / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="the parent's weights .*weights.safetensors cannot be read: .*Train it again, or start without it"):
        fit(config, tmp_path / "run", progress=False)
    path.unlink()
    with pytest.raises(ValueError, match="weights.safetensors cannot be read"):
        fit(config, tmp_path / "run", progress=False)
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(ValueError, match="other has no checkpoint yet: train it"):
        fit(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_its_own_parent(child, other, tmp_path):
    (tmp_path / "link").symlink_to(other)
    for run_dir in (other, tmp_path / "link"):
        with pytest.raises(ValueError, match="cannot be its own parent"):
            fit(child.replace(parent=str(other)), run_dir, progress=False)


# A model for clips


@pytest.fixture
def clips(child):
    """The config of a model for clips whose parent is the one for images."""
    return child.replace(clip_frames=3, transition="rsfq", condition="boxes")


def started(config, tmp_path):
    """A model with its parent's weights, as a training starts."""
    parent.check(config, tmp_path / "run", Discovery)
    model = build(config)
    return model, parent.start(config, model, tmp_path / "run")


def test_clips_start_from_a_model_for_images_and_what_that_lacks_starts_fresh(base, clips, tmp_path):
    (model, record), fresh = started(clips, tmp_path), build(clips).trained_state()
    ours, theirs = model.trained_state(), checkpoint.load_model(base).trained_state()
    assert record["parent"] == runs.weights_hash(base) and not model.backbone.waiting
    assert {name.partition(".")[0] for name in ours.keys() - theirs} == {"transition", "boxes"} and not theirs.keys() - ours
    assert all(torch.equal(ours[name], theirs.get(name, fresh[name])) for name in ours)
    images = torch.rand(2, 1, 3, 128, 128)
    slots = torch.randn(2, 5, 12)
    one, image = model.eval()(images, initial_slots=slots), checkpoint.load_model(base)(images[:, 0], initial_slots=slots)
    torch.testing.assert_close(one.reconstruction[:, 0], image.reconstruction)


def test_a_model_for_clips_hands_its_transition_on(clips, tmp_path):
    model, _ = started(clips, tmp_path)
    with torch.no_grad():
        model.transition.time.weight += 1
    first = tmp_path / "first"
    checkpoint.save(first, 1, model, {}, {"data": {}})
    runs.write_json(first / "config.json", clips.to_dict())
    again, _ = started(clips.replace(parent=str(first)), tmp_path)
    assert same(again.trained_state(), model.trained_state())
    for fields, words in [
        (dict(transition="encoder"), r"transition\..* is left over.*What differs: transition is 'rsfq' there, 'encoder' here"),
        (dict(transition_frames=4), r"transition.time.weight is \(6, 12\) there, \(4, 12\) here"),
        (dict(clip_frames=0), r"transition\..* is left over.*What differs: clip_frames is 3 there, 0 here"),
        (dict(condition="none"), "boxes.*left over"),
    ]:
        with pytest.raises(ValueError, match=words):
            started(clips.replace(parent=str(first), **fields), tmp_path)
    lacking = {name: value for name, value in model.trained_state().items() if not name.startswith("transition.time")}
    (first / "checkpoints" / "1" / "weights.safetensors").write_bytes(as_bytes(lacking))
    with pytest.raises(ValueError, match="transition.time.weight is missing"):  # a part of a part is no part
        started(clips.replace(parent=str(first)), tmp_path)
