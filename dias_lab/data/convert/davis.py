"""DAVIS 2016 and 2017, or what has their layout -> stores of clips.

Sources: Perazzi et al. 2016, doi 10.1109/CVPR.2016.85; Pont-Tuset et al. 2017, arXiv:1704.00675; and the layout of the
archives. A mask of 2016 has 0 and 255: one object. One of 2017 is a palette PNG with a number an object.
"""

from pathlib import Path
from typing import Literal

from dias_lab.data.convert import common, frames
from dias_lab.data.convert.common import ConversionError, some

LAYOUT = "JPEGImages/480p/NAME/00000.jpg Annotations/480p/NAME/00000.png ImageSets/2017/{train,val}.txt"


def convert(
    root: Path, out: Path, year: Literal["2016", "2017"] | None = None, validation: float = 0.1, test: float = 0.1,
    progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert DAVIS 2016 or 2017.

    Where there are its lists, val.txt is tested on, and `validation` is a share of train.txt. Otherwise the sequences are
    divided by the shares.

    Args:
        root: the folder with JPEGImages/ and, unless there are no masks, Annotations/ and ImageSets/
        year: whose lists and masks; None: 2017, or what there is
        validation: the share of the sequences to train on, on which checkpoints are chosen; 0: no such split
        test: the share that results are reported on where there are no lists

    Raises: ConversionError if files are missing, damaged or contradict each other; OSError.
    """
    root, out = Path(root), Path(out)
    images, masks = (_resolution(root / name) for name in ("JPEGImages", "Annotations"))
    if images is None:
        raise ConversionError(f"{root / 'JPEGImages'} is missing. {common.found(root, root / 'JPEGImages', LAYOUT)}")
    found = frames.clips(images, masks)
    lists = [root / "ImageSets" / name for name in ((year,) if year else ("2017", "2016", "480p"))]
    lists = next((folder for folder in lists if (folder / "train.txt").exists()), None)
    if year and not lists:
        raise ConversionError(f"the lists of {year} are missing. {common.found(root, root / 'ImageSets' / year, LAYOUT)}")
    parts = common.parted("davis", list(found), validation, test)
    if lists:
        train, tested = (_names(lists / f"{name}.txt") for name in ("train", "val"))
        if lost := sorted({*train, *tested} - found.keys()):
            raise ConversionError(f"{images} lacks {some(lost)}, which {lists} names. Unpack the archive again")
        parts = {"test": tested} | common.parted("davis", train, validation, 0)
        if progress and (left := found.keys() - {*train, *tested}):
            print(f"left out, for they are in no list of {lists}: {some(sorted(left))}")
    options = {"root": root, "out": out, "year": year, "validation": validation, "test": test}
    meta = {"source": f"DAVIS, {root}, https://davischallenge.org", "lists": lists and lists.name}
    return frames.write(out, "davis", found, parts, meta, options, progress)


def _resolution(folder: Path) -> Path | None:
    """The folder of the sequences: 480p, if there are several resolutions."""
    inside = [folder / name for name in ("480p", "1080p", "Full-Resolution", "")]
    return next((path for path in inside if path.is_dir()), None)


def _names(path: Path) -> list[str]:
    """The sequences of a list: their names, or as in 2016 the paths of all frames."""
    if not path.exists():
        return []
    words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(dict.fromkeys(Path(word).parent.name if "/" in word else word for word in words))
