import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score, top_k_accuracy_score

from dias_lab.heads import scores
from dias_lab.heads.matching import BOX

C = 5


def drawn(seed, K=60, images=9, missed=0.3, unknown=0.1):
    """Objects as matching.objects gives them, and what is said of those that were found."""
    random = np.random.default_rng(seed)
    corners = random.random((K, 2)) * 0.5
    boxes = np.concatenate([corners, corners + 0.05 + 0.4 * random.random((K, 2))], axis=1)
    table = pd.DataFrame(boxes, columns=BOX)
    table["unit"] = table["item"] = np.sort(random.integers(images, size=K))
    table["segment"], table["iou"] = 1 + np.arange(K), 0.5
    table["label"] = np.where(random.random(K) < unknown, -1, random.integers(C, size=K))
    table["slot"] = np.where(random.random(K) < missed, -1, 0)
    found = table[(table["slot"] >= 0) & (table["label"] >= 0)]
    logits = torch.from_numpy(random.normal(size=(len(found), C)))
    said = torch.tensor(found[BOX].to_numpy() + 0.05 * random.normal(size=(len(found), 4)))
    return table, found, logits, said


def pixel_iou(one, other, side=400):
    """IoU of boxes whose edges lie on a grid, by counting its cells."""
    def mask(box):
        found = np.zeros((side, side), bool)
        left, top, right, bottom = np.rint(np.array(box) * side).astype(int)
        found[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        return found

    one, other = mask(one), mask(other)
    return (one & other).sum() / max((one | other).sum(), 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_scores_are_those_of_scikit_learn(seed):
    table, found, logits, said = drawn(seed)
    got = scores.scores(scores.judged(table, logits, said))
    true = found["label"].to_numpy()
    assert got["top1"] == pytest.approx(accuracy_score(true, logits.argmax(1)))
    assert got["top3"] == pytest.approx(top_k_accuracy_score(true, logits.numpy(), k=3, labels=range(C)))
    assert got["r2"] == pytest.approx(r2_score(found[BOX], said.numpy()))  # the uniform mean over coordinates
    known = table[table["label"] >= 0]
    assert got["true"] == len(known) < len(table) and got["matched"] == len(found)
    assert got["recall"] == pytest.approx(len(found) / len(known))
    assert got["top1_all"] == pytest.approx(got["top1"] * got["recall"])


def test_the_iou_of_boxes_is_that_of_their_pixels():
    random = np.random.default_rng(0)
    one, other = (np.rint(random.random((50, 4)) * 40) / 40 for _ in range(2))  # some with crossed sides
    expected = [pixel_iou(*pair, side=40) for pair in zip(one, other)]
    assert scores.box_iou(*map(torch.from_numpy, (one, other))).tolist() == pytest.approx(expected)
    assert scores.box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0]


def test_recall_of_boxes_counts_all_objects():
    table, found, logits, said = drawn(0)
    said[:] = torch.tensor(found[BOX].to_numpy())
    said[3, 2:] = said[3, :2]  # no area
    got = scores.scores(scores.judged(table, logits, said))
    right = (len(found) - 1) / (table["label"] >= 0).sum()
    assert got["recall_50"] == got["recall_75"] == pytest.approx(right) and got["box_iou"] == pytest.approx(1 - 1 / len(found))


def test_every_score_is_the_mean_of_its_numbers_by_image():
    table, _, logits, said = drawn(1)
    judged = scores.judged(table, logits, said)
    values, got = scores.by_image(judged), scores.scores(judged)
    assert values.keys() == scores.SCORES.keys() and {len(one) for one in values.values()} == {judged["unit"].nunique()}
    assert {name: one.mean() for name, one in values.items()} == pytest.approx({name: got[name] for name in values})


def test_the_interval_is_that_of_drawing_images_with_replacement():
    """Of the ratio itself, whose images have unequal numbers of objects."""
    table, _, logits, said = drawn(2, K=1500, images=150)
    judged = scores.judged(table, logits, said)
    row, random, drawn_again = scores.summary([judged]), np.random.default_rng(0), []
    found = judged[judged["slot"] >= 0]
    for _ in range(200):
        often = np.bincount(random.integers(150, size=150), minlength=150)
        weight, whole = often[found["unit"]], often[judged["unit"]].sum()
        r2 = r2_score(found[BOX], found[scores.SAID], sample_weight=weight)
        drawn_again.append((np.average(found["rank"] == 0, weights=weight), r2, weight.sum() / whole))
    for name, values in zip(("top1", "r2", "recall"), np.array(drawn_again).T):
        assert row[f"{name} high"] - row[f"{name} low"] == pytest.approx(4 * values.std() * 0.98, rel=0.2)


def test_seeds_widen_the_interval_and_have_a_deviation():
    table, _, logits, said = drawn(3)
    random = torch.Generator().manual_seed(0)
    seeds = [scores.judged(table, logits + torch.randn(logits.shape, generator=random), said) for _ in range(3)]
    row, alone = scores.summary(seeds), scores.summary(seeds[:1])
    tops = [scores.scores(one)["top1"] for one in seeds]
    assert row["n"] == 3 and row["top1"] == pytest.approx(np.mean(tops)) and row["top1 std"] == pytest.approx(np.std(tops, ddof=1))
    assert np.isnan(alone["top1 std"]) and alone["top1 low"] < alone["top1"] < alone["top1 high"]
    shown = scores.shown(pd.DataFrame({"a": row, "b": alone}).T)
    assert shown.loc["a", "top-1"].startswith(f"{100 * row['top1']:.1f} ± ") and "±" not in shown.loc["b", "top-1"]
    assert shown.loc["a", "matched / true"] == f"{row['matched']:.0f} / {row['true']:.0f}"


def test_nothing_that_was_found_has_no_score():
    table, *_ = drawn(0, missed=1.0)
    got = scores.scores(scores.judged(table, torch.zeros(0, C), torch.zeros(0, 4)))
    assert got["matched"] == 0 and got["recall"] == got["top1_all"] == got["recall_50"] == 0
    assert all(np.isnan(got[name]) for name in ("top1", "top3", "box_iou", "r2"))
    none = scores.scores(scores.judged(table[:0], torch.zeros(0, C), torch.zeros(0, 4)))
    assert none["true"] == 0 and np.isnan(none["recall"])
    assert np.isnan(scores.summary([scores.judged(table, torch.zeros(0, C), torch.zeros(0, 4))])["top1 low"])


@pytest.mark.parametrize("exact", [True, False])
def test_a_coordinate_that_never_varies_counts_as_scikit_learn_has_it(exact):
    table, found, logits, said = drawn(0)
    table["left"] = 0.25
    said[:, 0] = 0.25 if exact else 0.3
    found = table.loc[found.index]
    got = scores.scores(scores.judged(table, logits, said))["r2"]
    assert got == pytest.approx(r2_score(found[BOX], said.numpy()))


def test_one_object_has_no_r2():
    table, found, logits, said = drawn(0)
    one = table.loc[found.index[:1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = scores.scores(scores.judged(one, logits[:1], said[:1]))
    assert np.isnan(got["r2"]) and got["matched"] == 1 and got["box_iou"] > 0


def test_of_equally_probable_classes_one_is_said():
    table, found, _, said = drawn(0)
    judged = scores.judged(table, torch.zeros(len(found), C), said)
    share = (found["label"] == 0).mean()
    assert scores.scores(judged)["top1"] == pytest.approx(share) and set(judged["said"].dropna()) == {0}
    assert judged["probability"].dropna().tolist() == pytest.approx([1 / C] * len(found))


def test_the_classes_add_up():
    table, _, logits, said = drawn(1)
    judged = scores.judged(table, logits, said)
    classes, got = scores.by_class(judged, list("abcde")), scores.scores(judged)
    assert list(classes.index) == list("abcde") and classes["true"].sum() == got["true"]
    assert classes["matched"].sum() == got["matched"]
    assert (classes["top1"] * classes["matched"]).sum() == pytest.approx(got["top1"] * got["matched"])
    assert (classes["box_iou"] * classes["matched"]).sum() == pytest.approx(got["box_iou"] * got["matched"])


def test_every_number_has_its_definition():
    assert "SST around the mean true box" in scores.DEFINITIONS
    assert len(scores.DEFINITIONS.splitlines()) == len(scores.SCORES)
