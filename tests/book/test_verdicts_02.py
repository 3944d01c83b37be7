"""02's verdicts follow the numbers under which they stand."""

import numpy as np
import torch
from verdicts import said, verdict_cells

from dias_lab.analysis.intervals import paired_interval
from dias_lab.analysis.verdicts import points, side

WORDS = {"paired_interval": paired_interval, "points": points, "side": side}
MANY = np.linspace(-1, 1, 24)  # a spread over 24 scenes


def test_every_verdict_of_the_notebook_has_its_test():
    assert len(verdict_cells("02")) == 8


def test_which_channels_are_heard():
    loud, quiet = torch.tensor([0.3, 0.3, 0.3, 0.04, 0.03, 0.03]), torch.tensor([0.03, 0.03, 0.04, 0.3, 0.3, 0.3])
    words = said("02", 0, shares={"scale": loud, "standardise": torch.full((6,), 1 / 6)})
    assert "scale: distances hear the colours" in words and "standardise: distances hear both alike" in words
    assert "scale: distances hear the deviations" in said("02", 0, shares={"scale": quiet, "standardise": loud})


def test_doubt_and_change_over_the_iterations():
    words = said("02", 1, doubt=torch.tensor([0.9, 0.5, 0.1]), changed=torch.tensor([0.5, 0.01]))
    assert "doubt falls" in words and "the maps settle" in words
    words = said("02", 1, doubt=torch.tensor([0.1, 0.5, 0.9]), changed=torch.tensor([0.1, 0.2]))
    assert "doubt rises" in words and "the maps do not settle" in words
    assert "doubt stays as it is" in said("02", 1, doubt=torch.tensor([0.5, 0.51]), changed=torch.tensor([0.5]))


def test_things_or_parts():
    def words(clustered, trained):
        one = lambda things, parts: {"things": things + MANY, "parts": parts - MANY}  # noqa: E731
        agreement = {
            "k-means by hand": one(*clustered),
            "untrained, last map": one(*clustered),
            "trained, decoder map": one(*trained),
        }
        return said("02", 2, agreement=agreement, **WORDS)

    learned, nothing = words((30, 50), (70, 40)), words((50, 50), (50, 50))
    assert "k-means by hand: nearer to the parts" in learned and "trained, decoder map: nearer to the things" in learned
    assert "finds more of the things than untrained, last map" in learned
    assert "as near to one as to the other" in nothing and "is not told apart from k-means by hand" in nothing
    assert "finds less of the things than k-means by hand" in words((70, 40), (30, 50))


def test_merging_that_helps_and_merging_that_harms():
    def words(own):
        scores = {"no merging": 50, "this model's": own, "too much": 40}
        scores = {name: {"ARI": value + MANY, "FG-ARI": value - MANY} for name, value in scores.items()}
        return said("02", 3, merging_scores=scores, kept_of=dict.fromkeys(scores, 4.0), **WORDS)

    assert "is better than no merging" in words(60) and "is better than too much" in words(60)
    assert "is worse than no merging" in words(45) and "is worse than too much" in words(30)


def test_what_short_trainings_do():
    def words(first, last, agree=0.8):
        row = lambda first, last, agree: {"first to last": agree, "ARI first": first, "ARI last": last}  # noqa: E731
        measured = {kind: row(0.5, 0.6, 0.9) for kind in ("before", "without", "fixed teacher")}
        return said("02", 4, measured=measured | {"as DIAS": row(first, last, agree), "wrong": row(0.1, 0.1, 0.1)})

    good, bad = words(0.58, 0.7), words(0.4, 0.3, agree=1.2)
    assert (
        "as DIAS: slot by slot, first and last map came closer, and the last one gained" in good
        and "first map is better than" in good
    )
    assert (
        "as DIAS: slot by slot, first and last map went apart, and the last one forgot" in bad
        and "first map is worse than" in bad
    )
    assert "wrong: slot by slot, first and last map came closer, and the last one forgot" in good
    assert "the last map knows more than the first" in good


def test_the_last_map_may_know_less_than_the_first():
    row = {"first to last": 0.9, "ARI first": 0.35, "ARI last": 0.23}
    words = said("02", 4, measured=dict.fromkeys(("before", "without", "as DIAS", "fixed teacher", "wrong"), row))
    assert "the last map knows less than the first" in words and "first map is as good as" in words


def test_frames_that_move_the_mask_and_frames_that_do_not():
    words = said("02", 5, along=0.8, areas={"half as wide": 4.0, "twice as wide": 20.0})
    assert "goes along" in words and "grows with the frame" in words
    words = said("02", 5, along=0.0, areas={"half as wide": 9.0, "twice as wide": 9.0})
    assert "stays" in words and "does not grow with the frame" in words


def test_the_error_and_the_map_by_what_is_visible():
    words = said("02", 6, error_seen=[0.5, 0.3, 0.1], ari_seen=[80.0, 40.0, 0.0])
    assert "at every step" in words and "visible: nothing" in words
    words = said("02", 6, error_seen=[0.1, 0.5, 0.1], ari_seen=[10.0, 40.0, 60.0])
    assert "not at all" in words and "visible: everything" in words
    words = said("02", 6, error_seen=[0.5, 0.6, 0.1], ari_seen=[50.0, 40.0, 52.0])
    assert "but not at every step" in words and "they are alike" in words


def test_whether_the_decoder_reads_its_slots():
    def words(other):
        curves = {"own slots": [0.1, 0.0], "average, own frames": [0.5, 0.4], "another picture's": other}
        nothing, everything = said("02", 7, curves=curves, variance=1.0).split("with everything")
        return nothing, everything

    nothing, everything = words([0.9, 0.01])
    assert "grows with average, own frames (by 40%), another picture's (by 80%)" in nothing
    assert "hardly with another picture's (by 1.0%)" in everything
    assert "another picture's" in words([0.1, 0.3])[1].partition("hardly")[0]
