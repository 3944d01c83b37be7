"""The LMDB files published with DIAS, SmoothSA, RandSF.Q and VQ-VFM-OCL -> stores, one by one: ClevrTex, COCO, VOC, MOVi, YTVIS.

Source: the converters of Genera1Z/DIAS, SmoothSA, RandSF.Q and VQ-VFM-OCL, v1 to v4.

A file does not say of which release it is. That follows from the fields of its samples, the format of its masks and, in
VOC, the area of index 0. What index 0 means and what is lost differs by release (`LAYOUTS`). Segments keep the ranks of
their ids or colours: COCO's are the same in every layout (v1 and v2 have gaps where stuff was), and only VOC's move down by
one in v3 and v4, where the background is 1. MOVi's frames were handed to OpenCV in RGB, which takes them for BGR: red and
blue, exchanged in the file, are put right.

`val` becomes test: scores are reported on it, so no checkpoint should be chosen on it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dias_lab.data import pictures, store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, command
from dias_lab.data.convert.published import PublishedFile, Sample
from dias_lab.trace import LAST_SEGMENT, VOID

SPLITS = {"train": "train", "val": "test", "validation": "test", "test": "test"}  # by the file's name
SAMPLES, BOUNDARY, BACKGROUND = 50, 0.15, 0.3  # in VOC 2007 the boundary has 0.03, with the background 0.77


class NotPublished(ConversionError):
    """The file is not one that can be converted."""


class Layout(NamedTuple):
    """How the samples of a data set look in some releases."""

    dataset: str
    releases: tuple[str, ...]  # any of them names it
    fields: tuple[str, ...]  # besides image and segment
    formats: tuple[str, ...]  # of the masks
    zero: int  # what index 0 is in the store: 0, background, or void
    lost: tuple[str, ...] = ()


NO_NAMES = "image ids, file names and class names are not in the file"
NO_CROWDS = "which things are crowds is not in the file"
NO_BACKGROUND = "where an image has no background, its first object is called that"
NO_MORE = "which MOVi it is, and the objects' classes, are not in the file"
MERGED = "are background: protocol dias-v1 scores as v1 and v2 do; dias cannot score as v3 and v4 do"
BOTH, WEBP, PNG = ("WebP", "PNG"), ("WebP",), ("PNG",)
LAYOUTS = [
    Layout("clevrtex", ("vq-vfm-ocl", "v1", "v2", "v3"), ("depth",), WEBP, 0),
    Layout("clevrtex", ("v4",), ("depth",), PNG, 0),
    Layout("coco", ("vq-vfm-ocl",), ("bbox", "clazz", "isthing"), BOTH, VOID, (NO_CROWDS,)),
    Layout("coco", ("v1", "v2"), ("bbox", "clazz"), BOTH, 0, (NO_CROWDS, f"stuff and unannotated pixels {MERGED}")),
    Layout("coco", ("v3",), ("clazz", "isthing"), WEBP, VOID, (NO_CROWDS,)),
    Layout("coco", ("v4",), ("clazz", "isthing"), PNG, VOID, (NO_CROWDS,)),
    Layout("voc", ("vq-vfm-ocl", "v1", "v2"), (), WEBP, 0, (f"the objects' boundaries {MERGED}",)),
    Layout("voc", ("v3",), (), WEBP, VOID, (NO_BACKGROUND,)),
    Layout("voc", ("v4",), (), PNG, VOID, (NO_BACKGROUND,)),
    Layout("movi", ("vq-vfm-ocl", "randsfq"), ("avi", "video"), PNG, 0, (NO_MORE,)),
    Layout("movi", ("smoothsa",), ("video",), PNG, 0, (NO_MORE,)),
    Layout("ytvis", ("vq-vfm-ocl", "randsfq"), ("clazz", "video"), WEBP, 0),
    Layout("ytvis", ("smoothsa",), ("clazz", "video"), PNG, 0),
]


class Published:
    """A published file that is ready to be converted: its `file`, `layout` and `split`.

    `dataset` is refused unless the file is of that data set; `layout` is a release ("v1" to "v4", "vq-vfm-ocl"), needed
    where the file does not tell; `split` is the store's, needed where the file's name does not tell.

    Raises: ConversionError if the file is not a published one, is damaged, or leaves the layout or the split open.
    """

    def __init__(self, root: str | Path, dataset: str | None = None, layout: str | None = None, split=None):
        self.file = PublishedFile(root)
        self.split = split or SPLITS.get(self.file.path.stem)
        if self.split is None:
            raise ConversionError(f"{root}: its name is not one of {', '.join(SPLITS)}; name the split with --split")
        fields, form = self.file.form
        fits = [one for one in LAYOUTS if one.fields == fields and form in one.formats]
        if not fits:
            found = f"{root}: besides image and segment it has {fields}, and {form} masks: no published layout"
            raise ConversionError(f"{found}. Name a file of ClevrTex, COCO, VOC, MOVi or YTVIS")
        if dataset not in (None, fits[0].dataset):
            raise ConversionError(f"{root} is of the data set {fits[0].dataset}, not {dataset}. Leave --dataset out")
        self.layout = self._choose(fits, layout)

    def _choose(self, fits: list[Layout], release: str | None) -> Layout:
        """The layout that the user names, or that the area of index 0 tells."""
        possible, problem = ", ".join(name for one in fits for name in one.releases), ""
        if release is not None:
            fits = [one for one in fits if release in one.releases]
            problem = f"its samples do not have the layout {release}. Leave --layout out, or name one of {possible}"
        elif fits[0].dataset == "voc":
            keys = self.file.keys
            places = np.linspace(0, len(keys) - 1, min(SAMPLES, len(keys)), dtype=int)
            share = float(np.median([(self.file.read(keys[place]).indices == 0).mean() for place in places]))
            zero = VOID if share < BOUNDARY else 0 if share > BACKGROUND else None
            fits = [one for one in fits if one.zero == zero]
            problem = (
                f"index 0 has {share:.0%} of the area (the median of {len(places)} {self.file.form[1]} masks), which does "
                f"not tell the release: below {BOUNDARY:.0%} it is the boundary of v3 or v4, above {BACKGROUND:.0%} the "
                f"background of v1 or v2, and masks are PNG in v4 alone. Say what it is: --layout with one of {possible}"
            )
        if not fits:
            raise ConversionError(f"{self.file.path}: {problem}")
        return fits[0]

    def records(self, progress: bool = False) -> Iterator[store.Record]:
        """The store's records in the order of the file. Raises: ConversionError that names the item's key."""
        for key in tqdm(self.file.keys, f"{self.layout.dataset} {self.split}", disable=not progress, mininterval=1):
            samples, source = self.file.samples(key), {"file": self.file.path.name, "key": key.decode()}
            try:
                if "video" in self.layout.fields:
                    yield from (_frame(self.layout, *frame, source) for frame in enumerate(samples))
                    continue
                labels, info = _meaning(self.layout, samples[0])
                blob, header = pictures.photo(samples[0].image, "its image")
            except ValueError as error:
                raise self.file.error(error, key) from error
            yield store.Record(blob, pictures.turned(labels, header.orientation), {"source": source, **info})

    def meta(self, out: Path) -> dict:
        layout, options = self.layout, {"root": self.file.path, "out": out}
        return {
            "dataset": layout.dataset,
            "split": self.split,
            "kind": "video" if "video" in layout.fields else "image",
            "source": f"{self.file.path.name} as published with DIAS, SmoothSA or VQ-VFM-OCL, https://github.com/Genera1Z",
            "command": command("legacy", **options, layout=layout.releases[-1], split=self.split),
            "layout": "/".join(layout.releases),
            "lost": [NO_NAMES, *layout.lost],
        }


def convert(
    root: Path, out: Path, dataset: Literal["clevrtex", "coco", "voc", "movi", "ytvis"] | None = None,
    layout: Literal["v1", "v2", "v3", "v4", "vq-vfm-ocl", "randsfq", "smoothsa"] | None = None,
    split: Literal["train", "validation", "test"] | None = None, progress: bool = False,
) -> Path:  # fmt: skip
    """Convert an LMDB file published with DIAS, SmoothSA, RandSF.Q or VQ-VFM-OCL to the store `out`, running no pickle.

    A pickle, as these files hold, may run a program when Python loads it.

    Args:
        root: the published file, such as coco/val.lmdb
        out: the store, such as data/coco/test.lmdb
        dataset: refuse a file of another data set
        layout: the release that wrote the file, where it does not tell itself
        split: the store's split, where train.lmdb is not train, or val.lmdb not test

    Raises: NotPublished before anything is written; ConversionError; OSError if `out` cannot be written.
    """
    try:
        published = Published(root, dataset, layout, split)
    except ConversionError as error:
        raise NotPublished(str(error)) from error
    if Path(out).resolve() == Path(root).resolve():
        raise ConversionError(f"{out} is the published file itself; give the store another name")
    try:
        path = store.write(out, published.records(progress), meta := published.meta(out))
    except store.StoreError as error:
        raise ConversionError(f"{root}: {error}. Unpack the release again") from error
    if progress:
        what = f"{len(published.file.keys)} {meta['kind']}s of {meta['dataset']}, layout {meta['layout']}, split {meta['split']}"
        print(f"wrote {path}: {what}. Lost: {'; '.join(meta['lost'])}")
    return path


def _frame(layout: Layout, number: int, sample: Sample, source: dict) -> store.Record:
    """A clip's frame. Its indices are those of the whole clip. Raises: ValueError."""
    image, most = sample.image, LAST_SEGMENT if sample.clazz is None else min(len(sample.clazz), LAST_SEGMENT)
    if sample.indices.max() > most:
        raise ValueError(f"the mask of frame {number} has the segment {sample.indices.max()}, its clip has {most} at most")
    if layout.dataset == "movi":
        image = pictures.png(Image.merge("RGB", pictures.rgb(image, "its image").split()[::-1]), compress_level=1)
    blob, header = pictures.photo(image, "its image")
    record = common.frame(blob, pictures.turned(sample.indices, header.orientation), source["key"], number, source["file"])
    if sample.clazz is not None:
        record.info["classes"] = {segment: int(sample.clazz[segment - 1]) for segment in record.info["things"]}
    return record


def _meaning(layout: Layout, sample: Sample) -> tuple[np.ndarray, dict]:
    """The store's segments, uint8 [H W], and its info on them. Raises: ValueError if indices and fields do not agree."""
    present = np.unique(sample.indices).tolist()
    ranks = [index for index in present if index]
    stated = {name: len(getattr(sample, name)) for name in ("clazz", "isthing") if getattr(sample, name) is not None}
    if set(stated.values()) - {len(ranks)}:
        raise ValueError(f"its mask has {len(ranks)} segments, the highest is {present[-1]}; its fields state {stated}")
    if ranks != list(range(1, len(ranks) + 1)) and layout.fields != ("bbox", "clazz"):  # there, stuff left gaps
        raise ValueError(f"its mask has {len(ranks)} segments, and the highest is {present[-1]}: some are missing")
    shift = 1 if layout.dataset == "voc" and layout.zero == VOID else 0  # the background is 1
    if present[-1] - shift > LAST_SEGMENT:
        raise ValueError(f"its mask has the segment {present[-1] - shift}; a store has at most {LAST_SEGMENT}")
    table = np.arange(-shift, 256 - shift).astype(np.uint8)
    table[0] = layout.zero
    segments = [index - shift for index in ranks if index > shift]
    things = [True] * len(segments) if sample.isthing is None else sample.isthing.astype(bool).tolist()
    info = {"things": dict(zip(segments, things))}
    if sample.clazz is not None:
        info["classes"] = dict(zip(segments, sample.clazz.tolist()))
    return table[sample.indices], info
