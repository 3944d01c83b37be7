"""Scores of answers by hand, intervals over clips, and what is known without a model."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from dias_lab.data.asked import ask
from dias_lab.data.physics import Difficulty, World
from dias_lab.data.questions import Question
from dias_lab.prediction import answers

OTHER = SimpleNamespace(meta={"dataset": "small"})


def word(clip: int, answer: str, kind="touch") -> Question:
    return Question(clip, kind, ["x"], [], answer, {})


def test_balanced_accuracy_is_the_mean_over_the_true_answers():
    asked = [word(0, "yes"), word(0, "yes"), word(1, "yes"), word(1, "yes"), word(2, "no"), word(2, "three", "count")]
    found = answers.scores(asked, ["yes", "yes", "yes", "no", "no", "two"])
    assert found["types"]["touch"]["balanced_accuracy"] == (3 / 4 + 1) / 2 and found["types"]["touch"]["accuracy"] == 4 / 5
    assert found["types"]["count"]["balanced_accuracy"] == 0 and found["balanced_accuracy"] == 7 / 16
    assert (found["questions"], found["clips"]) == (6, 3) and found["types"]["touch"]["questions"] == 5
    assert answers.scores(asked, ["yes"] * 5 + ["three"])["types"]["touch"]["balanced_accuracy"] == 0.5


def test_what_each_clip_adds_has_the_balanced_accuracy_as_its_mean():
    asked = [word(0, "yes"), word(0, "yes"), word(1, "yes"), word(1, "yes"), word(2, "no"), word(2, "three", "count")]
    asked += [Question(1, "which", ["x"], [["a"], ["b"]], [True, False], {})]
    given = ["yes", "yes", "yes", "no", "no", "three", [True, True]]
    table, found = answers.by_clip(asked, given), answers.scores(asked, given)["types"]
    assert list(table.index) == [0, 1, 2] and {*table} == {*found}
    assert {kind: pytest.approx(one["balanced_accuracy"]) for kind, one in found.items()} == table.mean().to_dict()
    assert table.loc[0, "touch"] == pytest.approx(7 / 8 + 3 * (2 - 2 * 3 / 4) / (4 * 2)) and table.loc[0, "count"] == 1
    perfect = answers.by_clip(asked, [one.answer for one in asked])
    assert (perfect == 1).all(axis=None)  # however many questions a clip has


def test_choices_count_one_by_one_and_as_whole_questions():
    options = [["a"], ["b"], ["c"]]
    asked = [Question(clip, "predictive", ["x"], options, answer, {}) for clip, answer in enumerate(
        ([True, False, False], [False, True, False], [True, True, False]))]  # fmt: skip
    found = answers.scores(asked, [[True, False, False], [False, True, True], [False, True, False]])["types"]["predictive"]
    assert found["per_option"] == pytest.approx(7 / 9) and found["per_question"] == pytest.approx(1 / 3)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert answers.numbers(answers.scores(asked, [one.answer for one in asked]))["predictive, per question"] == 1


def test_intervals_are_over_clips_and_not_over_questions():
    """To ask each question again and again makes nothing surer."""
    asked = [word(clip, "yes" if clip % 2 else "no") for clip in range(20)]
    told = [one.answer if one.clip % 3 else "?" for one in asked]
    once, often = answers.scores(asked, told), answers.scores(asked * 25, told * 25)
    assert (once["low"], once["high"]) == pytest.approx((often["low"], often["high"]))
    alone = answers.scores([one._replace(clip=number) for number, one in enumerate(asked * 25)], told * 25)
    assert alone["high"] - alone["low"] < 0.4 * (often["high"] - often["low"])
    assert once["low"] < once["balanced_accuracy"] < once["high"]
    assert "low" not in answers.scores(asked, told, draws=0)


def test_an_interval_is_that_of_a_bootstrap_written_out():
    random = np.random.default_rng(1)
    asked = [word(clip, str(random.integers(2))) for clip in range(30) for _ in range(random.integers(1, 4))]
    told = [one.answer if random.random() < 0.7 else "?" for one in asked]
    drawn = []
    for _ in range(1000):
        some = random.integers(30, size=30)
        rows = [(one.answer, one.answer == answer) for clip in some for one, answer in zip(asked, told) if one.clip == clip]
        drawn.append(np.mean([np.mean([right for true, right in rows if true == answer]) for answer in "01"]))
    found = answers.scores(asked, told)
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)


def test_the_majority_is_that_of_training():
    asked = [word(0, "no"), Question(0, "choice", ["x"], [["a"], ["b"]], [True, False], {}), word(0, "no", "new")]
    assert answers.baselines(asked, {"touch": "yes", "choice": False}, OTHER) == {"majority": ["yes", [False, False], None]}


class Frames(list):
    """What a store with physics says of clips of one frame each."""

    meta = {"dataset": "physics", "kind": "video", "difficulty": asdict(Difficulty()), "clips": [[clip, 1] for clip in range(12)]}


def test_the_simulator_knows_and_with_noise_it_knows_less():
    store = Frames(SimpleNamespace(info={"clip": f"clip {seed}"}) for seed in range(12))
    asked, _ = ask(map(World, range(12)))
    known = answers.baselines(asked, {}, store)
    scored = {name: answers.scores(asked, given)["balanced_accuracy"] for name, given in known.items()}
    assert scored["majority"] == 0 and scored["simulator"] == 1
    assert 0.4 < scored["simulator, speeds ± 0.5 pixels a frame"] < 1
    text = answers.text({"name": "mine", **answers.scores(asked, known["simulator"])})
    assert "mine" in text and "100.0 [100.0 to 100.0]" in text
