"""Means, paired differences and intervals: against what is known, and over the files that runs leave."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dias_lab import runs
from dias_lab.analysis import intervals
from dias_lab.analysis.intervals import difference_text, mean_text, paired_interval, widened_interval


def test_interval_against_what_is_known():
    random = np.random.default_rng(0)
    noise = random.normal(0.1, 1, (3, 400))
    mean, low, high = paired_interval(noise)
    assert low < 0.1 < high and mean == pytest.approx(noise.mean())
    assert 0.06 < high - low < 0.5  # at least the spread of 1,200 independent numbers: 4 / 35
    assert paired_interval(np.full((3, 5), 0.25)) == (0.25, 0.25, 0.25)
    seeds = np.repeat([[0.0], [0.3], [0.6]], 400, axis=1)  # all the spread is between seeds: no number of images helps
    assert paired_interval(seeds)[1] <= 0.1
    holes = np.where(random.random((3, 50)) < 0.3, np.nan, 0.5)
    assert paired_interval(holes) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"\[seeds images\]"):
        paired_interval(np.zeros(4))


def test_the_numbers_stay_those_of_the_published_tables():
    differences = np.random.default_rng(7).normal(0.1, 1, (3, 40))
    differences[1, 5:9] = np.nan
    mean = -0.04104561306670399
    assert paired_interval(differences) == pytest.approx((mean, -0.3172158235110479, 0.26529217645552355), abs=1e-12)
    assert widened_interval(differences) == pytest.approx((mean, -0.7598724319947114, 0.5541384845206497), abs=1e-12)


def test_intervals_are_those_of_student_for_seeds_and_cover():
    random = np.random.default_rng(0)
    differences = random.normal(1, 1, (5, 1))
    mean, low, high = widened_interval(differences)
    student = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences[:, 0]))
    assert mean == pytest.approx(differences.mean()) and (high - low) == pytest.approx(np.diff(student)[0], rel=0.25)
    assert np.isnan(widened_interval(differences[:1])[1])
    few = random.normal(0, 1, (3, 1))
    _, low, high = widened_interval(few)
    assert high - low > 1.5 * (few.max() - few.min())  # where plain percentiles would end
    images = random.normal(0, 1, (1, 200)) + np.zeros((3, 1))  # all of the noise is of images, and they are not few
    _, low, high = widened_interval(images)
    assert high - low == pytest.approx(2 * 1.96 * images[0].std() / 200**0.5, rel=0.15)
    both = images + random.normal(0, 1, (3, 1))
    widths = [np.diff(widened_interval(each)[1:])[0] for each in (both, images, both.mean(1, keepdims=True))]
    assert widths[0] == pytest.approx(np.hypot(*widths[1:]), rel=0.1)
    both[0, :50] = np.nan
    assert np.isfinite(widened_interval(both)).all()


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Makes rows of a setting's runs as `runs.collect` has them, with or without the scores of images."""
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))

    def make(name: str, scores: dict, with_images: bool = True, items=None, records=None) -> pd.DataFrame:
        for seed, own in scores.items():
            table = pd.DataFrame({"item": np.arange(len(own)) if items is None else items, "last.ari": own})
            if records:
                table["records"] = records
            if with_images:
                runs.write_text(tmp_path / f"{name}-{seed}/scores/test.images.csv", table.sample(frac=1, random_state=seed).to_csv(index=False))
        values = [{"run": f"{name}-{seed}", "seed": seed, "test.last.ari": np.nanmean(own)} for seed, own in scores.items()]
        return pd.DataFrame(values)

    return make


@pytest.mark.parametrize("mine, theirs, paired", [("e1", "e1", True), ("e1", "f2", False), ("e1", None, False), (None, None, True), ("1", "01", False)])
def test_images_of_other_data_are_not_the_same_whatever_their_number(mine, theirs, paired, rows):
    random = np.random.default_rng(1)
    own, other = ({seed: random.normal(0, 1, 20) for seed in (3, 4)} for _ in range(2))
    ours, others = rows("a", own, records=mine), rows("b", other, records=theirs)
    found = intervals.difference(intervals.scores(ours, "test.last.ari"), intervals.scores(others, "test.last.ari"))
    by_image = np.stack([own[seed] - other[seed] for seed in (3, 4)])
    assert found == pytest.approx(widened_interval(by_image if paired else by_image.mean(1, keepdims=True)))


def test_a_difference_is_of_the_same_seeds_and_the_same_images(rows):
    random = np.random.default_rng(1)
    own, other = ({seed: random.normal(0, 1, 20) for seed in seeds} for seeds in ((5, 3, 4), (4, 5, 9)))
    own[5][2] = np.nan
    found = intervals.difference(*(intervals.scores(rows(*one), "test.last.ari") for one in (("a", own), ("b", other))))
    expected = np.stack([own[seed] - other[seed] for seed in (5, 4)])
    assert found == widened_interval(expected) and found[0] == pytest.approx(np.nanmean(expected))
    mean = intervals.interval(intervals.scores(rows("a", own), "test.last.ari"))
    assert mean == pytest.approx(widened_interval(np.stack([own[seed] for seed in (5, 3, 4)])), abs=1e-14)


def test_without_the_same_images_seeds_alone_are_paired(rows):
    random = np.random.default_rng(2)
    own, other = ({seed: random.normal(0, 1, 20) for seed in (1, 2, 3)} for _ in range(2))
    expected = widened_interval(np.array([[own[seed].mean() - other[seed].mean()] for seed in (1, 2, 3)]))
    own_scores = intervals.scores(rows("a", own), "test.last.ari")
    for theirs in (rows("b", other, with_images=False), rows("c", other, items=np.arange(20) + 1)):
        assert intervals.difference(own_scores, intervals.scores(theirs, "test.last.ari")) == pytest.approx(expected)
    nobody = intervals.scores(rows("d", {8: np.zeros(3)}), "test.last.ari")
    assert np.isnan(intervals.difference(own_scores, nobody)).all()
    undefined = rows("e", own).assign(**{"test.last.ari": [np.nan, 0.5, None]})
    assert intervals.scores(undefined, "test.last.ari").index.tolist() == [2]


def test_two_settings_of_one_table_are_paired_by_name(rows):
    random = np.random.default_rng(3)
    own, other = ({seed: random.normal(0, 1, 20) for seed in (1, 2, 3)} for _ in range(2))
    table = pd.concat([rows("a", own).assign(setting="a"), rows("b", other).assign(setting="b")])
    expected = widened_interval(np.stack([own[seed] - other[seed] for seed in (1, 2, 3)]))
    assert intervals.between(table, ("a", "test.last.ari"), ("b", "test.last.ari")) == expected
    assert np.isnan(intervals.between(table, ("a", "test.last.ari"), ("c", "test.last.ari"))).all()


def test_a_file_that_changes_is_read_again(rows):
    for value in (0.25, 0.75):
        scores = intervals.scores(rows("a", {1: np.full(4, value), 2: np.full(4, value)}), "test.last.ari")
        assert intervals.interval(scores) == (value, value, value)


def test_words_for_numbers():
    assert (mean_text(0.5671, 0.012), mean_text(0.5671, np.nan), mean_text(np.nan, np.nan)) == ("56.7 ± 1.2", "56.7", "n/a")
    assert mean_text(1234.567, 0.5, factor=1) == "1235 ± 0.5"
    assert difference_text(0.012, -0.003, 0.027) == " [+1.2: -0.3 to +2.7]" and difference_text(np.nan, np.nan, np.nan) == ""
    assert difference_text(-0.5, np.nan, np.nan, factor=1) == " [-0.5, no interval]"
    assert intervals.distinct(["dias", "dias", np.nan, None]) == "dias" and intervals.distinct([200.0, 100.0]) == "100, 200"
