"""Reasoning as a Task: what a question looks at, batches, resume, selection, reports, and what is refused."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interruptions import stopped
from small_questions import FRAMES, D, N, ask, config_of, make_store, slots_of

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.data import questions
from dias_lab.data import store as stores
from dias_lab.data.convert import physics
from dias_lab.data.questions import Question
from dias_lab.prediction import exam
from dias_lab.prediction.exam import Exam
from dias_lab.prediction.predictor import true_states
from dias_lab.prediction.reasoning import Reasoning, table
from dias_lab.training.loop import fit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    for split, clips in (("train", 48), ("validation", 9), ("test", 12)):
        make_store(folder, split, clips)
    return folder


@pytest.fixture(autouse=True)
def slots(monkeypatch):
    monkeypatch.setattr(exam, "slots_for", slots_of)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_question_looks_at_frames_spread_over_what_is_seen(data):
    store = stores.open(data / "train.lmdb")
    for observed, frames, expected in ((4, 3, [0, 2, 3]), (3, 3, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (2, 1, [0]), (9, 2, [0, 3])):
        found = Exam(config_of(data, observed=observed, reasoning_frames=frames), store).look()
        slots, keep = found.seen([5, 2])
        truth = slots_of(None, store)
        items = np.array([[clip * FRAMES + frame for frame in expected] for clip in (5, 2)])
        assert np.array_equal(slots, truth.slots[items]) and np.array_equal(keep, truth.keep[items])
        assert slots.dtype == torch.float32


def test_a_rollout_goes_on_where_what_is_seen_ends(data, monkeypatch):
    """With 2 frames seen and 2 rolled out, frames 0, 1, 2 and 3 are looked at, the last two as foretold."""
    store, asked_for = stores.open(data / "train.lmdb"), {}

    def foretold(config, slots, last, seen):
        asked_for.update(last=last, seen=seen)
        return np.arange(len(last))[:, None, None, None] * 100 + np.arange(2)[:, None, None] + np.zeros((1, 1, N, D), np.float32)

    monkeypatch.setattr(exam, "rolled_out", foretold)
    config = config_of(data, observed=2, rollout=2, predictor="somewhere", reasoning_frames=2, foreseen_frames=2)
    found = Exam(config, store).look()
    slots, keep = found.seen([7, 3])
    truth = slots_of(None, store)
    assert np.array_equal(slots[:, :2], truth.slots[[[28, 29], [12, 13]]])
    assert (slots[0, 2] == 700).all() and (slots[0, 3] == 701).all() and (slots[1, 3] == 301).all()
    assert np.array_equal(keep[:, 2:], truth.keep[[[29, 29], [13, 13]]])
    assert asked_for["last"][7] == 29 and asked_for["seen"][7] == 2
    last = Exam(config.replace(foreseen_frames=1), store).look().seen([7])[0]
    assert torch.equal(last, slots[:1, [0, 1, 3]])  # what was seen stays, and of the rollout it is its end


def test_a_predictor_starts_from_the_last_frames_that_are_seen(data, monkeypatch):
    store, made = stores.open(data / "train.lmdb"), SimpleNamespace(config=SimpleNamespace(burn_in=2))
    monkeypatch.setattr(exam, "BATCH", 20)
    monkeypatch.setattr(exam.predictor, "load", lambda run, device: made)

    def rollout(model, past, keep, steps):
        assert past.shape[1:] == (2, N, D) and keep.all()  # only in frame 0 a slot is left out
        return past[:, 0, None].float() + torch.arange(1, steps + 1)[:, None, None]

    monkeypatch.setattr(exam.predictor, "rollout", rollout)
    config = config_of(data, observed=3, rollout=2, predictor="somewhere", reasoning_frames=3, foreseen_frames=2)
    slots, _ = Exam(config, store).look().seen([45])
    truth = slots_of(None, store).slots[45 * FRAMES :].astype(np.float32)
    assert np.array_equal(slots[0, :3], truth[:3])
    np.testing.assert_allclose(slots[0, 3:], truth[1] + np.array([1, 2])[:, None, None], atol=2e-3)
    made.config.burn_in = 4
    with pytest.raises(ValueError, match="the predictor somewhere starts from 4 frames, and clip 0 has 3"):
        Exam(config, store).look()


def test_a_predictor_must_be_of_the_same_slots(data, tmp_path):
    config = config_of(data, observed=3)
    theirs = config.replace(task="prediction", burn_in=3)

    def refused(told: str, other, **fields):
        runs.write_json(tmp_path / "config.json", other.to_dict())
        with pytest.raises(ValueError, match=told):
            Reasoning.check(config.replace(predictor=str(tmp_path), **fields))

    refused("has no checkpoint yet", theirs)
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "checkpoints/1/weights.safetensors").write_bytes(b"weights")
    refused("is a run of the task reasoning: name one of the task prediction", config)
    refused("starts from 3 frames, and observed = 2: take more", theirs, observed=2, reasoning_frames=2)
    refused("other slots: slots_of is 'untrained' there, 'model' here", theirs.replace(slots_of="untrained"))
    refused("other slots: parent is .* there", theirs.replace(parent=str(runs.PACKAGE / "shipped")))
    runs.write_json(tmp_path / "config.json", theirs.to_dict())
    Reasoning.check(config.replace(predictor=str(tmp_path)))


def test_of_clips_with_a_stride_every_so_manieth_frame_is_seen(data):
    store = stores.open(data / "train.lmdb")
    found = Exam(config_of(data, clip_stride=2, reasoning_frames=2), store).look()
    assert found.items[5].tolist() == [20, 22]


def test_batches_are_a_function_of_seed_step_and_place(data):
    task = Reasoning(config_of(data, steps=20, batch_size=8))
    whole = [one["rows"] for one in task.batches(range(8), 0)]
    later = next(task.batches(range(8), 13))
    assert later["info"]["step"] == 13 and same(later["rows"], whole[13])
    part = next(task.batches(range(5, 8), 13))["rows"]
    assert same(part, {name: value[5:] for name, value in whole[13].items()})
    again = Reasoning(config_of(data, steps=20, batch_size=8, seed=7))
    assert not same(next(again.batches(range(8), 13))["rows"], whole[13])
    seen = torch.cat([one["words"].ne(0).sum(1) for one in whole[:12]])  # 96 questions are an epoch
    assert (seen == 4).sum() == (seen == 3).sum() == 48


def test_slots_are_standardised_by_the_training_split(data):
    task = Reasoning(config_of(data))
    task.begin(None)
    store = stores.open(data / "train.lmdb")
    items = np.arange(48)[:, None] * FRAMES + [0, 2, 3]
    truth = slots_of(None, store)
    seen = truth.slots[items][truth.keep[items]].astype(np.float64)
    np.testing.assert_allclose(task.model.mean, seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(task.model.deviation, seen.std(0), rtol=1e-5)


def test_parts_of_a_batch_add_up(data):
    task = Reasoning(config_of(data, batch_size=8))
    inputs, _ = task.prepare(next(task.batches(range(8), 0)), range(8))
    whole, given_weights = task.losses(task.model(**inputs), 0.0)
    parts = [task.losses(task.model(**{name: value[start : start + 4] for name, value in inputs.items()}), 0.0)[0] for start in (0, 4)]
    assert given_weights == {"words": 1.0, "choices": 1.0}
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)


def test_it_learns_what_slots_say_and_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    config = config_of(data, steps=150, batch_size=32, learning_rate=5e-3, gradient_clip=1.0, evaluate_every=50, log_every=50)
    result = fit(config, tmp_path / "whole", progress=False)
    assert result["scores"]["balanced_accuracy"] > 0.85
    stopped(config, tmp_path / "parts", 117, monkeypatch)
    torch.randn(3)
    fit(config, tmp_path / "parts", progress=False)
    ends = [run / "checkpoints" / "150" / "weights.safetensors" for run in (tmp_path / "whole", tmp_path / "parts")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    blind = fit(config.replace(blind=True, steps=50), tmp_path / "blind", progress=False)
    # two of three clips are odd: to call the choice "odd" right and "even" wrong is right two times of three
    assert {kind: one["balanced_accuracy"] for kind, one in blind["scores"]["types"].items()} == pytest.approx({"word": 1 / 2, "choice": 2 / 3})

    store = stores.open(data / "test.lmdb")
    found, text = Reasoning.report(tmp_path / "whole", store)
    assert found["balanced_accuracy"] > 0.8 and found["questions"] == 24 and found["clips"] == 12
    assert found["low"] <= found["balanced_accuracy"] <= found["high"]
    assert found["baselines"]["majority"]["types"]["word"] == pytest.approx(
        {"balanced_accuracy": 0.5, "accuracy": 2 / 3, "low": 0.5, "high": 0.5, "questions": 12, "clips": 12}, abs=1e-6)  # fmt: skip
    assert "majority" in text and "choice, per question" in text and "24 questions about 12 clips" in text
    assert Reasoning.report(tmp_path / "whole", store, limit=4)[0]["clips"] == 4
    shown = table([tmp_path / "whole", tmp_path / "parts", tmp_path / "blind"], store)
    assert list(shown.index) == ["dias, model", "dias, model, blind", "majority"] and list(shown["n"]) == ["2", "1", ""]
    assert shown.loc["dias, model", "all"].endswith("± 0.0") and shown.loc["dias, model, blind", "word"] == "50.0"


def test_a_training_goes_on_only_with_its_own_questions(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    config = config_of(tmp_path / "data", steps=4, evaluate_every=2, log_every=2)
    stopped(config, tmp_path / "run", 3, monkeypatch)
    store = stores.open(tmp_path / "data/train.lmdb")
    path = questions.beside(store)
    questions.write(path, store, questions.read(path, store)[::-1], {})
    with pytest.raises(ValueError, match="questions"):
        fit(config, tmp_path / "run", progress=False)


def test_the_readout_is_another_head_of_the_task(data, tmp_path):
    for split, clips in (("train", 96), ("validation", 9)):
        make_store(tmp_path, split, clips, lambda clip: ask(clip)[:1])
    config = config_of(tmp_path, reader="readout", steps=60, batch_size=32, learning_rate=3e-2, evaluate_every=20, log_every=20)
    assert fit(config, tmp_path / "run", progress=False)["scores"]["balanced_accuracy"] > 0.9
    found, _ = Reasoning.report(tmp_path / "run", stores.open(tmp_path / "validation.lmdb"))
    assert found["balanced_accuracy"] > 0.9
    with pytest.raises(ValueError, match="needs one question that is answered by yes and by no; these are 2, such as 'is the star odd'"):
        Reasoning.check(config_of(data, reader="readout"))


def test_a_test_answer_that_training_does_not_know_is_wrong(data, tmp_path):
    fit(config_of(data, steps=2, evaluate_every=2), tmp_path / "run", progress=False)
    make_store(tmp_path, "test", 3, lambda clip: [ask(clip)[0]._replace(answer="perhaps")])
    found, _ = Reasoning.report(tmp_path / "run", stores.open(tmp_path / "test.lmdb"))
    assert found["balanced_accuracy"] == 0


def test_what_cannot_be_asked_is_refused_before_anything_is_written(data, tmp_path):
    def refused(told: str, folder=data, **fields):
        with pytest.raises(ValueError, match=told):
            fit(config_of(folder, **fields), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    refused("reasoning_frames = 6, and only 4 frames are seen: take fewer", reasoning_frames=6)
    refused("foreseen_frames = 5, and only 2 frames are rolled out: take fewer", foreseen_frames=5, rollout=2, predictor="x")
    refused("no config.json at .*nowhere: is it a run directory", predictor=str(tmp_path / "nowhere"))
    bare, mixed, strange, boxless = (tmp_path / name for name in ("bare", "mixed", "strange", "boxless"))
    for folder in (bare, mixed, boxless, strange):
        shutil.copytree(data, folder)
    (bare / "questions-validation.json").unlink()
    refused("there are no questions about .*validation.lmdb: .*questions-validation.json is missing", bare)
    shutil.copy(data / "questions-train.json", mixed / "questions-validation.json")
    refused("questions-validation.json is about another store than .*validation.lmdb", mixed)
    make_store(strange, "validation", 9, lambda clip: [ask(clip)[0]._replace(words=["is", "the", "moon", "odd"])])
    refused(r"questions-validation.json: question 0 \(is the moon odd\) has words that no training question has: moon", strange)
    make_store(boxless, "validation", 9, lambda clip: ask(clip)[1:])
    refused("no question in .*boxless.*questions-validation.json has boxes: take refer='words'", boxless, refer="boxes")


def test_the_whole_on_a_models_own_slots_by_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # slots are extracted
    physics.convert(tmp_path / "data", train=3, validation=2, test=2, frames=9)
    for split in stores.SPLITS:
        store = stores.open(tmp_path / f"data/{split}.lmdb")
        counts = [str(len(store[9 * clip].info["bodies"])) for clip in range(len(store) // 9)]
        asked = [Question(clip, "count", "how many toys are there".split(), [], count, {}) for clip, count in enumerate(counts)]
        questions.write(questions.beside(store), store, asked, {})
    parent, run, data = runs.PACKAGE / "shipped" / "clips", str(tmp_path / "run"), str(tmp_path / "data")
    words = ["--task", "reasoning", "--from", str(parent), "--data", data, "--steps", "2", "--evaluate-every", "2", "--device", "cpu"]
    assert main(["train", "--run-dir", run, *words, "--reasoning-dim", "16", "--reasoning-layers", "1", "--batch-size", "2"]) == 0
    assert main(["evaluate", "--run-dir", run, "--data", data]) == 0
    told = capsys.readouterr().out
    assert "2 questions about 2 clips, of which 8 frames are seen and 0 rolled out" in told and "speeds ± 0.5 pixels" in told
    [file] = (tmp_path / "run/scores").glob("*.json")
    found = runs.read_json(file)
    assert found["baselines"]["simulator"]["balanced_accuracy"] == 1 and "commit" in found["about"]
    result = runs.read_json(tmp_path / "run/metrics.json")
    assert result["images_per_second"] == pytest.approx(2 * 2 / result["seconds"])  # questions, not frames of clips
    store = stores.open(tmp_path / "data/train.lmdb")
    questions.write(questions.beside(store), store, questions.read(questions.beside(store), store)[:2], {})
    config = Config.load(tmp_path / "run")
    with pytest.raises(ValueError, match="the steps would not be the same"):  # a finished run, too, is of its questions
        fit(config, tmp_path / "run", progress=False)


def test_a_question_about_a_toy_that_is_not_there(tmp_path):
    paths = physics.convert(tmp_path, train=2, validation=1, test=1, frames=10)
    store = stores.open(paths["train"])
    found = Exam(config_of(tmp_path, slots_of="oracle", observed=8), store).look()
    assert np.array_equal(found.seen([1])[0][0, 0], true_states(store).slots[10])  # the states of bodies can be asked, too
    kinds = {store.meta["classes"][one] for one in store[0].info["classes"].values()}
    one = next(one for one in questions.read(questions.beside(store), store) if one.clip == 0 and one.kind == "presence")
    lost = next(kind for kind in store.meta["classes"].values() if kind not in kinds).replace(" ", "-")
    half = one._replace(kind="half", words=["is", "the", lost, *"in the left half 16 frames later".split()], mentions={})
    questions.write(questions.beside(store), store, [half], {})
    with pytest.raises(ValueError, match=f"questions-train.json: .*the clip shows no {lost.replace('-', ' ')}"):
        Exam(config_of(tmp_path), store)


@pytest.mark.parametrize("fields, most", [(dict(observed=9), 8), (dict(observed=20, clip_stride=1), 8), (dict(observed=5, clip_stride=2), 4)])
def test_what_a_question_asks_for_is_not_seen(tmp_path, fields, most):
    store = stores.open(physics.convert(tmp_path, train=2, validation=1, test=1, frames=10)["train"])
    with pytest.raises(ValueError, match=f"questions are about what follows frame 7, and frame .* take observed={most} or fewer"):
        Exam(config_of(tmp_path, slots_of="oracle", **fields), store)
    Exam(config_of(tmp_path, slots_of="oracle", **fields | dict(observed=most)), store)
