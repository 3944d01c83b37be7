"""A folder of your own images, with or without masks -> stores.

Images are what `pictures` reads. The store keeps the bytes of a JPEG or PNG that every reader decodes to the same RGB
picture; of all others a PNG of what a viewer shows.

A mask belongs to the image with the same name but for its ending, and has its size as a viewer shows it, EXIF
orientation included. It says which segment a pixel is in:
  palette or 8-bit grey   by its number: 0 background, 255 void; but where no mask has other numbers, 255 is one object
  16-bit grey             by its number: 0 background; there is no void
  RGB colours             by its colour: black or transparent background; there is no void
Segments are renumbered 1, 2, ... in the ascending order of their numbers, or of R + 256 G + 65536 B.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dias_lab.data import pictures, store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.data.pictures import LOSSLESS, SUFFIXES, PictureError
from dias_lab.trace import BACKGROUND, VOID

SPLIT_FOLDERS = {"train": ("train",), "validation": ("valid", "val", "validation"), "test": ("test",)}
SHARE = 0.1  # held out for validation and for test, unless the user says how much
MEND = "Mend the file or take it out"


def convert(
    root: Path, out: Path, masks: Path | None = None, validation: float | None = None, test: float | None = None,
    progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert your own images, with or without masks.

    An image without mask is stored without segments. An image's name alone decides which split it is in.

    Args:
        root: the folder of the images, or of train/ val/ test/ with them
        masks: a folder of masks, in the same order or for all splits; each says the segment of each pixel, and is named like its
            image but for the ending
        validation: the share of the images on which checkpoints are chosen; None: a tenth, or what val/ holds
        test: the share of the images that results are reported on; None: a tenth, or what test/ holds if there is a train/

    Raises: ConversionError naming the file that cannot be used; OSError if `out` cannot be written.
    """
    root, out, masks = Path(root), Path(out), masks and Path(masks)
    if masks and masks.resolve() == root.resolve():
        raise ConversionError(f"{root} cannot hold both images and masks; put the masks into a folder of their own")
    folders = _split_folders(root) or {"train": root}
    if "train" not in folders:
        there = some(path.name for path in folders.values())
        raise ConversionError(f"{root} has {there}, but no train. Add it or rename them")
    if out.resolve() in (folder.resolve() for folder in folders.values()):
        raise ConversionError(f"{out} holds the images, and would hold the contact sheet of the stores. Choose another folder")
    shares = {"validation": validation, "test": test}
    for split, value in shares.items():
        if value is not None and split in folders:
            raise ConversionError(f"{split}={value}, but {folders[split]} is there. Leave out the share or the folder")
        if value is None:
            value = 0 if split in folders or (split == "test" and folders["train"] != root) else SHARE
        shares[split] = common.share(split, value, "the images")
    images, others = {}, {}
    for split, folder in folders.items():
        images[split], others[split] = files_in(folder, "images")
        if progress and others[split]:
            print(f"left out of {folder}, for they end in none of {' '.join(SUFFIXES)}: {some(others[split])}")
    pairs = _pairs(images, masks) if masks else {}
    files = [path for of_split in images.values() for path in of_split.values()]
    common.refuse([problem for path in files if (problem := problem_of(path, pairs.get(path)))], MEND)
    binary, voided = only_0_and_255(mask for mask in pairs.values() if mask), []
    if progress and binary:
        print(f"the masks in {masks} have no numbers but 0 and 255: 255 is taken as one object a mask, not as void")
    parts = {}
    for split, files in _split(images, shares).items():
        meta = {
            "source": str(root),
            "images_without_masks": sum(pairs.get(path) is None for path in files),
            "files_left_out": others.get(split, [])[:100],
            "number_255": "object" if binary else "void",
        }
        parts[split] = Split(files, lambda path: _record(root, path, pairs.get(path), binary, voided), meta)
    options = {"root": root, "out": out, "masks": masks, "validation": validation, "test": test}
    paths = common.write(out, "folder", parts, options, MEND, progress)
    if progress and voided:
        print(f"attention: the number 255 is void in {len(voided)} masks of {masks}: {some(sorted(voided))}")
    return paths


# Which files


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted; hidden files do not count."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        way_out = "Name a folder that is there and that you may read"
        raise ConversionError(f"{folder} cannot be listed ({error.strerror}). {way_out}") from error


def _split_folders(root: Path) -> dict[str, Path]:
    """By split the folder in `root` that is named for it. Raises: ConversionError if there are two."""
    inside = {path.name.lower(): path for path in _listed(root) if path.is_dir()}
    by_split = {split: [inside[name] for name in names if name in inside] for split, names in SPLIT_FOLDERS.items()}
    if both := next((folders for folders in by_split.values() if len(folders) > 1), None):
        raise ConversionError(f"{root} has both {' and '.join(path.name for path in both)}. Rename one")
    return {split: folders[0] for split, folders in by_split.items() if folders}


def _stem(path: Path) -> str:
    """The name without its ending, accents composed: a Mac writes them as characters of their own."""
    return unicodedata.normalize("NFC", path.stem)


def files_in(folder: Path, what: str) -> tuple[dict[str, Path], list[str]]:
    """The pictures in a folder by stem, and the names of all other files."""
    files, others = {}, []
    for path in _listed(folder):
        if path.suffix.lower() not in SUFFIXES or path.is_dir():
            others.append(path.name + "/" * path.is_dir())
        elif (stem := _stem(path)) in files:
            raise ConversionError(f"{folder} has both {files[stem].name} and {path.name}; rename or remove one")
        else:
            files[stem] = path
    if not files:
        there = some(others, 12) or "nothing"
        raise ConversionError(f"{folder} holds no {what} ({' '.join(SUFFIXES)}); found: {there}")
    return files, others


def _pairs(images: dict[str, dict[str, Path]], masks: Path) -> dict[Path, Path | None]:
    """Each image's mask. Masks without image are refused: their names probably differ by more than the ending."""
    own = {split: folder for split, folder in _split_folders(masks).items() if split in images}
    if own:
        by_split = {split: files_in(own[split], "masks")[0] if split in own else {} for split in images}
    else:
        by_split = dict.fromkeys(images, files_in(masks, "masks")[0])
        stems = Counter(stem for files in images.values() for stem in files)
        if twice := sorted(stem for stem, count in stems.items() if count > 1 and stem in by_split["train"]):
            wrong = f"{some(twice)} are in several splits, so their masks in {masks} are ambiguous"
            raise ConversionError(f"{wrong}. Give the masks the same folders train/ val/ test/")
    pairs = {path: by_split[split].get(stem) for split, files in images.items() for stem, path in files.items()}
    used, found = set(pairs.values()), dict.fromkeys(mask for files in by_split.values() for mask in files.values())
    if unused := [mask.name for mask in found if mask not in used]:
        bare = sorted(path.name for path, mask in pairs.items() if mask is None)
        wrong = f"{masks}: no image has the name of {some(unused)}; images without mask: {some(bare) or 'none'}"
        raise ConversionError(f"{wrong}. A mask is named like its image, but for the ending")
    return pairs


def _split(images: dict[str, dict[str, Path]], shares: dict[str, float]) -> dict[str, list[Path]]:
    """The files of each split. The test share is drawn first, so that another validation share does not move it."""
    files, rest, splits = images["train"], list(images["train"]), {}
    for split in ("test", "validation"):
        if split in images:
            splits[split] = list(images[split].values())
        elif shares[split]:
            rest, held = common.divide(f"folder {split}", rest, shares[split])
            splits[split] = [files[stem] for stem in sorted(held)]
    return splits | {"train": [files[stem] for stem in rest]}


# One image


def problem_of(path: Path, mask: Path | None) -> str | None:
    """What the headers of an image and its mask say against them."""
    try:
        image = pictures.header(path)
        size = pictures.header(mask, formats=LOSSLESS).size if mask else image.size
    except PictureError as error:
        return str(error)
    if size == image.size:
        return None
    hint = "Give the mask the image's size, without smoothing"
    if size == image.file_size:
        hint = "It fits the picture before EXIF turns it, as viewers do. Turn the mask or remove that EXIF field"
    return f"{mask} has {size} pixels (width, height), its image {path} has {image.size}. {hint}"


def _record(root: Path, path: Path, mask: Path | None, binary: bool, voided: list[str]) -> store.Record:
    blob, _ = pictures.photo(path)
    info = {"source": {"id": _stem(path), "file": path.relative_to(root).as_posix()}}
    if mask is None:
        return store.Record(blob, None, info)
    labels = labels_of(mask, binary)
    if (labels == VOID).any():
        voided.append(mask.name)
    return store.Record(blob, labels, {**info, "things": common.all_things(labels)})


def values_of(path: Path) -> tuple[np.ndarray, bool]:
    """A mask's numbers or colours [H W], as a viewer shows it, and whether they are numbers of 8 bits."""
    picture = pictures.decoded(path, formats=LOSSLESS)
    mode, orientation = picture.mode, pictures.header(path).orientation
    if mode in ("RGB", "RGBA"):
        opaque = np.asarray(picture.getchannel("A")) > 0 if mode == "RGBA" else True
        values = np.where(opaque, common.packed_colours(picture), 0)
    elif mode in ("1", "L", "P") or mode.startswith("I"):
        values = np.asarray(picture).astype(np.int32)
        if (low := int(values.min())) < 0:
            raise PictureError(f"{path} has the number {low}; masks have numbers from 0, and void is 255 with 8 bits")
    else:
        raise PictureError(f"{path} has the mode {mode}; masks are palette, 8 or 16-bit grey, or RGB pictures")
    return pictures.turned(values, orientation), mode in ("L", "P")


def numbers_of(path: Path) -> tuple[set[int], bool]:
    """The numbers or colours in a mask, and whether they are of 8 bits. Of one that will be refused there are none."""
    try:
        values, eight_bits = values_of(path)
    except PictureError:
        return set(), False
    return set(common.ranked(values)[0]), eight_bits


def only_0_and_255(masks: Iterable[Path]) -> bool:
    """Whether there are masks of 8-bit numbers, and 255 is the only one besides 0 in all of them."""
    found = set()
    for numbers, eight_bits in map(numbers_of, masks):
        found |= numbers if eight_bits else set()
        if found - {BACKGROUND, VOID}:
            return False
    return VOID in found


def labels_of(path: Path, binary: bool, among: Iterable[int] = ()) -> np.ndarray:
    """A mask as the store has it: uint8 [H W]. `among`: numbers of other masks, where an object has one in all of them."""
    values, eight_bits = values_of(path)
    void = (values == VOID) & (eight_bits and not binary)
    labels = common.numbered(np.where(void, BACKGROUND, values), path, among)
    return np.where(void, np.uint8(VOID), labels)
