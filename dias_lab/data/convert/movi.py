"""MOVi-A to F as TFDS files -> stores of clips. No real file was at hand: the tests write their layout.

Source: Greff et al. 2022, arXiv:2203.03570; the features, challenges/movi/movi_c.py of google-research/kubric.

`video` and `segmentations` are lists of PNGs. The pixel value i + 1 is instance i, 0 the background. An instance's boxes are
ragged: those of the frames `bbox_frames` in which it is seen; top, left, bottom and right as shares of the sides.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dias_lab.data import pictures, store
from dias_lab.data.convert import common, tfrecord
from dias_lab.data.convert.common import ConversionError, Split, some

NAME = re.compile(r"(movi_[a-f])-(train|validation|test)\.tfrecord-\d{5}-of-(\d{5})")
LAYOUT = "movi_c-train.tfrecord-00000-of-00305 movi_c-validation.tfrecord-00000-of-00008 ..."
CATEGORIES = (  # of C to F, by number
    "Action Figures", "Bag", "Board Games", "Bottles and Cans and Cups", "Camera", "Car Seat", "Consumer Goods", "Hat",
    "Headphones", "Keyboard", "Legos", "Media Cases", "Mouse", "None", "Shoe", "Stuffed Toys", "Toys",
)  # fmt: skip
BOXES = ["instances/bboxes/ragged_flat_values", "instances/bboxes/ragged_row_lengths_0"]
FRAMES = ["instances/bbox_frames/ragged_flat_values", "instances/bbox_frames/ragged_row_lengths_0"]
CLIP = ["video", "segmentations", "metadata/video_name"]
CATEGORY = "instances/category"  # not in A and B


class Frame(NamedTuple):
    place: tfrecord.Place
    clip: str
    number: int
    picture: bytes  # PNG
    mask: bytes  # PNG
    classes: list[int | None]  # of the instances
    boxes: dict[int, list[float]]  # by segment, as in the file


def convert(root: Path, out: Path, validation: float = 0.05, progress: bool = False) -> dict[str, Path]:
    """Convert MOVi from its TFRecord files, without TensorFlow. The files of validation are tested on, as in papers.

    Args:
        root: the folder with movi_c-train.tfrecord-00000-of-00305 and the like, or one above it

    Raises: ConversionError that names file and record for one that is cut short, damaged or no MOVi's; OSError.
    """
    root, out = Path(root), Path(out)
    found = [(path, *match.groups()) for path in sorted(root.rglob("movi_*")) if (match := NAME.fullmatch(path.name))]
    if len(names := {name for _, name, *_ in found}) != 1:
        several = f"{root} has several: {some(sorted(names))}" if names else f"{root} has no files of MOVi"
        raise ConversionError(f"{several}. {common.found(root, root / '-', LAYOUT)}")
    if twice := [name for name, count in Counter(path.name for path, *_ in found).items() if count > 1]:
        folders = some(sorted({path.parent for path, *_ in found}))
        raise ConversionError(f"{root} has {some(twice, 1)} more than once, as of two resolutions. Name one of {folders}")
    clips, [dataset] = {"train": {}, "validation": {}, "test": {}}, names
    for path, _, split, _ in found:
        clips[split] |= {f"{path.name} {place.number}": place for place in tfrecord.places(path)}
    for (split, total), count in Counter(one[2:] for one in found).items() if progress else ():
        if split == "test" or count < int(total):
            print(f"attention: {count} of the {int(total)} files of {split} are there" + ", and left out" * (split == "test"))
    named = {"test": list(clips["validation"])} | common.parted("movi", list(clips["train"]), validation, 0)
    meta = {"source": f"{dataset}, https://github.com/google-research/kubric"}
    meta["classes"] = dict(enumerate(CATEGORIES)) if dataset[-1] in "cdef" else None
    every = clips["train"] | clips["validation"]
    parts = {split: Split([every[name] for name in ones], _record, meta, _frames) for split, ones in named.items() if ones}
    return common.write(out, dataset, parts, {"root": root, "out": out, "validation": validation}, tfrecord.WAY_OUT, progress)


def _frames(place: tfrecord.Place) -> Iterator[Frame]:
    """The frames of a record. Raises: ConversionError that names file and record."""
    features = tfrecord.example(place, {*CLIP, *BOXES, *FRAMES, CATEGORY})
    try:
        video, masks, [clip] = (features[name] for name in CLIP)
        classes = features.get(CATEGORY, [None] * len(features[BOXES[1]]))
        boxes, clip = _boxes(features, len(classes), len(video)), f"{clip.decode()} of {place.path.name}"
        if not len(video) == len(masks) > 0:
            raise ValueError(f"its video has {len(video)} frames, its segmentations {len(masks)}")
    except KeyError as error:
        raise place.error(f"it has no feature {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise place.error(error) from error
    common.refuse_too_many(len(classes), f"{place.path}: record {place.number}")
    return (Frame(place, clip, number, video[number], masks[number], classes, boxes[number]) for number in range(len(video)))


def _boxes(features: dict, instances: int, frames: int) -> list[dict[int, list[float]]]:
    """For each frame the boxes by segment, top, left, bottom and right. Raises: ValueError if the features do not agree."""
    (values, lengths), (numbers, counts) = ([features[name] for name in names] for names in (BOXES, FRAMES))
    if not len(lengths) == len(counts) == instances or lengths != counts or len(values) != 4 * sum(lengths):
        wrong = f"{len(values) / 4:g} boxes in rows of {some(lengths)}, and frames in rows of {some(counts)}"
        raise ValueError(f"its {instances} instances have {wrong}")
    found, owners = [{} for _ in range(frames)], np.repeat(np.arange(instances) + 1, lengths).tolist()
    for owner, number, row in zip(owners, numbers, np.reshape(values, (-1, 4)).tolist(), strict=True):
        if not (0 <= number < frames and 0 <= row[0] < row[2] <= 1 and 0 <= row[1] < row[3] <= 1):
            raise ValueError(f"instance {owner - 1} has the box {row} in frame {number} of {frames}; boxes lie in 0..1")
        found[number][owner] = row
    return found


def _record(frame: Frame) -> store.Record:
    name, most = f"{frame.place.path}: record {frame.place.number}: frame {frame.number}", len(frame.classes)
    blob, header = pictures.photo(frame.picture, name)
    labels, (width, height) = np.asarray(pictures.decoded(frame.mask, f"{name}'s mask", ("PNG",))), header.size
    if labels.shape != (height, width) or labels.max() > most:
        wrong = f"its mask is {labels.shape} with numbers up to {labels.max()}, its picture {height, width} with {most} instances"
        raise ConversionError(f"{name}: {wrong}. {tfrecord.WAY_OUT}")
    seen, scale = common.all_things(labels), [height, width, height, width]
    # at half the size at which they were measured, boxes may end between two pixels
    rows = {one: np.multiply(row, scale).round(3).tolist() for one, row in frame.boxes.items() if one in seen}
    boxes = {one: [left, top, right, bottom] for one, (top, left, bottom, right) in rows.items()}
    classes = {one: frame.classes[one - 1] for one in seen}
    more = {"boxes": boxes} | ({"classes": classes} if None not in classes.values() else {})
    return common.frame(blob, labels.astype(np.uint8), frame.clip, frame.number, frame.place.path.name, **more)
