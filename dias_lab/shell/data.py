"""The shell's commands on data: convert and verify. A converter's own signature and docstring make its command."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from dias_lab import viz
from dias_lab.data import store, summary
from dias_lab.data.convert import (
    clevrer,
    clevrtex,
    coco,
    davis,
    folder,
    frames,
    legacy,
    movi,
    physics,
    physion,
    scenes,
    video,
    voc,
    ytvis,
)  # fmt: skip
from dias_lab.shell import Refused, refusing

HELP = {  # of the options that converters share
    "out": "the folder of the stores, .lmdb files, one a split",
    "validation": "the share of what is trained on, on which checkpoints are chosen; 0: no such split",
    "test": "the share that results are reported on; 0: no such split",
}


def command(convert: Callable) -> Callable:
    """The converter as a command: tyro reads its options from the signature, and their help from the docstring and HELP."""

    @functools.wraps(convert)
    def run(**options):
        for path in (options[name] for name in ("root", "masks") if options.get(name)):
            if not path.exists():
                raise Refused(f"there is no file or folder {path}")
        with refusing(legacy.NotPublished):
            made = convert(**options, progress=True)
        report(Path(options["out"]) if isinstance(made, dict) else None, made if isinstance(made, dict) else {"": made})

    asked = [one for one in inspect.signature(convert).parameters.values() if one.name != "progress"]
    told = {name: tyro.conf.arg(help=text) for name, text in HELP.items() if f"    {name}: " not in convert.__doc__}
    asked = [one.replace(annotation=Annotated[one.annotation, told[one.name]]) if one.name in told else one for one in asked]
    run.__signature__ = inspect.Signature(asked)
    run.__annotations__ = {one.name: one.annotation for one in asked}
    del run.__wrapped__  # tyro would read that
    return run


MODULES = (scenes, physics, coco, voc, clevrtex, folder, davis, frames, video, movi, ytvis, clevrer, physion, legacy)
CONVERTERS = {module.__name__.rpartition(".")[2]: command(module.convert) for module in MODULES}
CONVERTERS["clips"] = command(scenes.convert_clips)


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
        what = f"{one.clips:,} clips, {one.images:,} frames" if one.clips else f"{one.images:,} images"
        groups[f"{one.split}: {what}, {mean}"] = summary.samples(path, 4 * max(1, round(3 / len(paths))))
    names = {store.open(path).meta["dataset"] for path in paths.values()}
    try:
        viz.data_sheet(groups, ", ".join(sorted(names))).savefig(out / "contact_sheet.png")
        print(f"wrote {out / 'contact_sheet.png'}")
    except OSError as error:  # the stores may lie where nobody may write
        print(f"no contact sheet: {error}")
