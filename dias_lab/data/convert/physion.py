"""Physion's videos and labels -> stores of clips, with one question: does the red object hit the yellow one?

Sources: Bear et al. 2021, arXiv:2106.08261; file names as pairlab/SlotFormer reads them. No real file was at hand: tests write
its layout. A label belongs to the video of its name, plus _img (readout) or -redyellow (test, whose other pictures of the same
scenes do not colour the two objects). The readout set is trained on; nothing is chosen by the test set.
"""

import csv
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dias_lab.data import pictures, store
from dias_lab.data.convert import common, video
from dias_lab.data.convert.clevrer import MEND, check, write_questions
from dias_lab.data.convert.common import ConversionError, Split, some
from dias_lab.data.questions import Question

LAYOUT = "readout_labels.csv Collide_readout_MP4s/NAME_img.mp4 PhysionTestMP4s/{labels.csv,Collide/mp4s-redyellow/NAME.mp4}"
SCENARIOS = ("Collide", "Contain", "Dominoes", "Drape", "Drop", "Link", "Roll", "Support")
WORDS = "does the red object hit the yellow object".split()
NAME, OUTCOME = ("Unnamed: 0", ""), "ground truth outcome"  # a table's first column has no name, until pandas gives it one


def convert(
    root: Path, out: Path, stride: int = 3, frames: int = 0, size: int = 128, without: Path | None = None,
    validation: float = 0.05, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert Physion's readout and test videos, with their labels as questions.

    Args:
        root: a folder with both, and with readout_labels.csv and labels.csv, anywhere inside
        stride: 3 takes every third of the 150 frames
        frames: how many of these at most; 0 takes all
        size: side of the stored pictures in pixels
        without: a text file with the names of stimuli to leave out, a line each

    Raises: ConversionError for labels without a video, all at once, and files that are damaged; OSError.
    """
    root, out = Path(root), Path(out)
    check(stride, frames, size)
    bad = set(Path(without).read_text(encoding="utf-8").split()) if without else set()
    files, lost, outcomes = {"readout": {}, "test": {}}, [], {}
    videos = sorted(path.relative_to(root) for path in root.rglob("*.mp4"))
    for file in sorted(videos, key=lambda file: "redyellow" in str(file) or "readout" in str(file)):  # of one name, the last
        part = "test" if any("Test" in folder for folder in file.parts[:-1]) else "readout"
        files[part][file.stem.removesuffix("_img").removesuffix("-redyellow")] = file
    for part, table in (("readout", "readout_labels.csv"), ("test", "labels.csv")):
        labels = {name: outcome for name, outcome in _labels(root, table).items() if name not in bad}
        lost += [name for name in labels if name not in files[part]]
        outcomes |= {files[part].get(name): outcome for name, outcome in labels.items()}
        files[part] = {name: file for name, file in files[part].items() if name in labels}
    if lost:
        wrong = f"{root} lacks the videos of {len(lost)} labels: {some(lost)}"
        raise ConversionError(f"{wrong}. {common.found(root, root / '-', LAYOUT)}")
    names = common.parted("physion", list(files["readout"]), validation, 0)
    parts = {split: [files["readout"][name] for name in ones] for split, ones in names.items()}
    parts["test"] = list(files["test"].values())
    asked = {split: [_question(at, file, outcomes[file]) for at, file in enumerate(ones)] for split, ones in parts.items()}

    def cut(file: Path) -> Iterator[tuple[str, video.Frame]]:
        return ((file.as_posix(), frame) for frame in itertools.islice(video.frames(root / file, stride), frames or None))

    record, meta = functools.partial(_record, size=size), {"source": "Physion, https://physion-benchmark.github.io"}
    splits = {split: Split(ones, record, meta, cut) for split, ones in parts.items()}
    options = {"root": root, "out": out, "stride": stride, "frames": frames, "size": size, "without": without}
    paths = common.write(out, "physion", splits, options | {"validation": validation}, MEND, progress)
    write_questions(paths, asked, meta["source"])
    return paths


def _labels(root: Path, name: str) -> dict[str, bool]:
    path = next((path for path in sorted(root.rglob(name))), None)
    if path is None:
        raise ConversionError(f"{root / name} is missing. {common.found(root, root / name, LAYOUT)}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    key = next((key for key in NAME if rows and key in rows[0]), None)
    if key is None or any(row.get(OUTCOME) not in ("True", "False") for row in rows):
        raise ConversionError(f"{path} has no rows with a name and, as {OUTCOME!r}, True or False. {MEND}")
    return {row[key]: row[OUTCOME] == "True" for row in rows}


def _question(number: int, file: Path, outcome: bool) -> Question:
    kind = next((name for name in SCENARIOS if any(folder.startswith(name) for folder in file.parts)), "other")
    return Question(number, kind.lower(), WORDS, [], "yes" if outcome else "no", {})


def _record(item: tuple[str, video.Frame], size: int) -> store.Record:
    name, frame = item
    image = pictures.png(frame.picture.resize((size, size), Image.Resampling.BILINEAR), compress_level=1)
    return common.frame(image, None, name, frame.number, name, seconds=frame.seconds)
