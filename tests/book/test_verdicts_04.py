"""04's verdicts follow the numbers under which they stand; an untrained model meets no bar of learning."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import Markdown
from verdicts import said, verdict_cells

from dias_lab.analysis import verdicts
from dias_lab.analysis.intervals import TITLES, paired_interval

SPREAD = np.linspace(-0.05, 0.05, 40)
WORDS = {"paired_interval": paired_interval, "verdicts": verdicts, "TITLES": TITLES, "pd": pd}
CAUSES = ["split", "part", "merge", "leak", "background", "position"]


def scored(first: float, last: float, decoder: float) -> SimpleNamespace:
    values = {"first": first, "last": last, "decoder": decoder}
    columns = {
        f"{name}.{metric}": value + SPREAD for name, value in values.items() for metric in ("ari", "fg_ari", "mbo")
    }
    return SimpleNamespace(images=pd.DataFrame(columns))


def test_every_verdict_of_the_notebook_has_its_test():
    assert len(verdict_cells("04")) == 6


def test_where_the_model_stands():
    def words(decoder):
        others = {"untrained: last map": 30, "k-means": 40, "by hindsight: Ward, 4": 50, "position": 20, "ceiling": 90}
        table = pd.DataFrame({"ARI": {"decoder map": decoder, **others}})
        return said("04", 0, table=table, Markdown=Markdown)

    assert "**below**" not in words(60) and words(60).count("above") == 4
    assert "above untrained (30.0), **below** k-means (40.0), **below** by hindsight (50.0), above position" in words(
        35
    )


def test_what_training_added():
    def words(evaluation, start=scored(0.2, 0.4, 0.1)):
        return said("04", 1, evaluation=evaluation, start=start, **WORDS)

    assert "above its twin everywhere" in words(scored(0.4, 0.5, 0.7))
    assert "ARI: the decoder map is above the twin's last map" in words(scored(0.4, 0.5, 0.7))
    assert "nowhere" in words(scored(0.4, 0.5, 0.1)) and "is below the twin's last map" in words(scored(0.4, 0.5, 0.1))
    mixed = scored(0.4, 0.5, 0.7)
    mixed.images["decoder.ari"] -= 0.6
    assert "learned in part" in words(mixed)


def test_an_untrained_model_is_never_called_a_learned_one():
    for start in (scored(0.2, 0.4, 0.1), scored(0.2, 0.4, 0.8), scored(0.3, 0.3, 0.3)):
        assert "nowhere: nothing is shown to be learned" in said("04", 1, evaluation=start, start=start, **WORDS)


def test_whether_each_step_helps():
    def words(evaluation):
        baselines = pd.DataFrame({"item": range(len(SPREAD)), "k-means.ari": 0.45 + SPREAD})
        printed = said("04", 2, evaluation=evaluation, baselines=baselines, **WORDS)
        return dict(line.split(": ", 1) for line in printed.splitlines()[1:])

    good, bad = words(scored(0.3, 0.5, 0.7)), words(scored(0.5, 0.3, 0.3))
    assert all(
        good[name].startswith("helps") for name in ("last over first", "decoder over last", "decoder over k-means")
    )
    assert bad["last over first"].startswith("harms") and bad["decoder over last"].startswith("not decided")


def test_whether_numbers_answer_to_their_damage():
    def words(own, part_on_split):
        answers = pd.DataFrame(0.0, ["nothing", *CAUSES], CAUSES)
        for cause in CAUSES:
            answers.loc[cause, cause] = own
        answers.loc["split", "part"] = part_on_split
        return said("04", 3, answers=answers)

    assert words(0.9, 0.05).count("its number answers to its damage") == 6 and "'part' tells a cut" in words(0.9, 0.05)
    assert "does **not** answer" in words(0.0, 0.0) and "'part' does not tell" in words(0.9, 0.9)
    assert "'part'" not in said("04", 3, answers=pd.DataFrame({"split": {"nothing": 0.0, "split": 0.5}}))


def test_what_goes_wrong():
    def words(first, decoder, part):
        rows = {"first map": first, "last map": first, "decoder map": decoder, "untrained, last map": first}
        summary = pd.DataFrame({cause: rows for cause in CAUSES}).astype(float)
        summary.loc["decoder map", "merge"], summary.loc["decoder map", "part"] = 0.95, part
        return said("04", 4, summary=summary)

    assert "repaired from the first map to the decoder's: split (-0.30), part (-0.40)" in words(0.5, 0.2, 0.1)
    assert "largest number: merge" in words(0.5, 0.2, 0.1) and "less often than" in words(0.5, 0.2, 0.1)
    assert "made worse" in words(0.2, 0.5, 0.6) and "more often than" in words(0.2, 0.5, 0.6)
    assert "left as it was from the first map to the decoder's: split" in words(
        0.3, 0.3, 0.3
    ) and "as often as" in words(0.3, 0.3, 0.3)


def test_what_one_slot_holds():
    alike, near, far = np.eye(4), np.eye(4), 1 - np.eye(4)
    words = lambda trained, before: said("04", 5, alike=alike, maps=[trained], slot=0, before=before)  # noqa: E731
    assert "holds more of what looks unlike" in words(far, near) and "holds less" in words(near, far)
    assert "no more and no less" in words(near, near)
