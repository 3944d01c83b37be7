"""A folder of your own images, with or without masks -> stores.

Images are JPEG, PNG, BMP, WebP, TIFF or GIF. The store keeps the bytes of a JPEG or PNG that every reader decodes to the
same RGB picture; all others become PNGs: other formats, photos that their EXIF orientation turns (the pixels are turned
instead), transparency (laid over white) and 16-bit grey (its high byte, as Pillow reads 16-bit colour). Animations and files of
several pages are refused, for nobody knows which picture is meant.

A mask belongs to the image with the same name but for its ending, and has its size as a viewer shows it, EXIF
orientation included. It says which segment a pixel is in:
  palette or 8-bit grey   by its number: 0 background, 255 void
  16-bit grey             by its number: 0 background; there is no void
  RGB colours             by its colour: black or transparent background; there is no void
Segments are renumbered 1, 2, ... in the ascending order of their numbers, or of R + 256 G + 65536 B.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dias_lab.data import store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.trace import VOID

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "MPO")  # MPO: JPEGs with a second picture, from some cameras
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP")  # formats of masks
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
ORIENTATION = 0x0112  # the EXIF field
SHARE = 0.1  # held out for validation and for test, unless the user says how much


def convert(
    root: str | Path, out: str | Path, masks: str | Path | None = None, validation: float | None = None,
    test: float | None = None, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Write out/train.lmdb, out/validation.lmdb and out/test.lmdb; return their paths by split.

    `root` holds the images, or the folders train/, val/ (or validation/) and test/ with them; `masks` is a folder in the same
    order, or one folder for all splits. An image without mask is stored without segments. `validation` and `test` are
    shares of the images, 0 to 1 (or of train/, where there are such folders), on which checkpoints are chosen and
    results reported. An image's name alone decides, and each gets at least one. Default: a tenth each; nothing for test
    where there is a folder train/. 0: no such split.

    Raises: ConversionError naming the file that cannot be used; OSError if `out` cannot be written.
    """
    root, out, masks = Path(root), Path(out), masks if masks is None else Path(masks)
    if masks and masks.resolve() == root.resolve():
        raise ConversionError(f"{root} cannot hold both images and masks; put the masks into a folder of their own")
    folders = _folders(root)
    shares = {"validation": validation, "test": test}
    for split, value in shares.items():
        if value is not None and split in folders:
            raise ConversionError(f"{split}={value}, but {folders[split]} is there. Leave out the share or the folder")
        if value is None:
            value = 0 if split in folders or (split == "test" and folders["train"] != root) else SHARE
        shares[split] = common.share(split, value, "the images")
    images, others = {}, {}
    for split, folder in folders.items():
        images[split], others[split] = _files(folder, "images")
        if progress and others[split]:
            print(f"left out of {folder}, for they end in none of {' '.join(SUFFIXES)}: {some(others[split])}")
    pairs = _pairs(images, masks) if masks else {}
    parts = {}
    for split, files in _split(images, shares).items():
        meta = {
            "source": str(root),
            "images_without_masks": sum(pairs.get(path) is None for path in files),
            "files_left_out": others.get(split, [])[:100],
        }
        parts[split] = Split(files, lambda path: _record(root, path, pairs.get(path)), meta)
    options = {"root": root, "out": out, "masks": masks, "validation": validation, "test": test}
    return common.write(out, "folder", parts, options, "Mend the file or take it out", progress)


# Which files


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted; hidden files do not count."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        way_out = "Name a folder that is there and that you may read"
        raise ConversionError(f"{folder} cannot be listed ({error.strerror}). {way_out}") from error


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """By split the folders in `root` that are named for it."""
    inside = {path.name.lower(): path for path in _listed(root) if path.is_dir()}
    by_split = {split: [inside[name] for name in names if name in inside] for split, names in SPLIT_FOLDERS.items()}
    return {split: folders for split, folders in by_split.items() if folders}


def _folders(root: Path) -> dict[str, Path]:
    """By split its folder: `root` itself, or those in it."""
    by_split = _split_folders(root)
    if both := next((folders for folders in by_split.values() if len(folders) > 1), None):
        raise ConversionError(f"{root} has both {' and '.join(path.name for path in both)}. Rename one")
    folders = {split: found for split, [found] in by_split.items()}
    if folders and "train" not in folders:
        there = some(path.name for path in folders.values())
        raise ConversionError(f"{root} has {there}, but no train. Add it or rename them")
    return folders or {"train": root}


def _files(folder: Path, what: str) -> tuple[dict[str, Path], list[str]]:
    """The pictures in a folder by stem, and the names of all other files."""
    files, others = {}, []
    for path in _listed(folder):
        if path.suffix.lower() not in SUFFIXES or path.is_dir():
            others.append(path.name + "/" * path.is_dir())
        elif path.stem in files:
            raise ConversionError(f"{folder} has both {files[path.stem].name} and {path.name}; rename or remove one")
        else:
            files[path.stem] = path
    if not files:
        there = some(others, 12) or "nothing"
        raise ConversionError(f"{folder} holds no {what} ({' '.join(SUFFIXES)}); found: {there}")
    return files, others


def _pairs(images: dict[str, dict[str, Path]], masks: Path) -> dict[Path, Path | None]:
    """Each image's mask. Masks without image are refused: their names probably differ by more than the ending."""
    own = {split: folders[0] for split, folders in _split_folders(masks).items() if split in images}
    if own:
        by_split = {split: _files(own[split], "masks")[0] if split in own else {} for split in images}
    else:
        by_split = dict.fromkeys(images, _files(masks, "masks")[0])
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


def _record(root: Path, path: Path, mask: Path | None) -> store.Record:
    blob, size, turned = _picture(path)
    info = {"source": {"id": path.stem, "file": path.relative_to(root).as_posix()}}
    if mask is None:
        return store.Record(blob, None, info)
    labels = _labels(mask)
    if labels.shape != size[::-1]:
        way_out = "Give the mask the image's size, without smoothing"
        if turned and labels.shape == size:
            way_out = "It fits the picture before EXIF turns it, as viewers do. Turn the mask or remove that EXIF field"
        sizes = f"{mask} has {labels.shape[::-1]} pixels (width, height), its image {path} has {size}"
        raise ConversionError(f"{sizes}. {way_out}")
    return store.Record(blob, labels, {**info, "things": common.all_things(labels)})


def _picture(path: Path) -> tuple[bytes, tuple[int, int], bool]:
    """The bytes to store, width and height, and whether EXIF turned the picture."""
    picture = _open(path, FORMATS)
    turned = picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    transparent, deep = picture.has_transparency_data, picture.mode.startswith("I")
    if picture.mode == "F" or (deep and not 0 <= picture.getextrema()[0] <= picture.getextrema()[1] < 1 << 16):
        raise ConversionError(f"{path} has more than 16 bits a pixel, and no known range. Save it with 8 bits")
    if picture.format in ("JPEG", "PNG", "MPO") and not (turned or transparent or deep):
        return path.read_bytes(), picture.size, False
    if turned:
        picture = ImageOps.exif_transpose(picture)
    if deep:
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if transparent:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return store.png(picture.convert("RGB")), picture.size, turned


def _labels(path: Path) -> np.ndarray:
    """A mask as the store has it: uint8 [H W]."""
    picture = ImageOps.exif_transpose(_open(path, LOSSLESS))
    if picture.mode in ("1", "L", "P"):
        values = np.asarray(picture, np.int32)
        labels = common.numbered(np.where(values == VOID, 0, values), path)  # of mode 1: 0 or 1
        return np.where(values == VOID, np.uint8(VOID), labels)
    if picture.mode.startswith("I"):
        return common.numbered(np.asarray(picture).astype(np.int64), path)
    if picture.mode in ("RGB", "RGBA"):
        colours = common.packed_colours(picture)
        opaque = np.asarray(picture.getchannel("A")) > 0 if picture.mode == "RGBA" else True
        return common.numbered(np.where(opaque, colours, 0), path)
    raise ConversionError(f"{path} has the mode {picture.mode}; masks are palette, 8 or 16-bit grey, or RGB pictures")


def _open(path: Path, formats: tuple[str, ...]) -> Image.Image:
    if not path.stat().st_size:
        raise ConversionError(f"{path} is empty (0 bytes). Copy it again or take it out")
    try:
        with Image.open(path) as probe:
            form, frames = probe.format, getattr(probe, "n_frames", 1)
    except common.UNREADABLE as error:
        raise ConversionError(f"{path} is no picture, or damaged ({error}). Copy it again or take it out") from error
    if form not in formats:
        why = "; JPEG changes the numbers of a mask" if form in ("JPEG", "MPO") else ""
        raise ConversionError(f"{path} is {form}; it must be one of {', '.join(formats)}{why}")
    if frames > 1 and form != "MPO":
        raise ConversionError(f"{path} has {frames} frames or pages. Save the one that you mean as its own picture")
    return common.open_image(path, formats, "Copy it again or take it out")
