"""CLEVRER in its original layout -> stores of clips, and the questions about them.

Sources: Yi et al. 2020, arXiv:1910.01442, http://clevrer.csail.mit.edu; layout and broken video as pairlab/SlotFormer has them.
No real file was at hand: the tests write their layout.

The answers of its test split are hidden: as in papers, what it calls validation is tested on, and a share of train validates.
Segments are a network's proposals, not the truth: an object is what has one colour, material and shape, which no two share.
Pictures are pressed into squares, as in SlotFormer: the centre square would cut off a third of the table.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from dias_lab.data import pictures, store
from dias_lab.data import questions as asking
from dias_lab.data.convert import common, tables, video
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.data.questions import Question
from dias_lab.files import read_json, read_object

LAYOUT = "videos/{train,validation}/video_00000-01000/video_00000.mp4 questions/{train,validation}.json derender_proposals/"
MEND = "Fetch the file again"
BROKEN = ("video_10800",)  # its annotation is
COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
NAMES = [" ".join(words) for words in itertools.product(COLOURS, ("metal", "rubber"), ("cube", "cylinder", "sphere"))]
RIGHT = {"correct": True, "wrong": False}
WORDS = re.compile(r"[a-z0-9]+").findall


class Clip(NamedTuple):
    name: str
    file: Path
    proposals: Path | None
    questions: list[dict]  # as in the file


def convert(
    root: Path, out: Path, stride: int = 2, frames: int = 0, size: int = 128, validation: float = 0.05, progress: bool = False
) -> dict[str, Path]:
    """Convert CLEVRER, videos and questions. What it calls validation is tested on, as in papers.

    Args:
        root: the folder with videos/, questions/ and, if they are there, derender_proposals/
        stride: 2 takes every second of the 128 frames
        frames: how many of these at most; 0 takes all
        size: side of the stored pictures in pixels

    Raises: ConversionError for videos that are missing, all at once, and files that are damaged; OSError.
    """
    root, out = Path(root), Path(out)
    check(stride, frames, size)
    videos = {path.stem: path for path in sorted((root / "videos").rglob("video_*.mp4"))}
    proposals = {f"video_{path.stem[-5:]}": path for path in sorted((root / "derender_proposals").glob("*.json"))}
    train, tested = (_clips(root, names, videos, proposals) for names in (("train",), ("validation", "val")))
    if lost := [clip.name for clip in (train | tested).values() if clip.file is None]:
        wrong = f"{root / 'videos'} lacks {len(lost)} videos that there are questions about: {some(lost)}"
        raise ConversionError(f"{wrong}. {common.found(root, root / 'videos' / '-', LAYOUT)}")
    bare = [clip.name for clip in (train | tested).values() if clip.proposals is None]
    told = {"for the annotation is broken": set(BROKEN) & set(videos), "but for their pictures, for there are no proposals": bare}
    for why, ones in told.items() if progress else ():
        print(f"left out, {why}: {some(sorted(ones)) or 'none'}")
    names = {"test": list(tested)} | common.parted("clevrer", list(train), validation, 0)
    parts = {split: [(train | tested)[name] for name in ones] for split, ones in names.items()}
    meta = {"source": "CLEVRER, http://clevrer.csail.mit.edu", "classes": dict(enumerate(NAMES, start=1))}
    cut, record = functools.partial(_frames, stride=stride, frames=frames), functools.partial(_record, size=size)
    splits = {split: Split(clips, record, meta, cut) for split, clips in parts.items()}
    options = {"root": root, "out": out, "stride": stride, "frames": frames, "size": size, "validation": validation}
    asked = {split: list(itertools.chain(*itertools.starmap(_questions, enumerate(clips)))) for split, clips in parts.items()}
    paths = common.write(out, "clevrer", splits, options, MEND, progress)
    write_questions(paths, asked, meta["source"])
    return paths


def check(stride: int, frames: int, size: int) -> None:
    """Raises: ConversionError unless the options can be."""
    for name, value, least in (("stride", stride, 1), ("frames", frames, 0), ("size", size, 1)):
        if value < least:
            raise ConversionError(f"{name}={value}; give a number from {least}")


def write_questions(paths: dict[str, Path], asked: dict[str, list[Question]], source: str) -> None:
    """The questions of each split, beside its store."""
    for split, path in paths.items():
        opened = store.open(path)
        asking.write(asking.beside(opened), opened, asked[split], {"source": source, "count": len(asked[split])})


def _clips(root: Path, names: tuple[str, ...], videos: dict, proposals: dict) -> dict[str, Clip]:
    """The clips that a file asks about, but for the broken one. Raises: ConversionError for what is no such file."""
    paths = [root / "questions" / f"{name}.json" for name in names]
    path = next(filter(Path.exists, paths), paths[0])
    if not path.exists():
        raise ConversionError(f"{path} is missing. {common.found(root, path, LAYOUT)}")
    try:
        scenes = [(Path(scene["video_filename"]).stem, scene["questions"]) for scene in read_json(path)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} is no list of scenes with video_filename and questions ({error}). {MEND}") from error
    return {name: Clip(name, videos.get(name), proposals.get(name), asked) for name, asked in scenes if name not in BROKEN}


def _questions(number: int, clip: Clip) -> Iterator[Question]:
    for one in clip.questions:
        try:
            choices = one.get("choices", [])
            options = [WORDS(choice["choice"].lower()) for choice in choices]
            answer = [RIGHT[choice["answer"]] for choice in choices] or one["answer"]
            yield Question(number, one["question_type"], WORDS(one["question"].lower()), options, answer, {})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConversionError(f"a question about {clip.name} is not as CLEVRER has them ({error!r}): {one!r:.200}") from error


def _frames(clip: Clip, stride: int, frames: int) -> Iterator[tuple]:
    """The clip, each frame, its proposals (None without), and the names of all objects of the clip: segment k is the k-th."""
    taken, objects, names = list(itertools.islice(video.frames(clip.file, stride), frames or None)), {}, set()
    if clip.proposals:
        try:
            objects = {one["frame_index"]: one["objects"] for one in read_object(clip.proposals)["frames"]}
            names = {_name(one) for frame in taken for one in objects[frame.number]}
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError(f"{clip.proposals} has no objects for each frame of {clip.name} ({error!r}). {MEND}") from error
        if strange := names - set(NAMES):
            raise ConversionError(f"{clip.proposals} has objects that CLEVRER has not: {some(sorted(strange))}. {MEND}")
    return ((clip, frame, objects.get(frame.number), sorted(names)) for frame in taken)


def _name(one: dict) -> str:
    return f"{one['color']} {one['material']} {one['shape']}"


def _record(item: tuple, size: int) -> store.Record:
    clip, frame, objects, names = item
    (width, height), labels, more = frame.picture.size, None, {}
    if objects is not None:
        labels = np.zeros((height, width), np.uint8)
        surest = {_name(one): one["mask"] for one in sorted(objects, key=lambda one: one.get("score", 0))}
        for name, mask in surest.items():
            if problem := tables.mask_problem(mask, height, width):
                raise ConversionError(f"{clip.proposals}: frame {frame.number}: the {name}: {problem}. {MEND}")
            labels[run_lengths.decode(mask).astype(bool)] = names.index(name) + 1
        labels = np.asarray(Image.fromarray(labels).resize((size, size), Image.Resampling.NEAREST))
        more["classes"] = {one: NAMES.index(names[one - 1]) + 1 for one in common.all_things(labels)}
    image = pictures.png(frame.picture.resize((size, size), Image.Resampling.BILINEAR), compress_level=1)
    return common.frame(image, labels, clip.name, frame.number, clip.file.name, **more)
