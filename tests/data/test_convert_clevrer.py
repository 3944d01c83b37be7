"""CLEVRER and Physion, in files of their layout that are made here: small videos, proposals, questions and labels."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from pycocotools import mask as run_lengths

from dias_lab.__main__ import main
from dias_lab.data import pictures, questions, store
from dias_lab.data.convert import clevrer, physion
from dias_lab.data.convert.common import ConversionError

H, W = 64, 96
SPHERE, CUBE = ("red", "metal", "sphere"), ("blue", "rubber", "cube")


def place(number: int, shift: int) -> tuple[slice, slice]:
    return slice(8, 40), slice(shift + 4 * number, shift + 4 * number + 24)


def make_video(path: Path, frames: int = 6, shift: int = 4):
    """A red square that moves to the right by 4 pixels a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for number in range(frames):
            pixels = np.full((H, W, 3), 90, np.uint8)
            pixels[place(number, shift)] = 240, 20, 20
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


def proposal(where: tuple[slice, slice], name=SPHERE, score=0.9) -> dict:
    mask = np.zeros((H, W), np.uint8)
    mask[where] = 1
    found = run_lengths.encode(np.asfortranarray(mask))
    mask = {"size": found["size"], "counts": found["counts"].decode()}
    return {"mask": mask, "score": score} | dict(zip(("color", "material", "shape"), name))


ASKED = [
    {"question_id": 0, "question_type": "descriptive", "question": "What color is the metal sphere?", "answer": "red"},
    {"question_id": 1, "question_type": "predictive", "question": "What will happen next?", "choices": [
        {"choice_id": 0, "choice": "The sphere collides with the cube", "answer": "correct"},
        {"choice_id": 1, "choice": "The cube and the sphere collide", "answer": "wrong"},
    ]},
]  # fmt: skip


@pytest.fixture
def root(tmp_path) -> Path:
    """Five videos to train on, 00003 without proposals, and two to test, of which one is the broken one."""
    root = tmp_path / "CLEVRER"
    for split, numbers in (("train", range(5)), ("validation", (10000, 10800))):
        folder = f"video_{numbers[0]:05d}-{numbers[0] + 1000:05d}"
        for number in numbers:
            make_video(root / "videos" / split / folder / f"video_{number:05d}.mp4")
            objects = [[proposal(place(frame, 4)), proposal((slice(30, 60), slice(10, 30)), CUBE, 0.5)] for frame in range(6)]
            frames = [{"frame_index": frame, "objects": ones} for frame, ones in enumerate(objects)]
            if number != 3:
                path = root / "derender_proposals" / f"proposal_{number:05d}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps({"video_index": number, "frames": frames}))
        scenes = [{"scene_index": one, "video_filename": f"video_{one:05d}.mp4", "questions": ASKED} for one in numbers]
        (root / "questions").mkdir(exist_ok=True)
        (root / "questions" / f"{split}.json").write_text(json.dumps(scenes))
    return root


def change(path: Path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_clevrer_becomes_clips_and_questions(root, tmp_path, capsys):
    words = ["convert", "clevrer", "--root", str(root), "--out", str(tmp_path / "out"), "--size", "32", "--validation", "0.2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "left out, for the annotation is broken: video_10800" in told and "but for their pictures, for there are no proposals: video_00003" in told
    opened = {split: store.open(tmp_path / f"out/{split}.lmdb") for split in store.SPLITS}
    assert [len(one.meta["clips"]) for one in opened.values()] == [4, 1, 1]
    [first, second, third] = opened["test"]
    assert [one.info["frame"] for one in opened["test"]] == [0, 2, 4] and first.info["clip"] == "video_10000"
    labels = np.asarray(pictures.opened(second.segments, "segments"))
    assert labels.shape == (32, 32) and np.asarray(pictures.rgb(second.image)).shape == (32, 32, 3)
    classes = opened["test"].meta["classes"]
    assert {classes[one] for one in second.info["classes"].values()} == {"red metal sphere", "blue rubber cube"}
    # the whole width is there: the square of frame 2 is at 12 to 36 of 96 pixels; where both are, it is the surer
    sphere = {classes[number]: one for one, number in second.info["classes"].items()}["red metal sphere"]
    assert second.info["boxes"][sphere] == [4, 4, 12, 20]
    assert np.asarray(pictures.rgb(second.image))[12, 8, 0] > 200
    for one in opened.values():
        found = questions.read(questions.beside(one), one)
        assert len(found) == 2 * len(one.meta["clips"])
    assert found[0] == questions.Question(0, "descriptive", "what color is the metal sphere".split(), [], "red", {})
    assert found[1].answer == [True, False] and found[1].options[1] == "the cube and the sphere collide".split()


def test_clevrer_takes_the_frames_asked_for_and_repeats_its_command(root, tmp_path):
    paths = clevrer.convert(root, tmp_path / "out", stride=1, frames=2, size=16)
    one = store.open(paths["test"])
    assert [item.info["frame"] for item in one] == [0, 1]
    assert main([*one.meta["command"].split()[3:], "--out", str(tmp_path / "again")]) == 0
    assert list(store.open(tmp_path / "again/test.lmdb")) == list(one)


def test_missing_videos_are_named_at_once(root, tmp_path):
    for number in (1, 4):
        next(root.rglob(f"video_{number:05d}.mp4")).unlink()
    with pytest.raises(ConversionError, match="lacks 2 videos that there are questions about: video_00001, video_00004"):
        clevrer.convert(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file, edit, told", [
    ("questions/train.json", lambda all: all[0].pop("questions"), r"train.json is no list of scenes.*'questions'"),
    ("questions/train.json", lambda all: all[0]["questions"][0].pop("answer"), "a question about video_00000 is not as CLEVRER"),
    ("questions/train.json", lambda all: all[0]["questions"][1]["choices"][0].update(answer="maybe"), "not as CLEVRER.*'maybe'"),
    ("derender_proposals/proposal_00002.json", lambda one: one["frames"].pop(), "proposal_00002.json has no objects for each frame"),
    ("derender_proposals/proposal_00002.json", lambda one: one["frames"][0]["objects"][0].update(color="pink"),
     "objects that CLEVRER has not: pink metal sphere"),
    ("derender_proposals/proposal_00002.json", lambda one: one["frames"][0]["objects"][0]["mask"].update(counts="0"),
     "proposal_00002.json: frame 0: the red metal sphere: "),
])  # fmt: skip
def test_damage_is_named(root, tmp_path, file, edit, told):
    change(root / file, edit)
    with pytest.raises(ConversionError, match=f"(?s){told}"):
        clevrer.convert(root, tmp_path / "out", stride=1)
    assert not (tmp_path / "out/train.lmdb").exists() and not list(tmp_path.glob("out/*.json"))


def test_what_is_not_there_is_said(root, tmp_path):
    (root / "questions/validation.json").unlink()
    with pytest.raises(ConversionError, match="validation.json is missing. Expected in .*videos/{train,validation}"):
        clevrer.convert(root, tmp_path / "out")
    for options, told in (({"stride": 0}, "stride=0"), ({"frames": -1}, "frames=-1"), ({"size": 0}, "size=0")):
        with pytest.raises(ConversionError, match=f"{told}; give a number from"):
            clevrer.convert(root, tmp_path / "out", **options)


@pytest.fixture
def scenarios(tmp_path) -> Path:
    root = tmp_path / "Physion"
    for name in ("roll_1", "roll_2", "drop_1", "drop_2"):
        make_video(root / "videos" / f"{name.split('_')[0].title()}_readout_MP4s" / f"{name}_img.mp4", 4)
    for name in ("roll_9", "roll_1"):
        make_video(root / f"videos/Roll_training_MP4s/{name}_img.mp4", 4, 40)
    rows = ["roll_1,True", "roll_2,False", "drop_1,False", "drop_2,True"]
    (root / "videos/readout_labels.csv").write_text("\n".join([",ground truth outcome", *rows]) + "\n")
    for name, shift in (("mp4s/roll_1.mp4", 40), ("mp4s-redyellow/roll_1-redyellow.mp4", 4), ("mp4s-redyellow/bad_7-redyellow.mp4", 4)):
        make_video(root / "PhysionTestMP4s/Roll" / name, 4, shift)
    table = "Unnamed: 0,ground truth outcome\nroll_1,False\nbad_7,True\n"
    (root / "PhysionTestMP4s/labels.csv").write_text(table)
    return root


def test_physion_becomes_clips_with_one_question(scenarios, tmp_path, capsys):
    (tmp_path / "bad.txt").write_text("bad_7\n")
    words = ["--root", str(scenarios), "--out", str(tmp_path / "out"), "--stride", "2", "--size", "32", "--validation", "0.25"]
    assert main(["convert", "physion", *words, "--without", str(tmp_path / "bad.txt")]) == 0
    opened = {split: store.open(tmp_path / f"out/{split}.lmdb") for split in store.SPLITS}
    found = {split: questions.read(questions.beside(one), one) for split, one in opened.items()}
    assert [len(ones) for ones in found.values()] == [3, 1, 1]
    [test] = found["test"]
    assert (test.kind, test.answer, " ".join(test.words)) == ("roll", "no", "does the red object hit the yellow object")
    assert opened["test"][0].info["clip"] == "PhysionTestMP4s/Roll/mp4s-redyellow/roll_1-redyellow.mp4"
    assert [item.info["frame"] for item in opened["test"]] == [0, 2]
    assert all("training" not in item.info["clip"] for split in ("train", "validation") for item in opened[split])
    answers = {Path(opened[split][split_clip[0]].info["clip"]).stem: one.answer for split in ("train", "validation")
               for one in found[split] for split_clip in [opened[split].meta["clips"][one.clip]]}  # fmt: skip
    assert answers == {"roll_1_img": "yes", "roll_2_img": "no", "drop_1_img": "no", "drop_2_img": "yes"}


def test_labels_without_videos_are_named_at_once(scenarios, tmp_path):
    for name in ("roll_2_img", "bad_7-redyellow"):
        next(scenarios.rglob(f"{name}.mp4")).unlink()
    with pytest.raises(ConversionError, match="lacks the videos of 2 labels: roll_2, bad_7"):
        physion.convert(scenarios, tmp_path / "out")
    (scenarios / "PhysionTestMP4s/labels.csv").write_text("name,outcome\nroll_1,maybe\n")
    with pytest.raises(ConversionError, match="labels.csv has no rows with a name and, as 'ground truth outcome', True or False"):
        physion.convert(scenarios, tmp_path / "out")
    (scenarios / "PhysionTestMP4s/labels.csv").unlink()
    with pytest.raises(ConversionError, match="labels.csv is missing"):
        physion.convert(scenarios, tmp_path / "out")
