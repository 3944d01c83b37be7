"""ClevrTex in its original layout -> stores.

Sources: Karazija et al. 2021, arXiv:2111.10265; the layout and the "reference" splits, Genera1Z/DIAS v4; the "usual"
splits, clevrtex_eval.py of karazijal/clevrtex-generation.

Of a scene's six PNGs two are used: the picture, and `_flat`, where every object has a colour of its own and the
background is black. Objects are numbered from 1 in the ascending order of R + 256 G + 65536 B.
"""

import re
from pathlib import Path
from typing import Literal

from dias_lab.data import pictures, store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split, some

FLAT = "_flat.png"
LAYOUT = "clevrtex_full/<number>/*.png clevrtex_outd/<number>/*.png"
WAY_OUT = "Unpack the original archive again"


def convert(
    root: Path, out: Path, validation: float = 0.05, splits: Literal["reference", "usual"] = "reference", progress: bool = False
) -> dict[str, Path]:
    """Convert ClevrTex.

    Args:
        root: the folder with clevrtex_full/ and clevrtex_outd/, whose shapes and textures are others
        splits: reference: train on full, test on outd; usual: full alone, in the order of its numbers: the first tenth for
            test, the next for validation, the rest for train

    Of reference, a scene's name alone decides whether it is in `validation`.
    Raises: ConversionError if files are missing, damaged or not ClevrTex's; OSError if `out` cannot be written.
    """
    root, out = Path(root), Path(out)
    common.share("validation", validation, "clevrtex_full")
    common.choose("splits", splits, ("reference", "usual"))
    full = _scenes(root, "clevrtex_full")
    if splits == "reference":
        test, by_name = _scenes(root, "clevrtex_outd"), {path.name: path for path in full}
        names = common.divide("clevrtex", list(by_name), validation)
        train, held = ([by_name[name] for name in part] for part in names)
    else:
        tenth, fifth = int(0.1 * len(full)), int(0.2 * len(full))  # rounded down, as in clevrtex_eval.py
        test, held, train = full[:tenth], full[tenth:fifth], full[fifth:]
    parts = {}
    for split, scenes in {"test": test, "validation": held, "train": train}.items():
        folder = "clevrtex_outd" if (splits, split) == ("reference", "test") else "clevrtex_full"
        source = f"ClevrTex, {folder}, https://www.robots.ox.ac.uk/~vgg/data/clevrtex"
        parts[split] = Split(scenes, _record, {"source": source, "splits": splits})
    options = {"root": root, "out": out, "validation": validation, "splits": splits}
    return common.write(out, "clevrtex", parts, options, WAY_OUT, progress)


def _scenes(root: Path, name: str) -> list[Path]:
    """The pictures, in the order of their numbers."""
    folder = root / name
    if not folder.is_dir():
        raise ConversionError(f"{folder} is missing. {common.found(root, folder, LAYOUT)}")
    names = {path for path in folder.glob("*/*.png") if not path.name.startswith(".")}
    flats = {path for path in names if path.name.endswith(FLAT)}
    scenes = [path.with_name(path.name.removesuffix(FLAT) + ".png") for path in flats]
    scenes.sort(key=lambda path: common.natural(path.name))  # folders "2" and "10" must not be sorted as text
    if not scenes:
        found = common.found(root, folder / "0", LAYOUT)
        raise ConversionError(f"{folder} holds no scenes (<number>/*{FLAT}). {found}")
    if lost := [path.relative_to(root) for path in scenes if path not in names]:
        raise ConversionError(f"{root} lacks the pictures {some(lost)}, whose masks are there. {WAY_OUT}")
    bare = [path for path in names if re.fullmatch(r"CLEVRTEX_\w+_\d{6}\.png", path.name) and _flat(path) not in flats]
    if bare:
        names = some(sorted(path.relative_to(root) for path in bare))
        raise ConversionError(f"{root} lacks the masks of {names}. {WAY_OUT}")
    if len({path.name for path in scenes}) < len(scenes):
        raise ConversionError(f"{folder} has scenes of the same name in several folders. {WAY_OUT}")
    return scenes


def _flat(path: Path) -> Path:
    return path.with_name(path.stem + FLAT)


def _record(path: Path) -> store.Record:
    mask = _flat(path)
    labels = common.numbered(common.colours(mask), mask)
    source = {"id": path.stem, "file": "/".join(path.parts[-3:])}
    blob, header = pictures.photo(path)
    labels = pictures.turned(labels, header.orientation)
    return store.Record(blob, labels, {"source": source, "things": common.all_things(labels)})
