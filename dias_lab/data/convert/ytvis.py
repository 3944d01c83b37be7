"""YouTube-VIS 2019, 2021, 2022 and HQ-YTVIS -> stores of clips.

Sources: Yang et al. 2019, arXiv:1905.04804; Ke et al. 2022, arXiv:2208.02008 (HQ); the splits of the peers, the converters of
martius-lab/videosaur and slotcontrast.

A table lists videos, and tracks, which have a mask a frame: polygons, run lengths, or null where the object is not seen. Here
it becomes a COCO table whose images are the frames, so that the checks of `coco` hold, and its rule that overlap belongs to
no segment. A track is the same segment in all frames: its place in the order of the ids of the video's tracks.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dias_lab.data import store
from dias_lab.data.convert import common, tables
from dias_lab.data.convert.coco import Instances
from dias_lab.data.convert.common import ConversionError, Split
from dias_lab.data.convert.folder import SPLIT_FOLDERS
from dias_lab.data.convert.tables import identity

TABLES = "{0}.json {0}/instances.json annotations/{0}.json annotations/instances_{0}.json instances_{0}.json"
HQ = "ytvis_hq-{0}.json"
PHOTOS = "{0}/JPEGImages {0}_all_frames/JPEGImages JPEGImages {0}"
LAYOUT = "train/instances.json train/JPEGImages/VIDEO/00000.jpg; of HQ ytvis_hq-{train,val,test}.json"
LAST = 300  # videos of 2021's train table that VideoSAUR and SlotContrast report results on


def convert(
    root: Path, out: Path, year: Literal["2019", "2021", "2022", "hq"] = "2021",
    splits: Literal["shares", "peers", "lists"] = "shares", validation: float = 0.05, test: float = 0.1, progress: bool = False,
) -> dict[str, Path]:  # fmt: skip
    """Convert YouTube-VIS 2019, 2021 or 2022, or HQ-YTVIS.

    Args:
        root: the folder with train/ or, of HQ, with ytvis_hq-train.json and the frames of 2019
        year: whose tables
        splits: shares: of the train table; peers: its last 300 videos for test; lists: valid's table for test, and all of HQ's

    Raises: ConversionError for what contradicts itself, all at once, and files that are missing or damaged; OSError.
    """
    root, out, parts = Path(root), Path(out), {}
    common.choose("year", year, ("2019", "2021", "2022", "hq"))
    common.choose("splits", splits, ("shares", "peers", "lists"))
    later = [] if splits != "lists" else ["validation", "test"] if year == "hq" else ["validation"]
    train, *others = (Videos(root, split, year) for split in ("train", *later))
    names = list(train.videos)
    cut = len(names) - LAST if splits == "peers" else len(names)
    if cut < 1:
        raise ConversionError(f"{train.table} has {len(names)} videos, and the last {LAST} are for test. Choose other splits")
    shares = 0 if "test" in later else validation, test if splits == "shares" else 0
    chosen = [(train, split, videos) for split, videos in common.parted("ytvis", names[:cut], *shares).items()]
    chosen += [(train, "test", names[cut:])] if splits == "peers" else []
    chosen += [(table, split, list(table.videos)) for table, split in zip(others, later if "test" in later else ["test"])]
    for table, split, videos in chosen:
        table.check([number for video in videos for number in table.videos[video]])
        meta = {"classes": table.classes, "source": f"YouTube-VIS {year}, {table.table.name}, https://youtube-vos.org"}
        parts[split] = Split(videos, table.record, meta | {"splits": splits}, table.videos.get)
    problems = [line for table in (train, *others) for line in table.problems.lines(table.table)]
    common.refuse(problems, f"Mend the tables, or fetch frames and annotations again into {root}")
    options = {"root": root, "out": out, "year": year, "splits": splits, "validation": validation, "test": test}
    return common.write(out, "ytvis", parts, options, f"Fetch the file again into {root}", progress)


class Videos(Instances):
    """A table of videos as a COCO table: `videos` has for each the ids of its frames, in the order of the table."""

    LISTS, KIND = ("videos", "annotations", "categories"), "YouTube-VIS"

    def __init__(self, root: Path, split: str, year: str):
        found, (listed, frames) = [], (HQ, "train") if year == "hq" else (TABLES, split)
        for patterns, names in ((listed, SPLIT_FOLDERS[split]), (PHOTOS, SPLIT_FOLDERS[frames])):
            paths = [root / pattern.format(name) for name in names for pattern in patterns.split()]
            found.append(next((path for path in paths if path.exists()), None))
            if not found[-1]:
                raise ConversionError(f"{paths[0]} is missing. {common.found(root, paths[0], LAYOUT)}")
        super().__init__(root, split, table=found[0], photos=found[1])

    def load(self) -> dict:
        table, images, annotations, tracks = super().load(), [], [], defaultdict(list)
        fields = {"id": (int, str), "file_names": list, "width": int, "height": int}
        videos = {identity(one["id"]): one for one in tables.complete(table["videos"], "videos", fields, self.problems)}
        fields = {"id": (int, str), "video_id": (int, str), "segmentations": list}
        listed = tables.complete(table["annotations"], "annotations", fields, self.problems)
        for what, entries in (("video", table["videos"]), ("annotation", listed)):
            self.problems.twice(f"has {what} ids twice", (identity(one.get("id")) for one in entries))
        for track in sorted(listed, key=lambda track: tables.order(identity(track["id"]))):
            tracks[identity(track["video_id"])].append(track)
        self.problems["annotates videos that it does not list"] += sorted(tracks.keys() - videos.keys(), key=str)
        self.problems["has videos without frames"] += [name for name, video in videos.items() if not video["file_names"]]
        self.videos, self.places = {}, {}
        for name, video in videos.items():
            size = {"height": video["height"], "width": video["width"]}
            self.videos[name] = [f"frame {at:05d} of video {name}" for at in range(len(video["file_names"]))]
            self.places |= {number: (str(name), at) for at, number in enumerate(self.videos[name])}
            images += [{"id": number, "file_name": file, **size} for number, file in zip(self.videos[name], video["file_names"])]
            empty = {"size": [*size.values()], "counts": [size["height"] * size["width"]]}
            for rank, track in enumerate(tracks[name]):
                shapes, known = track["segmentations"], {key: track[key] for key in ("category_id", "iscrowd") if key in track}
                if len(shapes) != len(self.videos[name]):
                    what = f"track {track['id']} of video {name}: {len(shapes)} masks, {len(self.videos[name])} frames"
                    self.problems["has tracks of other lengths than their videos"].append(what)
                for number, shape in zip(self.videos[name], shapes):
                    one = {"id": f"{rank:05d}: track {track['id']}, {number}", "image_id": number, "segmentation": shape or empty}
                    annotations.append(one | known)
        return table | {"images": images, "annotations": annotations}

    def ranks(self, seen: list[int]) -> Sequence[int]:
        return seen  # places among the tracks

    def stored(self, number, labels: np.ndarray, segments: dict[int, dict], **more) -> store.Record:
        clip, frame = self.places[number]
        record = super().stored(number, labels, segments, **more, clip=clip, frame=frame)
        return record._replace(info=record.info | {"boxes": store.boxes(record.segments)})  # upright, if EXIF turned them
