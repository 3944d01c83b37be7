"""09's verdicts follow from the numbers that stand above them."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact
from verdicts import said

from dias_lab.analysis import intervals, verdicts
from dias_lab.heads import recognition
from dias_lab.heads import scores as scoring
from dias_lab.heads.matching import BOX

SOURCES = {"model": "the model's slots", "untrained": "its untrained twin's", "k_means": "k-means", "tiles": "tiles", "true": "true segments"}
NAMES = dict(intervals=intervals, verdicts=verdicts, scoring=scoring, recognition=recognition, fisher_exact=fisher_exact, Markdown=str)
NAMES |= dict(pd=pd, np=np, SOURCES=SOURCES)
IMAGES, EACH = 8, 4


def toys(found: float = 1.0, right: float = 1.0, iou: float = 0.8) -> pd.DataFrame:
    """Four toys in each of eight pictures, of which these shares are found, and told right; boxes are told with one IoU."""
    numbers = np.arange(IMAGES * EACH)
    boxes = 0.1 + 0.02 * (numbers % 7)[:, None] + np.array([0, 0, 0.3, 0.3])
    table = pd.DataFrame(boxes, columns=BOX).assign(item=numbers // EACH, unit=numbers // EACH, segment=numbers % EACH, label=numbers % EACH)
    taken = numbers < found * len(numbers)
    table["slot"] = np.where(taken, numbers % EACH, -1)
    for name, values in {"rank": numbers >= right * len(numbers), "box_iou": iou + 0 * numbers, "iou": iou + 0 * numbers}.items():
        table[name] = np.where(taken, values, np.nan)
    return table.assign(**{edge: np.where(taken, table[own], np.nan) for edge, own in zip(scoring.SAID, BOX)})


def beside(**changed) -> dict:
    """All kinds of slots alike but for these; and who has seen none."""
    return {"judged": dict.fromkeys(SOURCES, toys()) | changed, "unseen": dict.fromkeys(SOURCES, toys(right=0, iou=0.1))}


def test_what_slots_tell_beside_what_learned_nothing():
    text = said("09", 0, **beside(untrained=toys(right=0), k_means=toys(iou=0.3)), **NAMES)
    assert "beside its untrained twin's: **more** classes told (+100.0 [+100.0, +100.0]), no more and no fewer boxes told" in text
    assert "beside k-means: no more and no fewer classes told (+0.0 [+0.0, +0.0]), **more** boxes told" in text
    assert f"beside {recognition.PRIOR}: **more** classes told" in text
    text = said("09", 0, **beside(model=toys(found=0)), **NAMES)
    assert "beside tiles: **fewer** classes told (-100.0 [-100.0, -100.0]), **fewer** boxes told" in text


def neighbours(same: float, spread=0.0) -> tuple:
    item = np.repeat(np.arange(IMAGES), 2)
    wave = spread * np.where(item % 2, 1, -1)
    return pd.DataFrame({"item": item, "label": [0, -1] * IMAGES, "same": same + wave, "chance": 0.2}), None


def test_whose_neighbours_are_of_one_kind():
    """Slots that have found nothing do not count."""
    alike = {"model": neighbours(0.7), "untrained": neighbours(0.1), "k_means": neighbours(0.2, spread=0.1)}
    text = said("09", 1, alike=alike, nearest=5, **NAMES)
    assert "the model's slots: **alike beyond chance**: 70 of 100 are of its class, by chance 20 (+50.0" in text
    assert "its untrained twin's: **less alike than by chance**" in text and "k-means: no more alike than by chance" in text
    alike = {"model": (neighbours(0.7)[0].assign(label=-1), None)}
    assert "n/a" in said("09", 1, alike=alike, nearest=5, **NAMES)


def fates(table: pd.DataFrame) -> pd.Series:
    lost = [table["slot"] < 0, table["rank"] > 0, table["box_iou"] <= 0.5]
    return pd.Series(np.select(lost, ["no slot", "wrong class", "bad box"], "right"), table.index)


def test_how_toys_are_lost():
    text = said("09", 2, judged={"model": toys(found=0.75, right=0.5)}, fates=fates, **NAMES)
    assert "Of 32 toys 16 are right; wrong class: 8, no slot: 8." in text or "no slot: 8, wrong class: 8." in text
    assert "Most often lost" not in text  # neither is
    assert "Most often lost: **no slot**" in said("09", 2, judged={"model": toys(found=0.5)}, fates=fates, **NAMES)
    assert said("09", 2, judged={"model": toys()}, fates=fates, **NAMES).endswith("Of 32 toys 32 are right; none is lost.")
    small = toys(found=0.75)
    small.loc[small["slot"] < 0, ["right", "bottom"]] -= 0.2
    text = said("09", 2, judged={"model": small}, fates=fates, **NAMES)
    assert "The lost ones are **smaller**: their boxes' median area is 0.11 of the others'" in text


@pytest.mark.parametrize("lost, word", [("twins", "more"), ("others", "less")])
def test_whether_twins_are_lost(lost, word):
    table = toys()
    table.loc[table["item"] < 4, "label"] = 0  # all of a kind
    table.loc[(table["item"] < 4) == (lost == "twins"), "slot"] = -1
    text = said("09", 3, judged={"model": table}, **NAMES)
    first, second = ("16 of 16", "0 of 16") if lost == "twins" else ("0 of 16", "16 of 16")
    assert f"{first} toys with another of their kind in the picture, {second} others: **twins are lost {word} often**" in text
    assert "not told apart" in said("09", 3, judged={"model": toys()}, **NAMES)


def test_what_slots_know_of_place():
    def apart(one, other, score):  # of the notebook
        difference = scoring.by_image(one)[score] - scoring.by_image(other)[score]
        return [100 * value for value in intervals.paired_interval(difference[None])]

    model, read = toys(), "read off the model's map"
    told = {SOURCES["model"]: model, SOURCES["true"]: toys(iou=0.1), SOURCES["tiles"]: toys(iou=0.05), read: toys(iou=0.9)}
    given = dict(told=told, judged={"model": model}, unseen={"model": toys(right=0, iou=0.1)}, apart=apart)
    text = said("09", 4, **given, **NAMES)
    assert "a box told from the model's slots: **better than** the mean box (IoU +70.0 [+70.0, +70.0])" in text
    assert "from true segments: not told apart from the mean box" in text and "from tiles: **worse than** the mean box" in text
    assert "**worse than** the one read off its map (IoU -10.0" in text
    told[read] = toys(iou=0.6)
    assert "from the model's slots: **better than** the one read off its map" in said("09", 4, **given, **NAMES)
