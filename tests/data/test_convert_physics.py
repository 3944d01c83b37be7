"""`convert physics`: stores of clips whose infos hold the bodies, and questions that belong to them."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dias_lab.data import asked, physics, questions, store
from dias_lab.data.clips import Clips
from dias_lab.data.convert import physics as converter
from dias_lab.data.convert.scenes import CLASSES
from dias_lab.data.scenes import SPLITS

COUNTS = dict(train=3, validation=2, test=2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return converter.convert(tmp_path_factory.mktemp("data") / "physics", **COUNTS, frames=25)


def test_the_stores_hold_the_worlds(paths):
    for split, path in paths.items():
        assert store.verify(path)["items"] == COUNTS[split] * 25
        opened = store.open(path)
        clips = Clips(opened)
        assert opened.meta["kind"] == "video" and opened.meta["dataset"] == "physics" and len(clips) == COUNTS[split]
        assert opened.meta["command"].startswith("python -m dias_lab convert physics --out")
        assert opened.meta["difficulty"]["speed"] == [0.016, 0.032]
        world = physics.World(SPLITS[split] + 1)
        for frame in (0, 24):
            record = opened[clips[1][frame]]
            image, segments = world.frame(frame)
            assert (np.asarray(Image.open(io.BytesIO(record.image))) == image).all()
            assert record.info["bodies"] == {
                k + 1: [*state, world.radii[k]] for k, state in enumerate(world.state(frame).tolist())
            }
            assert record.info["boxes"] == store.boxes(segments) and record.info["frame"] == frame
            assert record.info["classes"] == {k: CLASSES[kind] for k, kind in enumerate(world.kinds, start=1)}


def test_the_questions_are_those_of_the_clips(paths):
    for split, path in paths.items():
        opened = store.open(path)
        found = questions.read(questions.beside(opened), opened)
        worlds = [physics.World(SPLITS[split] + clip) for clip in range(COUNTS[split])]
        assert found == asked.ask(worlds)[0] and len(found) > 2
        for one in found:
            info = opened[Clips(opened)[one.clip].start].info
            for place, box in one.mentions.items():
                segment = 1 + worlds[one.clip].kinds.index(asked.KINDS[one.words[place]])
                assert [128 * side for side in box] == info["boxes"][segment]
    with pytest.raises(ValueError, match="is about another store"):
        questions.read(paths["test"].with_name("questions-train.json"), store.open(paths["test"]))


def test_converting_again_gives_the_same(paths, tmp_path):
    again = converter.convert(tmp_path / "again", **COUNTS, frames=25)
    for split, path in again.items():
        assert store.open(path).fingerprint() == store.open(paths[split]).fingerprint()
        one, other = (folder.with_name(f"questions-{split}.json").read_bytes() for folder in (path, paths[split]))
        assert one == other


def test_faster_is_another_world(tmp_path):
    path = converter.convert(tmp_path, train=1, validation=1, test=2, frames=9, difficulty="faster")["test"]
    opened = store.open(path)
    assert len(opened[0].info["bodies"]) == 5 and "--difficulty faster" in opened.meta["command"]
    assert {one.kind for one in questions.read(questions.beside(opened), opened)} <= {"order", "presence"}  # five are five


def test_short_clips_are_asked_about_their_whole_course_and_training_may_have_more_questions(tmp_path):
    path = converter.convert(tmp_path, train=8, validation=8, test=1, frames=9, questions_times=3)
    found = {split: questions.read(questions.beside(opened), opened) for split, opened in ((one, store.open(path[one])) for one in path)}
    assert {"touch-16", "half", "counterfactual"} & {one.kind for one in found["train"]}
    counts = {split: Counter((one.kind, one.answer) for one in found[split] if one.kind == "presence") for split in found}
    assert counts["validation"] == {("presence", "yes"): 8, ("presence", "no"): 8}
    assert counts["train"] == {("presence", "yes"): 24, ("presence", "no"): 24}  # each clip has three toys at least
    assert "--questions-times 3" in store.open(path["train"]).meta["command"]
    assert len({(one.clip, *one.words) for one in found["train"]}) == len(found["train"])  # none is asked twice


@pytest.mark.parametrize(
    "fields, wrong",
    [({"frames": 8}, "frames=8: a clip has 9"), ({"train": 0}, "train=0"), ({"questions_times": 0}, "questions_times=0"), ({"difficulty": "slow"}, "unknown difficulty 'slow'")],
)
def test_bad_numbers_are_refused(tmp_path, fields, wrong):
    with pytest.raises(ValueError, match=wrong):
        converter.convert(tmp_path, **COUNTS | fields)
    assert not list(tmp_path.iterdir())
