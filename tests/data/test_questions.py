"""The file of questions beside a store: what comes back, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from dias_lab import files
from dias_lab.data import questions, store
from dias_lab.data.questions import Question

ABOUT = {"kinds": {"touch": 1}}


def video(path, clips=2, shade=0):
    blob = store.png(Image.fromarray(np.full((8, 8, 3), shade, np.uint8)))
    records = [store.Record(blob, None, {"source": "made", "clip": f"clip {c}", "frame": f}) for c in range(clips) for f in range(2)]
    return store.Store(store.write(path, records, {"kind": "video", "dataset": "made", "split": "test"}))


@pytest.fixture
def clips(tmp_path):
    return video(tmp_path / "test.lmdb")


def asked(**fields):
    plain = Question(1, "touch", ["will", "the", "car", "touch", "it"], [], "yes", {2: [0.1, 0.25, 0.5, 1]})
    return plain._replace(**fields)


def test_what_was_written_is_read(clips):
    choices = asked(clip=0, kind="explanatory", options=[["the", "cube"], ["nothing"]], answer=[True, False], mentions={})
    path = questions.write(questions.beside(clips), clips, [asked(), choices], ABOUT)
    assert path.name == "questions-test.json" and path.parent == clips.path.parent
    assert questions.read(path, clips) == [asked(), choices]
    found = files.read_object(path)
    assert found["about"] == ABOUT and found["records"] == clips.fingerprint()[:16] and len(found["questions"]) == 2


def test_another_stores_file_is_refused(clips, tmp_path):
    path = questions.write(questions.beside(clips), clips, [asked()], ABOUT)
    with pytest.raises(ValueError, match="is about another store than .*other.lmdb.*Convert the data again"):
        questions.read(path, video(tmp_path / "other.lmdb", shade=3))


def test_damage_is_noticed(clips):
    path = questions.write(questions.beside(clips), clips, [asked()], ABOUT)
    text = path.read_text()
    for damaged, wrong in ((text[:-40], "is not JSON"), (text.replace('"yes"', '"no"'), "checksum differs"), ("[]", "JSON object")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=wrong):
            questions.read(path, clips)
    path.write_text(json.dumps({"records": clips.fingerprint()[:16], "about": {}}))
    with pytest.raises(ValueError, match="lacks the fields questions"):
        questions.read(path, clips)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        questions.read(path, clips)


@pytest.mark.parametrize(
    "fields",
    [
        {"words": []}, {"words": "car"}, {"words": ["car", 2]}, {"kind": 3}, {"answer": True}, {"answer": None},
        {"options": [["a"]], "answer": "yes"}, {"options": [["a"]], "answer": [True, False]}, {"options": [[]], "answer": [True]},
        {"mentions": {5: [0, 0, 1, 1]}}, {"mentions": {2: [0, 0, 1]}}, {"mentions": {2: [0.5, 0, 0.2, 1]}}, {"mentions": {2: [0, 0, 2, 1]}},
        {"mentions": {2: [0, 0, float("nan"), 1]}},
    ],
)  # fmt: skip
def test_a_question_that_is_none_is_neither_written_nor_read(clips, fields):
    path = questions.beside(clips)
    with pytest.raises(ValueError, match="question 1 is damaged"):
        questions.write(path, clips, [asked(), asked(**fields)], ABOUT)
    assert not path.exists()
    listed = [one._asdict() for one in (asked(mentions={}), asked(**{"mentions": {}} | fields))]
    path.write_text(json.dumps({"records": clips.fingerprint()[:16], "about": {}, "questions": listed}))
    with pytest.raises(ValueError, match="question 1 is damaged"):
        questions.read(path, clips)


@pytest.mark.parametrize("clip", [2, -1, 0.0, True, "0"])
def test_a_clip_that_is_not_there(clips, clip):
    with pytest.raises(ValueError, match=rf"question 0 is about clip {clip!r}; .*test.lmdb has 2 clips"):
        questions.write(questions.beside(clips), clips, [asked(clip=clip)], ABOUT)


def test_questions_need_clips_and_all_fields(clips, tmp_path):
    blob = store.png(Image.fromarray(np.zeros((8, 8, 3), np.uint8)))
    images = store.write(tmp_path / "images.lmdb", [store.Record(blob, None, {"source": "made"})], {"dataset": "made", "split": "test"})
    with pytest.raises(ValueError, match="holds images; questions are about clips"):
        questions.write(tmp_path / "x.json", store.Store(images), [], ABOUT)
    path = questions.beside(clips)
    for listed in ([{"clip": 0}], ["who"], [asked()._asdict() | {"more": 1}]):
        path.write_text(json.dumps({"records": clips.fingerprint()[:16], "about": {}, "questions": listed}))
        with pytest.raises(ValueError, match="question 0 has not the fields clip, kind, words"):
            questions.read(path, clips)
