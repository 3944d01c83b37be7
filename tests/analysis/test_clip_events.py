"""What breaks identity: an event of each kind on made-up segments, and how often slots change with each."""

import numpy as np
import torch

from dias_lab import shipped
from dias_lab.analysis.clips import events, switches, switches_in
from dias_lab.data import scenes
from dias_lab.methods import segments_from


def clip(*frames, side=24):
    """Segments [F H W] of frames that give the corners (top, left, bottom, right) of each object, the nearest last; None: away."""
    segments = np.zeros((len(frames), side, side), np.uint8)
    for number, corners in enumerate(frames):
        for label, corner in enumerate(corners, start=1):
            if corner is not None:
                segments[number, corner[0] : corner[2], corner[1] : corner[3]] = label
    return segments


def kinds(segments, **options):
    """{(object, before, frame): event}"""
    return {(row.object, row.before, row.frame): row.event for row in events(segments, **options).itertuples()}


FAR = (16, 16, 22, 22)


def test_nothing_happens():
    still = clip([(2, 2, 8, 8), FAR], [(2, 3, 8, 9), FAR], [(2, 4, 8, 10), FAR])
    assert kinds(still) == dict.fromkeys([(1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 2)], "none")
    assert set(kinds(still, camera=True).values()) == {"camera"}


def test_two_that_cross():
    """The second passes in front of a small part of the first: neither is hidden, and each crosses the other."""
    found = kinds(clip([(2, 2, 10, 10), (2, 16, 10, 20)], [(2, 2, 10, 10), (2, 9, 10, 13)], [(2, 2, 10, 10), (16, 9, 22, 13)]))
    assert found == {(1, 0, 1): "crossing", (1, 1, 2): "crossing", (2, 0, 1): "crossing", (2, 1, 2): "crossing"}
    assert kinds(clip([(2, 2, 10, 10), (2, 12, 10, 16)], [(2, 2, 10, 10), (2, 11, 10, 15)])) == {(1, 0, 1): "none", (2, 0, 1): "none"}
    assert set(kinds(clip([(2, 2, 10, 10), (2, 11, 10, 15)], [(2, 2, 10, 10), (2, 10, 10, 14)])).values()) == {"crossing"}  # sides meet


def test_one_that_is_occluded():
    first = (4, 4, 12, 12)
    partly = kinds(clip([first, (4, 13, 12, 23)], [first, (4, 6, 12, 16)], [first, (15, 13, 23, 23)]))
    assert partly[1, 0, 1] == partly[1, 1, 2] == "occluded" and partly[2, 0, 1] == "crossing"
    wholly = kinds(clip([first, FAR], [first, (3, 3, 13, 13)], [first, FAR]))
    assert wholly[1, 0, 2] == "occluded"


def test_a_small_object_alone_is_not_occluded():
    assert kinds(clip([(4, 4, 14, 14)], [(4, 4, 8, 8)])) == {(1, 0, 1): "none"}


def test_one_that_leaves_and_comes_back():
    left, inside = (4, 0, 10, 2), (4, 0, 10, 6)
    found = kinds(clip([inside, FAR], [left, FAR], [None, FAR], [None, FAR], [left, FAR], [inside, FAR]))
    assert [found[1, *pair] for pair in ((0, 1), (1, 4), (4, 5))] == ["exit"] * 3
    assert {event for key, event in found.items() if key[0] == 2} == {"none"}
    fast = kinds(clip([(4, 4, 10, 10), FAR], [None, FAR], [left, FAR]))  # it comes back at the border
    assert fast[1, 0, 2] == "exit"


def test_how_small_is_small():
    halves = clip([(4, 4, 12, 12), (4, 16, 12, 20)], [(4, 4, 12, 12), (4, 9, 12, 13)])  # of the first, five eighths stay
    assert kinds(halves)[1, 0, 1] == "crossing" and kinds(halves, small=0.7)[1, 0, 1] == "occluded"


def test_special_labels_and_frames_without_masks():
    segments = clip([FAR], [FAR], [FAR], [FAR])
    segments[0, :2], segments[3, :2] = 254, 255
    segments[1] = 255
    assert kinds(segments) == {(1, 0, 2): "none", (1, 2, 3): "none"}
    assert len(events(np.full((3, 4, 4), 255, np.uint8))) == len(events(np.zeros((3, 4, 4), np.uint8))) == 0
    assert list(events(np.zeros((3, 4, 4), np.uint8))) == ["object", "before", "frame", "event"]


def test_switches_are_those_of_the_object_that_changed_its_slot():
    true = torch.from_numpy(clip([(2, 2, 8, 8), FAR], [(2, 3, 8, 9), FAR], [(2, 4, 8, 10), FAR]))
    predicted = true.long()
    assert switches(predicted, true)["switched"].tolist() == [0, 0, 0, 0]
    predicted[1:] = torch.where(predicted[1:] == 2, 3, predicted[1:])
    found = switches(predicted, true)
    assert found.loc[found["switched"] == 1, ["object", "before", "frame", "event"]].values.tolist() == [[2, 0, 1, "none"]]
    assert set(switches(predicted, true, camera=True)["event"]) == {"camera"}
    assert len(switches(predicted[:1], true[:1])) == 0  # nothing follows a single frame


def test_a_world_has_the_switches_of_all_its_clips():
    model = shipped("clips")
    both, *each = (switches_in(model, "camera", seeds) for seeds in ([5, 6], [5], [6]))
    assert set(both["world"]) == {"camera"} and "none" not in set(both["event"]) and len(both) > 40
    assert both["switched"].tolist() == [value for one in each for value in one["switched"]]
    assert switches_in(model, "still", [5])["switched"].mean() < 0.05 < switches_in(model.untrained(), "clips", [5])["switched"].mean()


def test_identity_is_judged_by_the_map_that_the_method_is_scored_by():
    model, (pictures, segments) = shipped("clips").untrained(), map(torch.from_numpy, scenes.clip(5))
    output = model(model.prepare(pictures.permute(0, 3, 1, 2)[None]), draws=model.draw([0], model.config.seed, frames=1))
    maps = {"decoder": output.decoder_attention[0], "last": output.attention[-1, 0]}
    found = {}
    for name, one in maps.items():
        model.evaluated_map = name
        found[name] = switches_in(model, "clips", [5])["switched"].tolist()
        assert found[name] == switches(segments_from(one, segments.shape[-1]), segments)["switched"].tolist()
    assert found["decoder"] != found["last"]
