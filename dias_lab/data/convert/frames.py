"""Folders of frames, with or without masks -> stores of clips. And any folder or video file as one clip, to look at.

A folder is a clip, and its frames are sorted by the numbers in their names: frame2 before frame10. `frame` in the store is
the last number of a name; the frame's place, where these do not rise, or names are times: 0.25, 0.5.

Masks are read as in `folder`, but a number or colour is the same segment in all frames of a clip.

Axes: F frames, R pixels of a square.
"""

import itertools
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from dias_lab.data import pictures, store
from dias_lab.data.convert import common, folder, video
from dias_lab.data.convert.common import ConversionError, Split, in_order, some
from dias_lab.data.pictures import SUFFIXES
from dias_lab.trace import VOID


class Clip(NamedTuple):
    name: str
    numbers: list[int]
    files: list[Path]
    masks: list[Path | None]


def convert(
    root: Path, out: Path, masks: Path | None = None, validation: float = 0.1, test: float = 0.1, progress: bool = False
) -> dict[str, Path]:
    """Convert folders of frames, one clip a folder, with or without masks.

    Args:
        root: a folder of frames, or of folders with frames
        masks: a folder with the same folders and names, whose pictures say the segment of each pixel

    Raises: ConversionError for files that cannot be used and clips whose frames differ in size, all at once; OSError.
    """
    root, out, masks = Path(root), Path(out), masks and Path(masks)
    found = clips(root, masks, out)
    options = {"root": root, "out": out, "masks": masks, "validation": validation, "test": test}
    parts = common.parted("frames", list(found), validation, test)
    return write(out, "frames", found, parts, {"source": str(root)}, options, progress)


def write(
    out: Path, dataset: str, found: dict[str, Clip], parts: dict[str, list[str]], meta: dict, options: dict, progress: bool
) -> dict[str, Path]:
    """Write the clips of each split, by their names."""
    root, chosen = Path(options["root"]), [found[name] for names in parts.values() for name in names]
    common.refuse([line for lines in in_order(_problems, chosen) for line in lines], folder.MEND)
    binary = folder.only_0_and_255(mask for clip in chosen for mask in clip.masks if mask)
    meta["number_255"] = "object" if binary else "void"
    if progress and binary:
        print("the masks have no numbers but 0 and 255: 255 is taken as one object a clip, not as void")
    for clip in chosen if progress else ():
        step = min((after - before for before, after in itertools.pairwise(clip.numbers)), default=1)
        first, last = clip.numbers[0], clip.numbers[-1]
        few = (last - first) // step < 10 * len(clip.files) + 100  # where they are times, most are missing
        if few and (lost := sorted({*range(first, last, step)} - {*clip.numbers})):
            print(f"{clip.name} lacks the frames {some(lost)}; the others stay as they are")

    def frames(clip: Clip) -> Iterator[tuple]:
        found = in_order(folder.numbers_of, filter(None, clip.masks))
        numbers = set().union(*(ones - {VOID} if eight_bits and not binary else ones for ones, eight_bits in found))
        return ((clip.name, *frame, numbers) for frame in zip(clip.numbers, clip.files, clip.masks))

    def record(frame: tuple) -> store.Record:
        clip, number, file, mask, numbers = frame
        labels = None if mask is None else folder.labels_of(mask, binary, numbers)
        return common.frame(pictures.photo(file).blob, labels, clip, number, file.relative_to(root).as_posix())

    splits = {split: Split([found[name] for name in names], record, meta, frames) for split, names in parts.items()}
    return common.write(out, dataset, splits, options, folder.MEND, progress)


def clips(root: Path, masks: Path | None, out: Path) -> dict[str, Clip]:
    """The clips in a folder by name, the path from there; the folder itself is one, if there are pictures in it.

    The masks and what a conversion wrote, `out`, may lie in it too, and are none.
    """
    found, others = {}, {path.resolve() for path in (masks, out) if path}
    for parent in _with_pictures(root, others):
        place = parent.relative_to(root)
        name = place.as_posix() if place.name else root.resolve().name
        found[name] = _clip(name, parent, masks and masks / place)
    if not found:
        raise ConversionError(f"{root} has no frames ({' '.join(SUFFIXES)}). {common.found(root, root / '-', 'NAME/00000.jpg')}")
    if masks and not any(mask for clip in found.values() for mask in clip.masks):
        wrong = f"{masks} has no mask for any clip. {common.found(masks, masks / '-', f'{next(iter(found))}/NAME.png')}"
        raise ConversionError(f"{wrong}. Masks have the folders and names of their frames")
    if lost := [path for path in _with_pictures(masks) if not (root / path.relative_to(masks)).is_dir()] if masks else []:
        raise ConversionError(f"{root} has no frames for the masks in {some(lost)}. Rename or remove these folders")
    return dict(sorted(found.items(), key=lambda item: common.natural(item[0])))


def _with_pictures(root: Path, others: Collection[Path] = ()) -> Iterator[Path]:
    """The folders in which pictures lie, but for hidden ones, `others`, and links to a folder above."""
    for parent, inside, names in os.walk(root, followlinks=True):
        above = {Path(parent).resolve(), *Path(parent).resolve().parents, *others}
        inside[:] = [name for name in inside if name[0] != "." and Path(parent, name).resolve() not in above]
        if any(name[0] != "." and Path(name).suffix.lower() in SUFFIXES for name in names):
            yield Path(parent)


def _clip(name: str, parent: Path, masks: Path | None = None) -> Clip:
    files = folder.files_in(parent, "frames")[0]
    drawn = folder.files_in(masks, "masks")[0] if masks and masks.is_dir() and any(map(Path.is_file, masks.iterdir())) else {}
    if strange := drawn.keys() - files.keys():
        raise ConversionError(f"{masks}: no frame in {parent} has the names {some(sorted(strange))}. Rename or remove them")
    # decimals are times, such as 0.25 and 0.5; but where one ends in 0, as in 1.9 and 1.10, what follows the point is counted
    times = all(re.fullmatch(r"\d+\.(0|\d*[1-9])", stem) for stem in files)
    stems = sorted(files, key=float if times else common.natural)
    numbers = [int((re.findall(r"\d+", stem) or [-1])[-1]) for stem in stems]
    if times or -1 in numbers or any(before >= after for before, after in itertools.pairwise(numbers)):
        numbers = list(range(len(stems)))
    return Clip(name, numbers, [files[stem] for stem in stems], [drawn.get(stem) for stem in stems])


def _problems(clip: Clip) -> list[str]:
    """What the headers of a clip's files say against them."""
    if problems := list(filter(None, map(folder.problem_of, clip.files, clip.masks))):
        return problems
    names = {}
    for file in clip.files:
        names.setdefault(" x ".join(map(str, pictures.header(file).size)), []).append(file.name)
    told = ", ".join(f"{len(ones)} of {size} ({ones[0]})" for size, ones in sorted(names.items(), key=lambda one: -len(one[1])))
    return [f"the frames of {clip.name} differ in size (width x height): {told}"] if len(names) > 1 else []


def read_clip(path: str | Path, size: int, limit: int | None = None):
    """A folder of frames or a video file as one clip: centre squares, uint8 tensor [F 3 R R], and the frames' names.

    `size` is R, `limit` takes only the first frames. Raises: ValueError if there are none, or for one that cannot be used.
    """
    import torch  # here, for commands that need none import this file

    from dias_lab.data.dataset import as_image, square

    path, images, names = Path(path), [], []
    name = path.resolve().name
    if path.is_dir():
        clip = _clip(name, path)
        found = ((number, pictures.rgb(file)) for number, file in zip(clip.numbers, clip.files))
    else:
        found = ((frame.number, frame.picture) for frame in video.frames(path))
    for number, picture in itertools.islice(found, limit):
        images.append(square(as_image(picture)[None], None, size)[0])
        names.append(f"{name} {number}")
    return torch.cat(images), names
