"""YouTube-VIS 2019, 2021, 2022 and HQ-YTVIS -> stores of clips.

Sources: Yang et al. 2019, arXiv:1905.04804; Ke et al. 2022, arXiv:2208.02008 (HQ); the splits of the peers, the converters of
martius-lab/videosaur and slotcontrast.

A table lists videos, and tracks, which have a mask a frame: polygons, run lengths, or null where the object is not seen. Here
it becomes a COCO table whose images are the frames, so all checks of `coco` hold, and so does its rule that overlap belongs
to no segment. Within a video a track is the same segment in all frames: its place in the order of the tracks' ids.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dias_lab.data import store
from dias_lab.data.convert import common, tables
from dias_lab.data.convert.coco import Instances
from dias_lab.data.convert.common import ConversionError, Split

FOLDERS = {"train": ("train",), "validation": ("valid", "val"), "test": ("test",)}
TABLES = "{0}.json {0}/instances.json annotations/{0}.json annotations/instances_{0}.json instances_{0}.json"
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
        validation: the share of the training videos on which checkpoints are chosen; 0: no such split
        test: of shares: that of the videos that results are reported on

    Raises: ConversionError for what contradicts itself, all at once, and files that are missing or damaged; OSError.
    """
    root, out = Path(root), Path(out)
    train = Videos(root, "train", year)
    names = list(train.videos)
    if splits == "peers":
        chosen = [(train, "test", names[-LAST:]), *_divided(train, names[:-LAST], validation, 0)]
    elif splits == "lists":
        later = ("validation", "test") if year == "hq" else ("validation",)
        tested = {split: Videos(root, split, year) for split in later}
        chosen = [(part, split if year == "hq" else "test", list(part.videos)) for split, part in tested.items()]
        chosen += [(train, "train", names)] if year == "hq" else _divided(train, names, validation, 0)
    else:
        chosen = _divided(train, names, validation, test)
    parts, problems = {}, []
    for part, split, videos in chosen:
        part.check([number for video in videos for number in part.videos[video]])
        problems += part.problems.lines(part.table)
        meta = {"classes": part.classes, "source": f"YouTube-VIS {year}, {part.table.name}, https://youtube-vos.org", "splits": splits}
        parts[split] = Split(videos, part.record, meta, part.videos.get)
    common.refuse(list(dict.fromkeys(problems)), f"Mend the tables, or fetch frames and annotations again into {root}")
    options = {"root": root, "out": out, "year": year, "splits": splits, "validation": validation, "test": test}
    return common.write(out, "ytvis", parts, options, f"Fetch the file again into {root}", progress)


def _divided(part: "Videos", names: Sequence, validation: float, test: float) -> Iterator[tuple]:
    return ((part, split, videos) for split, videos in common.parted("ytvis", names, validation, test).items())


class Videos(Instances):
    """A table of videos as a COCO table: `videos` has for each the ids of its frames, in the order of the table."""

    LISTS = ("videos", "annotations", "categories")
    KIND = "YouTube-VIS"

    def __init__(self, root: Path, split: str, year: str):
        folders = FOLDERS[split]
        table = [f"ytvis_hq-{name}.json" for name in folders] if year == "hq" else _filled(TABLES, folders)
        photos = _filled(PHOTOS, ("train",) if year == "hq" else folders)
        table, photos = (next((root / one for one in ones if (root / one).exists()), root / ones[0]) for ones in (table, photos))
        if not table.exists() or not photos.exists():
            missing = photos if table.exists() else table
            raise ConversionError(f"{missing} is missing. {common.found(root, missing, LAYOUT)}")
        super().__init__(root, split, table=table, photos=photos)

    def load(self) -> dict:
        table, images, annotations = super().load(), [], []
        fields = {"id": (int, str), "file_names": list, "width": int, "height": int}
        videos = tables.complete(table["videos"], "videos", fields, self.problems)
        fields = {"id": (int, str), "video_id": (int, str), "segmentations": list}
        tracks = tables.complete(table["annotations"], "annotations", fields, self.problems)
        self.problems.twice("has video ids twice", (tables.identity(video["id"]) for video in videos))
        self.problems.twice("has annotation ids twice", (tables.identity(track["id"]) for track in tracks))
        self.problems["has videos without frames"] += [video["id"] for video in videos if not video["file_names"]]
        self.videos, by_video, self.places = {}, defaultdict(list), {}
        for track in sorted(tracks, key=lambda track: tables.order(tables.identity(track["id"]))):
            by_video[tables.identity(track["video_id"])].append(track)
        self.problems["annotates videos that it does not list"] += sorted(by_video.keys() - {tables.identity(one["id"]) for one in videos}, key=str)
        for video in videos:
            name, size = tables.identity(video["id"]), (video["height"], video["width"])
            self.videos[name] = [f"frame {at:05d} of video {name}" for at in range(len(video["file_names"]))]
            for at, (number, file) in enumerate(zip(self.videos[name], video["file_names"])):
                images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
                self.places[number] = name, at
            for rank, track in enumerate(by_video[name]):
                shapes = track["segmentations"]
                if len(shapes) != len(self.videos[name]):
                    what = f"track {track['id']} of video {name}: {len(shapes)} masks, {len(self.videos[name])} frames"
                    self.problems["has tracks of other lengths than their videos"].append(what)
                for number, shape in zip(self.videos[name], shapes):
                    empty = {"size": list(size), "counts": [size[0] * size[1]]}
                    known = {key: track[key] for key in ("category_id", "iscrowd") if key in track}
                    one = {"id": f"{rank:05d}: track {track['id']}, {number}", "image_id": number, "segmentation": shape or empty}
                    annotations.append(one | known)
        return table | {"images": images, "annotations": annotations}

    def ranks(self, seen: list[int]) -> Sequence[int]:
        return seen  # places among the tracks, so one in all frames

    def stored(self, number, labels: np.ndarray, segments: dict[int, dict], **more) -> store.Record:
        clip, at = self.places[number]
        frame = {"clip": str(clip), "frame": at, "boxes": common.boxes(labels)}
        return super().stored(number, labels, segments, **more, **frame)


def _filled(patterns: str, names: Sequence[str]) -> list[str]:
    return [pattern.format(name) for name in names for pattern in patterns.split()]
