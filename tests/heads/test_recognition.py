"""The head as a task: what it learns from, what it says, and what is refused."""

import inspect
import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given import record, rows, store
from interruptions import stopped
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file

from dias_lab import runs
from dias_lab.__main__ import main
from dias_lab.config import Config
from dias_lab.data import store as stores
from dias_lab.data.convert import scenes
from dias_lab.data.lmdb_file import StoreError
from dias_lab.heads import recognition
from dias_lab.heads.matching import BOX
from dias_lab.heads.recognition import PRIOR, Head, Recognised, Recognition, load, predictions, table
from dias_lab.heads.scores import SAID, SCORES, shown
from dias_lab.methods import checkpoint
from dias_lab.methods.task import Task
from dias_lab.training.loop import fit


def begun(config):
    task = Recognition(config)
    return task, task.begin(Fabric(accelerator="cpu", devices=1))


def first(task, step=0):
    batch = next(task.batches(range(task.config.batch_size), step))
    return batch, task.prepare(batch, range(task.config.batch_size))


def test_a_head_has_what_the_loop_calls():
    for name, function in inspect.getmembers(Task, inspect.isfunction):
        if name not in ("__init__", "__subclasshook__"):
            assert list(inspect.signature(getattr(Recognition, name)).parameters) == list(inspect.signature(function).parameters)


def test_it_leaves_what_every_run_leaves_and_its_scores(run, config):
    lines = runs.read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation" in line] == [10, 20, 30]
    losses = [line for line in lines if "loss" in line]
    assert losses[-1]["loss"] < losses[0]["loss"] and {"class", "box", "asked"} <= losses[0].keys()
    result = runs.read_object(run / "metrics.json")
    assert result["scores"].keys() >= SCORES.keys() and result["scores"]["store"] == "validation"
    best = max((line for line in lines if "validation" in line), key=lambda line: sum(line["validation"][name] for name in ("top1", "box_iou")))
    assert result["best_step"] == best["step"] and runs.state(run) == "done"
    assert result["about"]["parent"] == runs.weights_hash(config.parent)
    assert "objects found" in Recognition.text(result["scores"])


def test_the_parent_stays_as_it_is_and_no_weight_of_it_is_saved(run):
    weights = load_file(run / "checkpoints" / "30" / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"hidden", "out", "counts", "mean_box"}


@pytest.mark.parametrize("at", [3, 10, 27])
def test_it_resumes_bit_for_bit(at, run, config, tmp_path, monkeypatch):
    stopped(config, tmp_path, at, monkeypatch)
    torch.randn(3)
    fit(config, tmp_path, progress=False)
    whole, parts = (load_file(place / "checkpoints" / "30" / "weights.safetensors") for place in (run, tmp_path))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_batch_follows_from_seed_and_step_alone(config):
    one, other = begun(config)[0], begun(config)[0]
    ahead = list(itertools.islice(one.batches(range(8), 0), 6))
    batch, (inputs, draws) = first(other, 5)
    assert batch["info"]["step"] == 5 and torch.equal(batch["info"]["item"], ahead[5]["info"]["item"])
    assert torch.equal(inputs["slots"], ahead[5]["slots"]) and torch.equal(draws["dropout"], one.prepare(ahead[5], range(8))[1]["dropout"])
    half = next(other.batches(range(4, 8), 5))  # the second of two devices
    assert torch.equal(half["label"], batch["label"][4:])
    again = first(begun(config.replace(seed=1))[0], 5)[0]
    assert not torch.equal(batch["info"]["item"], again["info"]["item"])


def test_every_item_that_has_something_to_learn_is_seen_once_an_epoch(config):
    task, _ = begun(config.replace(batch_size=1))
    items = [int(batch["info"]["item"]) for batch in itertools.islice(task.batches(range(1), 0), len(task.items))]
    assert sorted(items) == task.items.tolist()


def test_targets_belong_to_the_slots_that_stand_beside_them(config):
    task, _ = begun(config)
    batch, _ = first(task, 2)
    for place, item in enumerate(batch["info"]["item"].tolist()):
        assert torch.equal(batch["slots"][place], torch.from_numpy(np.array(task.slots.slots[item])).float())
        info = stores.open(runs.resolve(config.data) / "train.lmdb")[item].info
        asked = batch["label"][place][batch["label"][place] >= 0].tolist()
        ids = [[*task.model.classes][label] for label in asked]
        assert ids and not [one for one in set(ids) if ids.count(one) > list(info["classes"].values()).count(one)]


def test_the_losses_are_means_over_the_slots_that_are_asked():
    random = torch.Generator().manual_seed(0)
    logits, boxes, true = (torch.randn(2, 3, size, generator=random) for size in (4, 4, 4))
    label = torch.tensor([[-1, 2, 3], [0, -1, -1]])  # of 3 classes; 3 is the background
    found = recognition.recognition_losses(Recognised(logits, boxes, label, true), classes=3)
    asked = [(0, 1), (0, 2), (1, 0)]
    assert found["class"] == pytest.approx(np.mean([-logits[one].log_softmax(0)[label[one]].item() for one in asked]), rel=1e-5)
    assert found["box"] == pytest.approx(np.mean([(boxes[one] - true[one]).abs().mean().item() for one in asked[::2]]), rel=1e-5)
    nothing = recognition.recognition_losses(Recognised(logits, boxes, torch.full((2, 3), -1), true), classes=3)
    assert nothing["class"] == nothing["box"] == 0


def test_a_head_looks_at_each_slot_alone():
    head = Head(SimpleNamespace(head_dim=8, head_dropout=0.5, background_class=True), 6, {1: "a", 5: "b"}).eval()
    slots, order = torch.randn(2, 4, 6), torch.tensor([2, 0, 3, 1])
    one, other = head(slots), head(slots[:, order])
    assert one.logits.shape == (2, 4, 3) and head.names == ["a", "b", "background"]
    torch.testing.assert_close(one.logits[:, order], other.logits)
    torch.testing.assert_close(one.boxes[:, order], other.boxes)


def test_dropout_follows_from_the_keys():
    head = Head(SimpleNamespace(head_dim=64, head_dropout=0.5, background_class=False), 6, {1: "a"})
    slots, keys = torch.ones(2, 1, 6), torch.tensor([5, 6])
    one, other = (head(slots, draws={"dropout": keys}).logits for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one[0], one[1])


def test_true_segments_tell_more_than_the_majority(config, tmp_path):
    """The upper bound: slots that are features of the objects themselves. On what it was trained on it must get far."""
    fit(config.replace(slots_of="true", steps=300, evaluate_every=300), tmp_path, progress=False)
    found, text = Recognition.report(tmp_path, runs.resolve(config.data) / "train.lmdb")
    assert found["head"]["recall"] > 0.9 and found["head"]["top1"] > found["prior"]["top1"] + 0.2
    assert found["head"]["box_iou"] > found["prior"]["box_iou"] and found["prior"]["r2"] == pytest.approx(0, abs=1e-6)


def test_a_report_says_what_the_numbers_are(run, toys):
    found, text = Recognition.report(run, toys / "test.lmdb")
    assert found["task"] == "recognition" and found["images"] == 5 and found["unknown"] == 0
    assert found["head"]["true"] == sum(one["true"] for one in found["classes"].values())
    assert found["head"]["matched"] == found["prior"]["matched"] == sum(one["matched"] for one in found["classes"].values())
    assert "box R2: 1 - SSE/SST" in text and "95 % interval" in text and PRIOR in text
    some, _ = Recognition.report(run, stores.open(toys / "test.lmdb"), limit=2)
    assert some["images"] == 2 and some["head"]["true"] < found["head"]["true"]


def test_the_prior_is_the_training_splits(run, toys):
    head, _ = load(run)
    known = predictions(run, toys / "train.lmdb")
    assert head.mean_box.tolist() == pytest.approx(known[BOX].mean().tolist(), rel=1e-5)
    counts = known["true"].value_counts()
    assert {name: count for name, count in zip(head.names, head.counts.tolist()) if count} == counts.to_dict()
    found, _ = Recognition.report(run, toys / "train.lmdb")
    assert found["prior"]["top1"] == pytest.approx(counts.max() / counts.sum()) and found["prior"]["r2"] == pytest.approx(0, abs=1e-6)


def test_predictions_are_of_the_objects_that_were_found(run, toys):
    found = predictions(run, toys / "test.lmdb")
    assert len(found) == Recognition.report(run, toys / "test.lmdb")[0]["head"]["matched"]
    assert {"item", "slot", "segment", "true", "said", "probability", "iou", *BOX, *SAID} <= set(found)
    assert (found["iou"] > 0.1).all() and found["probability"].between(0, 1).all()
    assert ((found["rank"] == 0) == (found["true"] == found["said"])).all()
    info = stores.open(toys / "test.lmdb")[int(found.loc[0, "item"])].info
    assert scenes.KINDS[info["classes"][int(found.loc[0, "segment"])]] == found.loc[0, "true"]


def test_the_best_head_comes_with_its_parent(run, config, toys):
    head, model = load(run)
    assert not head.training and not model.training and model.config == Config.load(config.parent)
    assert head.names == list(scenes.KINDS.values())
    said = head(torch.zeros(1, 5, 12))
    assert said.logits.shape == (1, 5, len(scenes.KINDS)) and said.boxes.shape == (1, 5, 4)


def test_a_table_has_kinds_of_slots_beside_each_other_with_seeds(run, config, tmp_path, toys):
    for name, fields in {"b": dict(seed=1), "u": dict(slots_of="untrained"), "t": dict(slots_of="tiles")}.items():
        fit(config.replace(steps=2, **fields), tmp_path / name, progress=False)
    found = table([run, *(tmp_path / name for name in "but")], toys / "test.lmdb")
    assert list(found.index) == [(name, row) for name in ("dias", "dias, untrained", "tiles") for row in ("head", PRIOR)]
    assert found.loc["dias", "n"].tolist() == [2, 2] and found.loc["tiles", "n"].tolist() == [1, 1]
    assert found.loc[("dias", "head"), "top1"] == pytest.approx(
        np.mean([Recognition.report(one, toys / "test.lmdb")[0]["head"]["top1"] for one in (run, tmp_path / "b")])
    )
    assert (found["recall low"] <= found["recall"]).all() and "matched / true" in shown(found)
    named = table({run: "one", tmp_path / "b": "another"}, toys / "test.lmdb")
    assert [name for name, _ in named.index] == ["one", "one", "another", "another"] and set(named["n"]) == {1}


def test_slots_without_an_object_can_be_a_class(config, tmp_path, toys):
    fit(config.replace(background_class=True, steps=2), tmp_path, progress=False)
    task, _ = begun(config.replace(background_class=True))
    keep, label = np.asarray(task.slots.keep), task.targets["label"]
    assert task.model.names[-1] == "background" and ((label >= 0) == keep).all() and (label == len(scenes.KINDS)).any()
    assert task.model.counts[-1] == 0 and "background" not in Recognition.report(tmp_path, toys / "test.lmdb")[0]["classes"]


def test_frames_of_clips_are_recognised_each(config, few_clips, tmp_path):
    fit(config.replace(data=str(few_clips), steps=2), tmp_path, progress=False)
    found = predictions(tmp_path, few_clips / "test.lmdb")
    one = stores.open(few_clips / "test.lmdb")
    for _, row in found.iterrows():
        assert scenes.KINDS[one[int(row["item"])].info["classes"][int(row["segment"])]] == row["true"]
    told, text = Recognition.report(tmp_path, one, limit=1)
    assert told["clips"] == 1 and "1 clips with objects" in text and predictions(tmp_path, one, limit=1)["item"].max() < 4


def test_a_store_without_classes_is_refused_before_anything_is_written(config, small_scenes, run, tmp_path):
    with pytest.raises(StoreError, match=r"train.lmdb knows no classes.*nothing to recognise: take one that does"):
        fit(config.replace(data=str(small_scenes)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(StoreError, match="knows no classes"):
        Recognition.report(run, small_scenes / "test.lmdb")


def test_a_store_of_other_classes_is_refused(run, tmp_path):
    other = store(tmp_path, [record(rows(0, 1), {1: 3})], classes={3: "cat"}, split="test")
    with pytest.raises(ValueError, match="test.lmdb has other classes than .*: 3 'cat', was "):
        Recognition.report(run, other)


def test_what_is_no_parent_is_refused(config, run, toys, tmp_path):
    with pytest.raises(ValueError, match=f"no config.json at {tmp_path}/nowhere: is it a run directory"):
        fit(config.replace(parent=str(tmp_path / "nowhere")), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="is a run of task 'recognition', which has no slots: take that run's parent"):
        fit(config.replace(parent=str(run)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="is a run of task 'discovery', not of recognition"):
        load(config.parent)


def test_slots_of_another_model_are_refused(run, config, tmp_path):
    """The parent was trained on after the head: the slots that it has now are not what the head knows."""
    parent = shutil.copytree(config.parent, tmp_path / "parent")
    place = parent / "checkpoints" / str(runs.best_step(parent))
    weights = load_file(place / "weights.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, place / "weights.safetensors")
    (place / "progress.json").unlink()
    head = shutil.copytree(run, tmp_path / "head")
    runs.write_json(head / "config.json", config.replace(parent=str(parent)).to_dict())
    with pytest.raises(ValueError, match="from whose slots .* has learned, has other weights .*train the head again"):
        load(head)


def test_slots_of_another_store_or_kind_are_refused(config, few_clips, tmp_path):
    Recognition(config.replace(slots=str(tmp_path)))
    with pytest.raises(ValueError, match="the slots in .* are of something else: the store's records"):
        Recognition(config.replace(slots=str(tmp_path), data=str(few_clips)))
    with pytest.raises(ValueError, match="source is 'model' there, not 'untrained'"):
        Recognition(config.replace(slots=str(tmp_path), slots_of="untrained"))


def test_a_model_whose_slots_find_nothing_is_told_so(config):
    with pytest.raises(ValueError, match=r"of \d+ objects of known class in .*train.lmdb no slot has found any, with an IoU above match_iou=0.99: lower"):
        begun(config.replace(match_iou=0.99))


def test_a_run_goes_on_with_the_same_classes_only(run):
    data = checkpoint.last(run)["data"]
    assert data["classes"] == {str(one): name for one, name in scenes.KINDS.items()} and data["slot_dim"] == 12


def test_the_commands_train_and_evaluate_it(config, toys, tmp_path, capsys):
    run_dir = tmp_path / "run"
    words = f"--task recognition --from {config.parent} --data {toys} --run-dir {run_dir} --steps 2 --head-dim 16 --device cpu"
    assert main(["train", *words.split()]) == 0 and "objects found; x100: top-1" in capsys.readouterr().out
    assert main(["evaluate", "--run-dir", str(run_dir), "--data", str(toys)]) == 0
    assert "box R2: 1 - SSE/SST" in capsys.readouterr().out
    written = runs.read_object(run_dir / "scores" / "test-recognition.json")
    assert written["head"] == Recognition.report(run_dir, toys / "test.lmdb")[0]["head"]


def test_a_store_in_which_nothing_is_found_can_be_written_down(run, tmp_path):
    """One object of a single pixel in the corner."""
    true = np.zeros((128, 128), np.uint8)
    true[0, 0] = 1
    one = store(tmp_path, [record(true, {1: 2}), record(None)], classes=dict(scenes.KINDS), split="test")
    told, text = Recognition.report(run, one)
    runs.write_json(tmp_path / "told.json", told)
    assert told["head"]["matched"] == 0 and told["head"]["true"] == 1 and told["head"]["recall"] == 0
    assert np.isnan(told["head"]["top1"]) and "n/a" in text and len(predictions(run, one)) == 0
    again = runs.read_object(tmp_path / "told.json")["head"]
    assert "top-1 n/a" in Recognition.text(again | {"store": "validation"}) and again["top1"] is None
