"""Video files -> stores of clips, a file a clip. FFmpeg decodes them, through PyAV: its wheels bring it along.

Frames are stored as PNG, without loss: JPEG would draw its blocks over those that the video has already. They are turned as
the file says. Where the time between frames varies they are stored as they come, with their times in info["seconds"].

What a truncated file lacks, its end, some formats state: AVI and MP4 the number of frames, Matroska and WebM the time.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image

from dias_lab.data import pictures, store
from dias_lab.data.convert import common
from dias_lab.data.convert.common import ConversionError, Split

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".gif", ".mpg", ".mpeg", ".ogv")
MEND = "Copy the file again, or take what there is of it by --seconds 0 END"


class Frame(NamedTuple):
    number: int  # from 0, of all in the file
    seconds: float  # since its beginning
    picture: Image.Image


def convert(
    root: Path, out: Path, every: int = 1, seconds: tuple[float, float] | None = None, validation: float = 0.1,
    test: float = 0.1, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert video files, one clip a file. Frames are stored as they come, as PNG without loss.

    Args:
        root: a video file, or a folder of some
        every: 5 takes each fifth frame
        seconds: where each clip starts and ends in its file; None: all of it

    Raises: ConversionError that names file and frame, for one that cannot be decoded or is cut short; OSError.
    """
    root, out = Path(root), Path(out)
    if every < 1:
        raise ConversionError(f"every={every}; give a number of frames from 1")
    inside = sorted(root.rglob("*"), key=common.natural) if root.is_dir() else [root]
    files = [one for one in inside if one == root or one.suffix.lower() in SUFFIXES and one.name[0] != "." and one.is_file()]
    if not files:
        raise ConversionError(f"{root} has no videos ({' '.join(SUFFIXES)}). {common.found(root, root / '-', 'NAME.mp4')}")
    by_name = {file.relative_to(root.parent if file == root else root).as_posix(): file for file in files}
    common.refuse([problem for file in files if (problem := _problem(file))], MEND)

    def chosen(name: str) -> Iterator[tuple[str, Frame]]:
        found = frames(by_name[name], every, *(seconds or ()))
        if (first := next(found, None)) is None:
            raise ConversionError(f"{by_name[name]} has no frame between {seconds[0]:g} and {seconds[1]:g} seconds")
        return ((name, frame) for frame in itertools.chain([first], found))

    def record(item: tuple[str, Frame]) -> store.Record:
        name, frame = item
        image = pictures.png(frame.picture, compress_level=1)
        return common.frame(image, None, name, frame.number, name, seconds=frame.seconds)

    parts = common.parted("video", list(by_name), validation, test)
    splits = {split: Split(names, record, {"source": str(root)}, chosen) for split, names in parts.items()}
    options = {"root": root, "out": out, "every": every, "seconds": seconds, "validation": validation, "test": test}
    return common.write(out, "video", splits, options, MEND, progress)


def _problem(file: Path) -> str | None:
    try:
        with av.open(file) as container:
            return None if container.streams.video else f"{file} has no video stream"
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"{file} is no video, or its beginning or end is damaged ({error})"


def frames(file: Path, every: int = 1, start: float = 0, end: float = float("inf")) -> Iterator[Frame]:
    """The frames of a video file, each `every`th between two times in seconds, one after another.

    Raises: ConversionError naming file and frame where it cannot be decoded, or is cut short, or there is none.
    """
    if problem := _problem(file):
        raise ConversionError(f"{problem}. {MEND}")
    number, packets, first, last = 0, 0, None, 0.0
    with av.open(file) as container:
        stream = container.streams.video[0]
        stream.thread_type, gap = "AUTO", 1 / float(stream.average_rate or 25)
        try:
            for packet in container.demux(stream):
                packets += packet.dts is not None  # the last one only asks for what is left
                for frame in packet.decode():
                    if frame.is_corrupt or packet.is_corrupt:
                        raise ValueError("it is cut short or damaged")
                    time = last + gap if frame.time is None else frame.time
                    first = time if first is None else first
                    gap, last = max(gap, time - last) if number else gap, time
                    if time - first >= end:
                        return
                    if number % every == 0 and time - first >= start:
                        picture = frame.to_image().rotate(frame.rotation, expand=True)  # in degrees, against the clock
                        yield Frame(number, time - first, picture)
                    number += 1
        except (av.FFmpegError, ValueError) as error:
            raise ConversionError(f"{file}: frame {number} cannot be decoded ({error}). {MEND}") from error
        stated = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        hours, minutes, rest = re.findall(r"[\d.]+", stream.metadata.get("DURATION", "0:0:0"))[:3]
        ends = 3600 * int(hours) + 60 * int(minutes) + float(rest)
    if not number:
        raise ConversionError(f"{file} has a video stream without frames. {MEND}")
    if packets < stated or ends > last + 1.5 * gap:
        why = f"its beginning states {stated} frames" if packets < stated else f"it should last {ends:.2f} seconds"
        raise ConversionError(f"{file} is cut short after frame {number - 1} at {last:.2f} seconds: {why}. {MEND}")
