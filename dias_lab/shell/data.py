"""The shell's commands on data: convert and verify."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dias_lab import viz
from dias_lab.data import store, summary
from dias_lab.data.convert import clevrtex, coco, legacy, scenes, voc
from dias_lab.data.convert import folder as own
from dias_lab.data.scenes import DEFAULT, DIFFICULTIES
from dias_lab.shell import Flag, Refused, refusing

Out = Annotated[Path, tyro.conf.arg(help="the folder of the stores, .lmdb files, one a split")]
Difficulty = Literal[tuple(DIFFICULTIES)]
Held = "the share of the training images on which checkpoints are chosen; 0: no such split"
Validation = Annotated[float, tyro.conf.arg(help=Held)]


def convert_scenes(
    out: Out, train: int = 2000, validation: int = 200, test: int = 200, difficulty: Difficulty = DEFAULT
):
    """Make the built-in scenes.

    Args:
        train: how many to train on
        validation: how many on which checkpoints are chosen
        test: how many that results are reported on
        difficulty: scenes: toys of several parts; crowded: more; regions: wall and floor; recoloured; shapes: of one texture
    """
    report(out, scenes.convert(out, train, validation, test, difficulty, progress=True))


def convert_coco(
    root: Path, out: Out, validation: Validation = 0.05, limit: int | None = None,
    annotations: Literal["panoptic", "instances"] = "panoptic",
):  # fmt: skip
    """Convert COCO 2017.

    Args:
        root: the folder with train2017/, val2017/ and annotations/
        limit: only the first images of each split
        annotations: panoptic: things (cats), stuff (sky), no overlaps; instances: things, as SPOT and OCLF use them
    """
    report(out, coco.convert(folder(root), out, validation, limit, annotations, progress=True))


def convert_voc(
    root: Path, out: Out, validation: Validation = 0.05, splits: Literal["auto", "dias", "lists"] = "auto",
    year: Literal[2007, 2012] | None = None, trainaug: Path | None = None, drop_test_images: Flag = False,
):  # fmt: skip
    """Convert Pascal VOC 2007 and 2012.

    Args:
        root: VOCdevkit, or the folder that holds it
        splits: dias: train on 2012, test on 2007; lists: train.txt and val.txt of a year; auto: dias if both are there
        year: the year of the lists
        trainaug: a text file with the names of the images to train on, instead of train.txt
        drop_test_images: leave the images of 2007, which are tested on, out of those of 2012
    """
    report(out, voc.convert(folder(root), out, validation, splits, year, trainaug, drop_test_images, progress=True))


def convert_clevrtex(
    root: Path, out: Out, validation: Validation = 0.05, splits: Literal["reference", "usual"] = "reference"
):
    """Convert ClevrTex.

    Args:
        root: the folder with clevrtex_full/ and clevrtex_outd/, whose shapes and textures are others
        splits: reference: train on full, test on outd; usual: 80, 10 and 10 per cent of full
    """
    report(out, clevrtex.convert(folder(root), out, validation, splits, progress=True))


def convert_folder(
    root: Path, out: Out, masks: Path | None = None, validation: float | None = None, test: float | None = None
):
    """Convert your own images, with or without masks.

    Args:
        root: the folder of the images, or of train/ val/ test/ with them
        masks: a folder of masks, which say the segment of each pixel, each named like its image but for the ending
        validation: the share of the images on which checkpoints are chosen; None: a tenth, or what val/ holds
        test: the share of the images that results are reported on; None: a tenth, or what test/ holds
    """
    report(out, own.convert(folder(root), out, masks and folder(masks), validation, test, progress=True))


def convert_legacy(
    root: Path, out: Path, dataset: Literal["clevrtex", "coco", "voc"] | None = None,
    layout: Literal["v1", "v2", "v3", "v4", "vq-vfm-ocl"] | None = None,
    split: Literal["train", "validation", "test"] | None = None,
):  # fmt: skip
    """Convert an LMDB file published with DIAS, SmoothSA or VQ-VFM-OCL to the store `out`, running no pickle.

    A pickle, as these files hold, may run a program when Python loads it.

    Args:
        root: the published file, such as coco/val.lmdb
        out: the store, such as data/coco/test.lmdb
        dataset: refuse a file of another data set
        layout: the release that wrote the file, where it does not tell itself
        split: the store's split, where train.lmdb is not train, or val.lmdb not test
    """
    with refusing():
        published = legacy.Published(root, dataset, layout, split)
    print(f"wrote {published.convert(out, progress=True)}: {published.summary()}")


FUNCTIONS = (convert_scenes, convert_coco, convert_voc, convert_clevrtex, convert_folder, convert_legacy)
CONVERTERS = {function.__name__.removeprefix("convert_"): function for function in FUNCTIONS}


def folder(path: Path) -> Path:
    if not path.is_dir():
        raise Refused(f"there is no folder {path}")
    return path


def verify(path: tyro.conf.Positional[Path]):
    """Check every record of a store, or of all stores in a folder.

    Args:
        path: a store (.lmdb), or the folder of some
    """
    paths = summary.stores_in(path) if path.is_dir() else [path]
    if not paths or not path.exists():
        raise Refused(f"there is no store at {path}")
    for one in paths:
        store.verify(one, progress=True)
        print(f"{one}: every record is sound")
    report(path if path.is_dir() else None, {one.stem: one for one in paths})


def report(out: Path | None, paths: dict[str, Path]):
    """Print what the stores hold and draw a contact sheet of them into the folder `out`."""
    summaries = [summary.summarise(path, progress=True) for path in paths.values()]
    print("stores: " + " ".join(map(str, paths.values())), summary.table(summaries), sep="\n")
    for doubt in summary.doubts(summaries):
        print(f"attention: {doubt}")
    if out is None:
        return
    groups = {}
    for one, path in zip(summaries, paths.values()):
        mean = "no masks" if one.mean != one.mean else f"{one.mean:.1f} segments on average"
        groups[f"{one.split}: {one.images:,} images, {mean}"] = summary.samples(path, 4 * max(1, round(3 / len(paths))))
    names = {store.open(path).meta["dataset"] for path in paths.values()}
    try:
        viz.data_sheet(groups, ", ".join(sorted(names))).savefig(out / "contact_sheet.png")
        print(f"wrote {out / 'contact_sheet.png'}")
    except OSError as error:  # the stores may lie where nobody may write
        print(f"no contact sheet: {error}")
