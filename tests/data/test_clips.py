"""Stores of frames and batches of clips: what is together stays together, and bad clips are refused or read rightly."""

import io
import pickle
import shutil
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from dias_lab.config import Config
from dias_lab.data import checking, draws, lmdb_file, store, summary
from dias_lab.data.clips import ClipBatches, Clips, ClipSquares, clip_batches, clip_feature_batches, clip_squares
from dias_lab.data.convert import scenes as converter
from dias_lab.data.dataset import Batches, square
from dias_lab.methods import build
from dias_lab.viz import data_sheet

META = {"dataset": "toy", "split": "train", "kind": "video"}
H, W = 24, 36


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def frame(clip="a", number=0, size=(H, W), masks=True, level=0, **info) -> store.Record:
    """Thing 1 at the left, thing 2 below, stuff 3 at the right; the image is as bright as 40 times its segments, and `level`."""
    labels = np.zeros(size, np.uint8)
    labels[4:12, 6:14], labels[16:22, 8:30], labels[:10, 24:] = 1, 2, 3
    image = np.repeat((labels * 40 + level)[..., None], 3, axis=2).astype(np.uint8)
    things = {"things": {1: True, 2: True, 3: False}} if masks else {}
    info = {"source": f"{clip} {number}", "clip": clip, "frame": number, **things, **info}
    return store.Record(png(image), labels if masks else None, info)


def write(path, records, **meta):
    store.write(path / "train.lmdb", records, {**META, **meta})
    return store.open(path / "train.lmdb")


def clip_of(name="a", count=3, **options) -> list[store.Record]:
    return [frame(name, number, level=number, **options) for number in range(count)]


def config_of(**fields) -> Config:
    return Config.preset("clips", **{"image_size": 16, "batch_size": 2, "clip_frames": 3, "steps": 6, "device": "cpu", "cache_views": 0,
                                     "crop_scale": 0.5, **fields})  # fmt: skip


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        same(a[name], b[name]) if isinstance(a[name], dict) else torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name]))
        for name in a
    )


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    converter.convert_clips(folder, train=5, validation=2, test=2, frames=9)
    return folder


@pytest.fixture
def train_store(small_clips):
    return store.open(small_clips / "train.lmdb")


# The store


def test_frames_are_stored_as_images_and_clips_are_counted(tmp_path):
    opened = write(tmp_path, [*clip_of("a", 3), frame("b", 7), *clip_of("c", 2, size=(30, 30))])
    assert opened.meta["clips"] == [[0, 3], [3, 1], [4, 2]] and len(opened) == 6
    assert [opened.clip_start(item) for item in range(6)] == [0, 0, 0, 3, 4, 4]
    assert store.verify(opened.path)["items"] == 6
    clips = Clips(opened)
    assert [*clips] == [range(0, 3), range(3, 4), range(4, 6)] and [clips.name(clip) for clip in range(3)] == ["a", "b", "c"]
    assert Batches(opened, config_of())[0]["image"].shape == (2, 3, 16, 16)  # an image model reads frames


def test_numbers_may_have_gaps_and_masks_and_objects_may_be_missing(tmp_path):
    empty = frame("a", 9)._replace(segments=np.zeros((H, W), np.uint8))
    empty.info["things"] = {}
    opened = write(tmp_path, [frame("a", 2), frame("a", 5, masks=False), empty])
    assert [record.info["frame"] for record in opened] == [2, 5, 9] and opened.meta["clips"] == [[0, 3]]
    batch = ClipSquares(opened, config_of(image_size=24))[0]
    assert [one.unique().tolist() for one in batch["segments"][0]] == [[0, 1, 2], [255], [0]]


@pytest.mark.parametrize(
    "records, words",
    [
        ([frame("a", 0), frame("b", 0), frame("a", 1)], "item 2 .*frame 1 of clip 'a' comes after another clip"),
        ([frame("a", 3), frame("a", 2)], "item 1 .*frame 2 of clip 'a' follows frame 3; the numbers must rise"),
        ([frame("a", 3), frame("a", 3)], "the numbers must rise"),
        ([frame("a", 0), frame("a", 1, size=(24, 40))], r"frame 1 of clip 'a' has \(40, 24\) pixels .* before \(36, 24\)"),
        ([frame("a", "0")], "a whole number; got 'a', '0'"), ([frame(3, 0)], "got 3, 0"), ([frame("a", True)], "got 'a', True"),
        ([frame("a", 0, boxes={1: [4, 4, 4, 9]})], r"info\['boxes'\] has \[4, 4, 4, 9\] for segment 1; it needs left"),
        ([frame("a", 0, boxes={1: [0, 0, 9]})], "boxes"), ([frame("a", 0, boxes={254: [0, 0, 9, 9]})], "segment 254"),
        ([frame("a", 0, boxes={1: [0, 0, float("inf"), 9]})], "boxes"), ([frame("a", 0, boxes={1: "abcd"})], "boxes"),
    ],
)  # fmt: skip
def test_clips_that_are_none_are_refused(tmp_path, records, words):
    with pytest.raises(store.StoreError, match=words):
        write(tmp_path, records)
    assert not (tmp_path / "train.lmdb").exists()


def test_kinds_are_image_or_video(tmp_path):
    with pytest.raises(store.StoreError, match="'film'; it is image or video"):
        write(tmp_path, clip_of(), kind="film")
    images = write(tmp_path, clip_of(), kind="image")
    assert images.clip_start(2) == 2 and "clips" not in images.meta
    for use in (Clips, partial(ClipBatches, config=config_of()), partial(ClipSquares, config=config_of())):
        with pytest.raises(store.StoreError, match="holds images, not the frames of clips"):
            use(images)


def test_verify_compares_the_clips_of_meta_with_the_frames(tmp_path, monkeypatch):
    path = tmp_path / "train.lmdb"
    for clips in ([[0, 2], [2, 1]], [[0, 2]], None, [[0, 4]]):
        with monkeypatch.context() as patch:
            patch.setattr(checking.ClipIndex, "meta", lambda index, clips=clips: {"clips": clips})
            patch.setattr(store, "verify", lambda *_, **__: None)
            write(tmp_path, clip_of())
        assert store.Store(path).meta["clips"] == clips
        with pytest.raises(store.StoreError, match="its meta's clips are not those of its frames"):
            store.verify(path)
    write(tmp_path, clip_of())
    store.verify(path)


def test_a_video_store_without_clips(tmp_path):
    opened = write(tmp_path, [])
    assert opened.meta["clips"] == [] and len(Clips(opened)) == 0 and store.verify(opened.path)["items"] == 0
    with pytest.raises(ValueError, match="is empty"):
        ClipBatches(opened, config_of())
    assert list(clip_squares(opened, config_of())) == [] and summary.samples(opened.path, 4) == []


def damaged(opened, item: int):
    """The same store with other pixels at this item than its checksum says."""
    def records():
        for number, record in enumerate(opened):
            packed = store.pack(record)
            yield packed._replace(image=png(np.full((H, W, 3), 9, np.uint8))) if number == item else packed
    path = opened.path.with_name("damaged.lmdb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "verify", lambda *_, **__: None)
        store.write(path, records(), META)
    return store.Store(path)


def test_a_broken_frame_names_item_and_clip(tmp_path):
    opened = damaged(write(tmp_path, [*clip_of("a"), *clip_of("b")]), 4)
    for read in (lambda: ClipSquares(opened, config_of())[1], lambda: [ClipBatches(opened, config_of())[step] for step in range(3)]):
        with pytest.raises(store.StoreError, match=r"clip 1 \(items 3 to 5\): .*item 4 is damaged"):
            read()
    assert ClipSquares(opened, config_of())[0]["image"].shape[1] == 3  # the other clip is sound


def test_of_a_long_clip_only_the_frames_asked_for_are_read(tmp_path, monkeypatch):
    packed = store.pack(frame(size=(24, 32), masks=False))
    records = (packed._replace(info={**packed.info, "frame": number}) for number in range(10_000))
    opened = write(tmp_path, (store.Packed(*record) for record in records))
    data = ClipBatches(opened, config_of(clip_stride=50, clip_frames=4))
    data[0]
    read, lmdb_read = [], lmdb_file.read
    monkeypatch.setattr(lmdb_file, "read", lambda path, *keys: (len(keys) > 1 and read.append(keys)) or lmdb_read(path, *keys))
    tracemalloc.start()
    started = time.perf_counter()
    batches = [data[step] for step in range(10)]
    assert time.perf_counter() - started < 5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read) <= 10 * 2 * 5 and peak < 5e6
    items = torch.cat([batch["info"]["item"] for batch in batches])
    assert (items.diff(dim=1) == 50).all() and items[:, 0].unique().numel() > 10 and items.max() > 5000


def test_the_table_counts_clips_and_a_strip_is_a_row(small_clips, tmp_path):
    paths = [small_clips / f"{split}.lmdb" for split in ("train", "test")]
    header, first, second, *_ = summary.table(map(summary.summarise, paths)).splitlines()
    assert header.split()[:3] == ["split", "clips", "frames"] and first.split()[:3] == ["train", "5", "45"]
    images = write(tmp_path, clip_of(), kind="image")
    assert "clips" not in summary.table([summary.summarise(images.path)])
    strips = summary.samples(paths[0], 12)
    assert [[one.name for one in strip][::7] for strip in strips] == [["clip 0: 0", "clip 0: 8"], ["clip 2: 0", "clip 2: 8"], ["clip 4: 0", "clip 4: 8"]]
    figure = data_sheet({"train": strips, "images": summary.samples(images.path, 3)}, "toy")
    rows = {}
    for axes in figure.axes:
        rows.setdefault(round(axes.get_position().y0, 4), []).append(axes)
    assert [len(row) for row in rows.values()] == [8, 8, 8, 3]


# Batches


def test_a_batch_is_a_function_of_seed_and_step(train_store):
    config = config_of()
    data = ClipBatches(train_store, config)
    batch = data[7]
    assert same(batch, pickle.loads(pickle.dumps(ClipBatches(train_store, config)))[7])
    assert not same(batch, data[8]) and not same(batch, ClipBatches(train_store, config, seed=1)[7])
    assert batch["image"].shape == (2, 3, 3, 16, 16) and batch["segments"].shape == (2, 3, 16, 16)
    assert batch["image"].dtype == batch["segments"].dtype == torch.uint8
    assert batch["frames"].dtype == torch.bool and batch["frames"].all() and "boxes" not in batch
    assert batch["info"]["item"].shape == (2, 3) and batch["info"]["clip"].shape == (2,) and batch["info"]["step"] == 7
    whole = ClipBatches(train_store, config.replace(batch_size=4))[3]
    part = ClipBatches(train_store, config.replace(batch_size=4), places=range(2, 4), segments=False)[3]
    assert "segments" not in part and torch.equal(part["image"], whole["image"][2:])
    with pytest.raises(ValueError, match="clip_frames=0 is for images"):
        ClipBatches(train_store, config.replace(clip_frames=0))


def test_an_epoch_shows_every_clip_once_from_frames_that_differ(train_store):
    data = ClipBatches(train_store, config_of(batch_size=5, clip_stride=2))
    starts = set()
    for step in range(20):
        clips, items = data[step]["info"]["clip"], data[step]["info"]["item"]
        assert sorted(clips.tolist()) == list(range(5))
        assert (items.diff(dim=1) == 2).all() and torch.equal(items // 9, clips[:, None].expand(5, 3))
        starts |= set((items[:, 0] % 9).tolist())
    assert starts == set(range(5))  # 9 frames, a clip spans 5


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resume_change_nothing(train_store, workers):
    config = config_of(workers=workers, condition="boxes")
    requests = [draws.normal("slots", 2), draws.normal("order", 3)._replace(per="frame")]
    whole = list(clip_batches(train_store, config, requests=requests))
    resumed = list(clip_batches(train_store, config, step=4, requests=requests))
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert same(whole[3], ClipBatches(train_store, config, requests=requests)[3])
    drawn = whole[0]["draws"]
    assert drawn["slots"].shape == (2, 2) and drawn["order"].shape == (2, 3, 3)
    of_images = draws.draw(config.seed, 0, range(2), requests)
    assert torch.equal(drawn["order"][:, 0], of_images["order"]) and torch.equal(drawn["slots"], of_images["slots"])


def test_all_frames_share_crop_and_flip_and_segments_move_with_them(tmp_path):
    """The frames differ in brightness alone, so that crops that differ would show."""
    opened = write(tmp_path, [*clip_of("a", 5), *clip_of("b", 4)])
    for cache_views in (0, 2):
        seen = set()
        for step in range(12):
            batch = ClipBatches(opened, config_of(batch_size=3, cache_views=cache_views))[step]
            levels = batch["info"]["item"] - 5 * batch["info"]["clip"][:, None]
            plain = batch["image"].int() - levels[:, :, None, None, None]
            assert (plain == plain[:, :1]).all() and (batch["segments"] == batch["segments"][:, :1]).all()
            bright = plain[:, :, 0].float() / 40
            things = torch.where(bright.round() == 3, 0, bright.round())  # stuff
            inside = (bright - bright.round()).abs() < 0.02
            assert (things == batch["segments"])[inside].float().mean() > 0.93
            seen |= {one.numpy().tobytes() for one in batch["segments"][:, 0]}
        assert len(seen) > 8 if cache_views == 0 else 3 <= len(seen) <= 8


def test_a_short_clip_is_padded_with_its_last_frame(tmp_path):
    opened = write(tmp_path, clip_of("a", 3))
    batch = ClipBatches(opened, config_of(clip_frames=5))[0]
    assert batch["frames"].tolist() == [[True] * 3 + [False] * 2] * 2
    assert batch["info"]["item"].tolist() == [[0, 1, 2, 2, 2]] * 2
    assert (batch["image"][:, 3:] == batch["image"][:, 2:3]).all() and (batch["image"][:, 1] != batch["image"][:, 2]).any()
    strided = ClipBatches(opened, config_of(clip_frames=3, clip_stride=2))[0]
    assert strided["info"]["item"].tolist() == [[0, 2, 2]] * 2 and strided["frames"].tolist() == [[True, True, False]] * 2
    one = ClipBatches(write(tmp_path, [frame()]), config_of())[0]  # a clip of one frame
    assert one["info"]["item"].tolist() == [[0, 0, 0]] * 2 and one["frames"].tolist() == [[True, False, False]] * 2


def test_squares_are_whole_clips_in_order(tmp_path):
    opened = write(tmp_path, [*clip_of("a", 3), frame("b", 0), *clip_of("c", 2)])
    found = list(clip_squares(opened, config_of(image_size=20)))
    assert [batch["info"]["item"].tolist() for batch in found] == [[[0, 1, 2]], [[3]], [[4, 5]]]
    assert [batch["info"]["clip"].tolist() for batch in found] == [[0], [1], [2]] and "step" not in found[0]["info"]
    assert found[0]["image"].shape == (1, 3, 3, 20, 20) and found[0]["frames"].tolist() == [[True] * 3]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(opened[4].image)))).permute(2, 0, 1)[None]
    assert torch.equal(found[2]["image"][0, 0], square(pixels, None, 20)[0][0])
    assert len(list(clip_squares(opened, config_of(), limit=2))) == 2
    assert [batch["info"]["clip"].item() for batch in clip_squares(opened, config_of(), first=1, every=2)] == [1]


# Boxes


def boxes_of(opened, **fields):
    """The boxes [S 4] that an evaluation shows, and those of a training's uncropped view."""
    return ClipSquares(opened, config_of(condition="boxes", num_slots=4, **fields))[0]["boxes"][0]


def test_boxes_are_of_the_first_frame_in_the_square(tmp_path):
    known = {2: [8, 16, 30, 22], 1: [6, 4, 14, 12]}
    expected = torch.tensor([[0, 4 / 24, 8 / 24, 12 / 24], [2 / 24, 16 / 24, 1, 22 / 24], [-1, -1, -1, -1]])
    for given in ({"boxes": known}, {}, {"boxes": {2: known[2]}}):  # or found in the map
        opened = write(tmp_path, [frame(**given), frame("a", 1, boxes={1: [0, 0, 1, 1]})])
        found = boxes_of(opened)
        torch.testing.assert_close(found, expected)
        assert found.dtype == torch.float32
    outside = {1: [-40, -9, 3, 12], 2: [8.5, 16, 300, 22]}  # the square begins at column 6
    torch.testing.assert_close(boxes_of(write(tmp_path, [frame(boxes=outside)]))[0], torch.tensor([2.5 / 24, 16 / 24, 1, 22 / 24]))
    assert (boxes_of(write(tmp_path, [frame(boxes=outside)]))[1:] == -1).all()
    without_masks = write(tmp_path, [frame(masks=False, boxes=known)])
    torch.testing.assert_close(boxes_of(without_masks), expected)


def test_boxes_follow_crop_and_flip(tmp_path):
    """They are those of the map that is seen, but for a pixel at the edges."""
    opened, counts = write(tmp_path, clip_of("a", 3)), set()
    for cache_views in (0, 2):
        data = ClipBatches(opened, config_of(condition="boxes", image_size=120, num_slots=6, cache_views=cache_views))
        for step in range(12):
            batch = data[step]
            for boxes, segments in zip(batch["boxes"], batch["segments"][:, 0]):
                found = []
                for label in segments.unique()[1:]:
                    y, x = (segments == label).nonzero(as_tuple=True)
                    found.append(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]))
                counts.add(len(found))
                assert (boxes[: len(found)] * 120 - torch.stack(found)).abs().max() < 2 and (boxes[len(found) :] == -1).all()
    assert counts == {1, 2}  # a crop may leave one out


def test_boxes_that_cannot_be_given(tmp_path):
    opened = write(tmp_path, [frame("many")])
    config = config_of(condition="boxes", num_slots=2)
    for data in (ClipBatches(opened, config), ClipSquares(opened, config)):
        with pytest.raises(ValueError, match="clip 'many', has 2 objects, and num_slots=2 has room for 1"):
            data[0]
    assert "boxes" not in ClipBatches(opened, config.replace(condition="none"))[0]
    opened = write(tmp_path, [frame("bare", masks=False)])
    with pytest.raises(ValueError, match="clip 'bare', has neither boxes nor masks"):
        boxes_of(opened)
    assert (boxes_of(write(tmp_path, [frame(masks=False, boxes={})])) == -1).all()


# The cache of features


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_clips_are_those_of_the_pixels(tmp_path, small_clips, workers):
    folder = shutil.copytree(small_clips, tmp_path / "clips")
    opened = store.open(folder / "train.lmdb")
    config = config_of(image_size=32, backbone_size=32, cache_views=2, condition="boxes", workers=workers, steps=3, conditioning="none")
    backbone = build(config.replace(clip_frames=0, condition="none")).backbone
    cached = list(clip_feature_batches(opened, config, backbone))
    pixels = list(clip_batches(opened, config))
    for a, b in zip(cached, pixels, strict=True):
        assert a["features"].shape[:2] == (2, 3) and a["features"].dtype == torch.float16 and "image" not in a
        assert all(torch.equal(a[name], b[name]) for name in ("frames", "boxes")) and same(a["info"], b["info"])
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        with torch.no_grad():
            maps = backbone((b["image"].flatten(0, 1) - mean) / std).unflatten(0, (2, 3))
        torch.testing.assert_close(a["features"].float(), maps, rtol=2e-3, atol=2e-3)
    assert same(list(clip_feature_batches(opened, config, backbone, step=2))[0], cached[2])
