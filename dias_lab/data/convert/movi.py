"""MOVi-C, D and E (A and B alike) as TFDS files -> stores of clips. No real file was at hand: tests write their layout.

Source: Greff et al. 2022, arXiv:2203.03570; the features, challenges/movi/movi_c.py of google-research/kubric.

`video` and `segmentations` are lists of PNGs. Pixel value i + 1 is the instance i, 0 the background. An instance's boxes are
ragged: those of the frames `bbox_frames` in which it is visible, top, left, bottom and right as shares of the sides.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dias_lab.data import pictures, store
from dias_lab.data.convert import common, tfrecord
from dias_lab.data.convert.common import ConversionError, Split, some

NAME = re.compile(r"(movi_[a-f])-(train|validation|test)\.tfrecord-(\d{5})-of-(\d{5})")
LAYOUT = "movi_c-train.tfrecord-00000-of-00305 movi_c-validation.tfrecord-00000-of-00008 ..."
CATEGORIES = (  # of C, D and E, by number
    "Action Figures", "Bag", "Board Games", "Bottles and Cans and Cups", "Camera", "Car Seat", "Consumer Goods", "Hat",
    "Headphones", "Keyboard", "Legos", "Media Cases", "Mouse", "None", "Shoe", "Stuffed Toys", "Toys",
)  # fmt: skip
RAGGED = ("ragged_flat_values", "ragged_row_lengths_0")
BOXES, FRAMES = ([f"instances/{name}/{part}" for part in RAGGED] for name in ("bboxes", "bbox_frames"))
FEATURES = {"video", "segmentations", "metadata/video_name", "instances/category", *BOXES, *FRAMES}


class Frame(NamedTuple):
    place: tfrecord.Place
    clip: str
    number: int
    picture: bytes
    mask: bytes
    instances: int
    boxes: dict[int, list[float]]  # by segment, as in the file
    classes: dict[int, int]


def convert(
    root: Path, out: Path, validation: float = 0.05, splits: Literal["peers", "original"] = "peers", progress: bool = False
) -> dict[str, Path]:
    """Convert MOVi-C, D or E from its TFRecord files, without TensorFlow.

    Args:
        root: the folder with movi_c-train.tfrecord-00000-of-00305 and the like, or one above it
        validation: of peers: the share of the training clips on which checkpoints are chosen; 0: no such split
        splits: peers: results are reported on the files of validation, as papers do; original: each file as it is called

    Raises: ConversionError that names file and record for one that is cut short, damaged or no MOVi's; OSError.
    """
    root, out = Path(root), Path(out)
    found = [(path, *match.groups()) for path in sorted(root.rglob("movi_*")) if (match := NAME.fullmatch(path.name))]
    if len(names := {name for _, name, *_ in found}) != 1:
        several = f"{root} has several: {some(sorted(names))}" if names else f"{root} has no files of MOVi"
        raise ConversionError(f"{several}. {common.found(root, root / '-', LAYOUT)}")
    clips = {"train": {}, "validation": {}, "test": {}}
    for path, _, split, *_ in found:
        clips[split] |= {f"{path.name.removesuffix(path.name[-9:])} {one.number}": one for one in tfrecord.places(path)}
    if progress:
        for split in clips:
            have, whole = [path for path, _, one, *_ in found if one == split], {int(total) for *_, one, _, total in found if one == split}
            if have and len(have) < max(whole):
                print(f"attention: {len(have)} of the {max(whole)} files of {split} are there")
    if splits == "peers":
        parts = common.divide("movi", list(clips["train"]), common.share("validation", validation, "the training clips"))
        train, held = ({name: clips["train"][name] for name in part} for part in parts)
        clips = {"test": clips["validation"], "validation": held, "train": train}
    meta = {"source": f"{names.pop()}, https://github.com/google-research/kubric", "splits": splits}
    meta["classes"] = dict(enumerate(CATEGORIES)) if meta["source"][:6] in ("movi_c", "movi_d", "movi_e") else None
    written = {split: Split(list(ones.values()), _record, meta, _frames) for split, ones in clips.items() if ones}
    options = {"root": root, "out": out, "validation": validation, "splits": splits}
    return common.write(out, meta["source"][:6], written, options, tfrecord.WAY_OUT, progress)


def _frames(place: tfrecord.Place) -> Iterator[Frame]:
    """The frames of a record. Raises: ConversionError that names file and record."""
    features = tfrecord.example(place, FEATURES)
    try:
        video, masks, categories = (features[name] for name in ("video", "segmentations", "instances/category"))
        boxes = _boxes(features, len(categories), len(video))
        clip = f"{features.get('metadata/video_name', [b''])[0].decode(errors='replace')} of {place.path.name}"
        if not len(video) == len(masks) > 0:
            raise ValueError(f"its video has {len(video)} frames, its segmentations {len(masks)}")
    except KeyError as error:
        raise place.error(f"it has no feature {error}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise place.error(error) from error
    classes = {segment: int(category) for segment, category in enumerate(categories, start=1)}
    for number, (picture, mask) in enumerate(zip(video, masks)):
        yield Frame(place, clip, number, picture, mask, len(categories), boxes[number], classes)


def _boxes(features: dict, instances: int, frames: int) -> list[dict[int, list[float]]]:
    """For each frame the boxes by segment, top, left, bottom and right. Raises: ValueError if the features do not agree."""
    (values, lengths), (numbers, counts) = ([features[name] for name in names] for names in (BOXES, FRAMES))
    if not len(lengths) == len(counts) == instances or list(lengths) != list(counts) or len(values) != 4 * sum(lengths):
        wrong = f"{len(values) / 4:g} boxes in rows of {some(lengths)}, and frames in rows of {some(counts)}"
        raise ValueError(f"its {instances} instances have {wrong}")
    found, rows = [{} for _ in range(frames)], np.reshape(values, (-1, 4)).tolist()
    owners = np.repeat(np.arange(instances) + 1, lengths).tolist()
    for owner, number, row in zip(owners, numbers, rows, strict=True):
        if not (0 <= number < frames and 0 <= row[0] < row[2] <= 1 and 0 <= row[1] < row[3] <= 1):
            raise ValueError(f"instance {owner - 1} has the box {row} in frame {number}; boxes lie in 0..1, frames in 0..{frames - 1}")
        found[number][owner] = row
    return found


def _record(frame: Frame) -> store.Record:
    name = f"{frame.place.path}: record {frame.place.number}: frame {frame.number}"
    blob, (size, *_) = pictures.photo(frame.picture, name)
    labels = np.asarray(pictures.decoded(frame.mask, f"{name}'s mask", ("PNG",)))
    if labels.shape != size[::-1] or labels.max() > frame.instances:
        wrong = f"{name}: its mask is {labels.shape} with numbers up to {labels.max()}, its picture {size[::-1]}"
        raise ConversionError(f"{wrong} with {frame.instances} instances. {tfrecord.WAY_OUT}")
    common.refuse_too_many(frame.instances, name)
    seen = common.all_things(labels)
    scale = np.array([size[1], size[0], size[1], size[0]])
    boxes = {one: np.round(np.multiply(row, scale))[[1, 0, 3, 2]].astype(int).tolist() for one, row in frame.boxes.items()}
    more = {"boxes": {one: boxes[one] for one in seen if one in boxes}, "classes": {one: frame.classes[one] for one in seen}}
    return common.frame(blob, labels.astype(np.uint8), frame.clip, frame.number, frame.place.path.name, **more)
