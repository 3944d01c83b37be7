"""DAVIS 2016 and 2017, or what has their layout -> stores of clips.

Sources: Perazzi et al. 2016, doi 10.1109/CVPR.2016.85; Pont-Tuset et al. 2017, arXiv:1704.00675; and the layout of the
archives. A mask of 2016 has 0 and 255: one object. One of 2017 is a palette PNG with a number an object.
"""

from pathlib import Path

from dias_lab.data.convert import common, frames
from dias_lab.data.convert.common import ConversionError, some

LAYOUT = "JPEGImages/480p/NAME/00000.jpg Annotations/480p/NAME/00000.png ImageSets/2017/{train,val}.txt"


def convert(
    root: Path, out: Path, validation: float = 0.1, test: float = 0.1, progress: bool = False
) -> dict[str, Path]:
    """Convert DAVIS 2016 or 2017. Where its lists are, those of 2017 first, val.txt is tested on, and --test does nothing.

    Args:
        root: the folder with JPEGImages/ and, if they are there, Annotations/ and ImageSets/

    Raises: ConversionError if files are missing, damaged or contradict each other; OSError.
    """
    root, out = Path(root), Path(out)
    inside = [[root / name / size for size in ("480p", "1080p", "Full-Resolution", "")] for name in ("JPEGImages", "Annotations")]
    images, masks = (next((path for path in paths if path.is_dir()), None) for paths in inside)
    if images is None:
        raise ConversionError(f"{root / 'JPEGImages'} is missing. {common.found(root, root / 'JPEGImages', LAYOUT)}")
    found, meta = frames.clips(images, masks, out), {"source": f"DAVIS, {root}, https://davischallenge.org"}
    parts = common.parted("davis", list(found), validation, test)
    lists = [root / "ImageSets" / year / "train.txt" for year in ("2017", "2016", "480p")]
    if path := next((path for path in lists if path.exists()), None):
        train, tested = _names(path), _names(path.with_name("val.txt"))
        if lost := sorted({*train, *tested} - found.keys()):
            raise ConversionError(f"{images} lacks {some(lost)}, which {path.parent} names. Unpack the archive again")
        parts, meta["lists"] = {"test": tested} | common.parted("davis", train, validation, 0), path.parent.name
        if progress and (left := found.keys() - {*train, *tested}):
            print(f"left out, for they are in no list of {path.parent}: {some(sorted(left))}")
    options = {"root": root, "out": out, "validation": validation, "test": test}
    return frames.write(out, "davis", found, parts, meta, options, progress)


def _names(path: Path) -> list[str]:
    """The sequences of a list: their names, or as in 2016 the paths of all frames."""
    words = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(dict.fromkeys(Path(word).parent.name if "/" in word else word for word in words))
