"""Published LMDB files in every layout, made here as their converters make them; what is wrong with some; hostile ones."""

import copyreg
import gc
import io
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import av
import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import dataset, pictures, store
from dias_lab.data.convert import legacy, published, untrusted
from dias_lab.data.convert.common import ConversionError
from dias_lab.metrics import segmentation_scores

HEIGHT, WIDTH, IMAGES = 36, 48, 5
CLAZZ, ISTHING = np.array([18, 1, 199, 200, 44], np.uint8), np.array([True, True, False, False, True])


def encoded(pixels: np.ndarray, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def webp(indices: np.ndarray) -> np.ndarray:
    """As OpenCV does it: grey becomes three equal channels, lossless."""
    blob = encoded(np.repeat(indices[..., None], 3, axis=2), "WEBP", lossless=True)
    return np.frombuffer(blob, np.uint8).copy()


def png(indices: np.ndarray) -> np.ndarray:
    return np.frombuffer(encoded(indices, "PNG"), np.uint8).copy()


def photo(number: int, form: str = "JPEG") -> bytes:
    return encoded(np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), form)


def panoptic(number: int) -> np.ndarray:
    """Ranks 1 to 5 of segments, stuff and things, and 0 where nothing is annotated."""
    ranks = np.zeros((HEIGHT, WIDTH), np.uint8)
    tops = 2 + np.random.default_rng(number).permutation(5) * 6
    for rank, top in enumerate(tops, start=1):
        ranks[top : top + 6, 3 + number :] = rank
    return ranks


def objects(number: int) -> tuple[np.ndarray, np.ndarray]:
    """VOC: two objects on background, 0, and where their boundaries are."""
    labels, boundary = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), bool)
    for label, left in ((1, 4), (2, 25 + number)):
        boundary[8:28, left : left + 14] = True
        boundary[9:27, left + 1 : left + 13] = False
        labels[9:27, left + 1 : left + 13] = label
    return labels, boundary


def coco(number: int, release: str) -> dict:
    ranks, encode = panoptic(number), png if release == "v4" else webp
    bbox = np.random.default_rng(number).random((5, 4), np.float32)
    if release == "v2":
        merged = ranks * np.concatenate([[True], ISTHING])[ranks].astype(np.uint8)
        return {"image": photo(number), "bbox": bbox[ISTHING], "segment": webp(merged), "clazz": CLAZZ[ISTHING]}
    sample = {"image": photo(number), "segment": encode(ranks), "clazz": CLAZZ, "isthing": ISTHING}
    return sample | ({"bbox": bbox} if release == "vq-vfm-ocl" else {})


def voc(number: int, release: str) -> dict:
    labels, boundary = objects(number)
    if release == "v2":
        return {"image": photo(number), "segment": webp(np.where(boundary, 0, labels))}
    ranks = np.where(boundary, 0, labels + 1).astype(np.uint8)
    return {"image": photo(number), "segment": png(ranks) if release == "v4" else webp(ranks)}


def clevrtex(number: int, release: str) -> dict:
    encode = png if release == "v4" else webp
    return {"image": photo(number, "PNG"), "segment": encode(objects(number)[0]), "depth": encode(panoptic(number) * 9)}


def write(path: Path, values: list, protocol: int = 4, records: dict | None = None) -> Path:
    """A file of samples (dicts, or values as they are), in transactions as the converters write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [b"%06d" % number for number in range(len(values))]
    packed = [value if isinstance(value, bytes) else pickle.dumps(value, protocol) for value in values]
    records = dict(zip(keys, packed)) | {b"__keys__": pickle.dumps(keys)} | (records or {})
    environment = lmdb.open(str(path), map_size=1 << 30, subdir=False, lock=False, meminit=False)
    with environment.begin(write=True) as transaction:
        for key, value in records.items():
            if value is not None:
                transaction.put(key, value)
    environment.close()
    return path


def release_of(folder: Path, kind, release: str, protocol: int = 4, name: str = "val.lmdb") -> Path:
    path = folder / f"{kind.__name__}-{release}-{protocol}" / name
    return write(path, [kind(number, release) for number in range(IMAGES)], protocol)


def decode(blob: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(blob)))


# Every layout


def true_map(kind, release: str, number: int) -> np.ndarray:
    """What the store must hold, from the source maps."""
    if kind is clevrtex:
        return objects(number)[0]
    if kind is voc:
        labels, boundary = objects(number)
        return np.where(boundary, 0 if release == "v2" else store.VOID, labels)
    ranks = panoptic(number)
    if release == "v2":
        return np.where(np.isin(ranks, np.flatnonzero(ISTHING) + 1), ranks, 0)
    return np.where(ranks == 0, store.VOID, ranks)


LAYOUTS = [
    (coco, "vq-vfm-ocl", "vq-vfm-ocl"),
    (coco, "v2", "v1/v2"),
    (coco, "v3", "v3"),
    (coco, "v4", "v4"),
    (voc, "v2", "vq-vfm-ocl/v1/v2"),
    (voc, "v3", "v3"),
    (voc, "v4", "v4"),
    (clevrtex, "v3", "vq-vfm-ocl/v1/v2/v3"),
    (clevrtex, "v4", "v4"),
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind, release, layout", LAYOUTS, ids=[f"{kind.__name__}-{name}" for kind, name, _ in LAYOUTS])
def test_every_layout_is_recognised_and_keeps_its_maps(tmp_path, kind, release, layout, protocol):
    root = release_of(tmp_path, kind, release, protocol)
    one = store.open(legacy.convert(root, tmp_path / "test.lmdb"))
    meta = one.meta
    assert (meta["dataset"], meta["layout"], meta["split"], meta["count"]) == (kind.__name__, layout, "test", IMAGES)
    assert meta["command"].startswith("python -m dias_lab convert legacy --root") and "image ids" in meta["lost"][0]
    assert any("dias cannot score as v3 and v4 do" in text for text in meta["lost"]) == (
        kind is not clevrtex and release == "v2"
    )
    for number, item in enumerate(one):
        assert item.image == kind(number, release)["image"]
        assert (decode(item.segments) == true_map(kind, release, number)).all()
        assert item.info.pop("source") == {"file": "val.lmdb", "key": f"{number:06d}"}
        if kind is coco:
            kept = [rank for rank in range(1, 6) if release != "v2" or ISTHING[rank - 1]]
            assert item.info["things"] == {rank: bool(ISTHING[rank - 1]) for rank in kept}
            assert item.info["classes"] == {rank: int(CLAZZ[rank - 1]) for rank in kept}
        else:
            assert item.info["things"] == {1: True, 2: True} and "classes" not in item.info
    assert store.verify(one.path)["items"] == IMAGES


@pytest.mark.parametrize("kind", [coco, voc, clevrtex])
def test_v3_and_v4_give_the_same_store(tmp_path, kind):
    paths = [legacy.convert(release_of(tmp_path, kind, name), tmp_path / f"{name}.lmdb") for name in ("v3", "v4")]
    assert list(store.open(paths[0])) == list(store.open(paths[1]))


def scores(path: Path, protocol: str) -> dict:
    true = torch.stack([dataset.read(store.open(path), item)[1] for item in range(IMAGES)])
    return segmentation_scores(predicted(), true, protocol)


def predicted() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(3).integers(0, 5, (IMAGES, HEIGHT // 6, WIDTH // 6)).repeat(6, 1).repeat(6, 2)
    )


def source_map(kind, number: int) -> np.ndarray:
    """The original annotation as protocol dias counts it: void, background with stuff in it, things."""
    if kind is coco:
        return np.array([store.VOID, 1, 2, 0, 0, 5])[panoptic(number)]
    return true_map(kind, "v4", number).astype(int)


@pytest.mark.parametrize("kind", [coco, voc, clevrtex])
def test_scores_are_those_of_the_original_maps(tmp_path, kind):
    true = torch.from_numpy(np.stack([source_map(kind, number) for number in range(IMAGES)]))
    for release in ("v3", "v4") + ("vq-vfm-ocl",) * (kind is coco):
        path = legacy.convert(release_of(tmp_path, kind, release), tmp_path / "test.lmdb")
        for protocol in ("dias", "dias-v1", "spot", "oclf", "videosaur"):
            for name, values in segmentation_scores(predicted(), true, protocol).items():
                assert torch.equal(scores(path, protocol)[name], values)
    if kind is not clevrtex:  # v2 merged what dias leaves out, and dias-v1 does not
        path = legacy.convert(release_of(tmp_path, kind, "v2"), tmp_path / "old.lmdb")
        original = {name: segmentation_scores(predicted(), true, name)["ari"] for name in ("dias", "dias-v1")}
        assert torch.equal(scores(path, "dias-v1")["ari"], original["dias-v1"])
        assert not torch.equal(scores(path, "dias")["ari"], original["dias"])


def test_an_image_without_annotation(tmp_path):
    empty = {"segment": png(np.zeros((HEIGHT, WIDTH), np.uint8)), "clazz": CLAZZ[:0], "isthing": ISTHING[:0]}
    for protocol in (2, 4, 5):
        root = write(tmp_path / f"{protocol}/val.lmdb", [coco(0, "v4"), {"image": photo(1)} | empty], protocol)
        item = store.open(legacy.convert(root, tmp_path / "test.lmdb"))[1]
        assert item.info["things"] == {} and (decode(item.segments) == store.VOID).all()


def test_the_names_of_numpy_1(tmp_path):
    old = [pickle.dumps(coco(0, "v4"), 2).replace(b"numpy._core.", b"numpy.core.")]
    assert store.open(legacy.convert(write(tmp_path / "val.lmdb", old), tmp_path / "test.lmdb"))[0].info["things"][1]


def test_the_split_follows_the_name_or_the_option(tmp_path):
    for name, option, split in (("train", None, "train"), ("val", None, "test"), ("val", "validation", "validation")):
        root = release_of(tmp_path, coco, "v4", name=f"{name}.lmdb")
        assert store.open(legacy.convert(root, tmp_path / "out.lmdb", split=option)).meta["split"] == split
        root.unlink()
    root = release_of(tmp_path, coco, "v4", name="mine.lmdb")
    with pytest.raises(ConversionError, match="mine.lmdb: its name is not one of train, val, validation, test; .*--split"):
        legacy.convert(root, tmp_path / "out.lmdb")


def test_voc_with_an_uncertain_area_needs_a_layout(tmp_path):
    ranks = np.ones((HEIGHT, WIDTH), np.uint8)
    ranks[:9], ranks[-9:] = 0, 2
    root = write(tmp_path / "val.lmdb", [{"image": photo(0), "segment": webp(ranks)}] * 3)
    with pytest.raises(
        ConversionError, match="25% of the area .*3 WebP.* below 15% .*--layout with one of vq-vfm-ocl, v1, v2, v3$"
    ):
        legacy.convert(root, tmp_path / "out.lmdb")
    for layout, counts in (("v1", [9, 18, 9, 0]), ("v3", [18, 9, 0, 9])):
        labels = decode(store.open(legacy.convert(root, tmp_path / f"{layout}.lmdb", layout=layout))[0].segments)
        assert [(labels == label).sum() // WIDTH for label in (0, 1, 2, store.VOID)] == counts
    big = write(
        tmp_path / "png/val.lmdb", [{"image": photo(0), "segment": png(objects(0)[0])}]
    )  # v4 by its format, v2 by its area
    with pytest.raises(ConversionError, match="7[0-9]% of the area .*1 PNG.*one of v4$"):
        legacy.convert(big, tmp_path / "out.lmdb")
    assert not (tmp_path / "out.lmdb").exists()


def test_wrong_options(tmp_path):
    root = release_of(tmp_path, coco, "v3")
    for options, message in (
        ({"dataset": "voc"}, "val.lmdb is of the data set coco, not voc. Leave --dataset out"),
        ({"layout": "v4"}, "do not have the layout v4. Leave --layout out, or name one of v3"),
    ):
        with pytest.raises(ConversionError, match=message):
            legacy.convert(root, tmp_path / "out.lmdb", **options)
    before = root.read_bytes()
    with pytest.raises(ConversionError, match="is the published file itself"):
        legacy.convert(root, root)
    assert root.read_bytes() == before


# Clips

FRAMES = 4


def moving(number: int, frame: int) -> np.ndarray:
    """Object 1 moves, 2 is not seen in one frame, 3 stays."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[3:9, 2 + 3 * frame : 9 + 3 * frame] = 1
    if frame != 1 + number % 2:
        labels[20:30, 5:12] = 2
    labels[20:30, 30:40] = 3
    return labels


def coloured(number: int, frame: int) -> np.ndarray:
    return np.random.default_rng([number, frame]).integers(0, 255, (HEIGHT // 6, WIDTH // 6, 3), np.uint8).repeat(6, 0).repeat(6, 1)


def avi(arrays: list[np.ndarray], codec: str, form: str) -> io.BytesIO:
    """As VVO writes them: in memory, without loss."""
    file, given = io.BytesIO(), "gray" if arrays[0].ndim == 2 else "rgb24"
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream(codec, rate=12, options={"qp": "0"} if codec == "libx264rgb" else {})
        (stream.height, stream.width), stream.pix_fmt = arrays[0].shape[:2], form
        for array in arrays:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), given)))
        container.mux(stream.encode())
    return file


def movi(number: int, release: str) -> dict:
    """RGB handed to OpenCV, which writes BGR: red and blue are exchanged in the file."""
    frames = [coloured(number, frame)[..., ::-1] for frame in range(FRAMES)]
    masks = [moving(number, frame) for frame in range(FRAMES)]
    boxes = np.zeros((FRAMES, 3, 4), np.float32)
    if release == "randsfq":
        flow = [avi(frames, "libx264rgb", "rgb24"), -1.0, 1.0]
        return {"video": avi(frames, "libx264rgb", "rgb24"), "segment": avi(masks, "ffv1", "gray"), "bbox": boxes, "flow": flow, "depth": flow}
    flow = {"data": [[png(masks[0])], [png(masks[0])]], "min": -1.0, "max": 1.0}
    return {"video": [png(frame) for frame in frames], "segment": [png(mask) for mask in masks], "s": 3, "bbox": boxes, "flow": flow}


def ytvis(number: int, release: str) -> dict:
    encode = png if release == "smoothsa" else webp
    masks = [encode(moving(number, frame)) for frame in range(FRAMES)]
    sample = {"video": [photo(10 * number + frame) for frame in range(FRAMES)], "segment": masks}
    return sample | {"clazz": np.array([[9, 4, 7]] * FRAMES, np.uint8)} | ({"s": 3} if release == "smoothsa" else {})


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind, release", [(movi, "randsfq"), (movi, "smoothsa"), (ytvis, "randsfq"), (ytvis, "smoothsa")])
def test_every_layout_of_clips(tmp_path, kind, release, protocol):
    one = store.open(legacy.convert(release_of(tmp_path, kind, release, protocol, "validation.lmdb"), tmp_path / "test.lmdb"))
    meta = one.meta
    assert (meta["dataset"], meta["kind"], meta["split"], meta["count"]) == (kind.__name__, "video", "test", IMAGES * FRAMES)
    assert release in meta["layout"].split("/")
    for item, record in enumerate(one):
        number, frame = divmod(item, FRAMES)
        assert (record.info["clip"], record.info["frame"]) == (f"{number:06d}", frame)
        assert (decode(record.segments) == moving(number, frame)).all()
        seen = [1, 2, 3] if frame != 1 + number % 2 else [1, 3]
        assert list(record.info["things"]) == seen and {int(one) for one in record.info["boxes"]} == set(seen)
        assert {int(one): box for one, box in record.info["boxes"].items()}[1] == [2 + 3 * frame, 3, 9 + 3 * frame, 9]
        if kind is ytvis:
            assert record.image == photo(10 * number + frame)  # the original JPEG
            assert record.info["classes"] == {segment: {1: 9, 2: 4, 3: 7}[segment] for segment in seen}
        else:
            assert (decode(record.image) == coloured(number, frame)).all()  # red is red again


def test_a_frame_that_exif_turns_is_stored_upright(tmp_path):
    upside_down, turned, sample = Image.Exif(), io.BytesIO(), ytvis(0, "smoothsa")
    upside_down[pictures.ORIENTATION] = 3
    Image.fromarray(coloured(0, 0)).save(turned, "JPEG", exif=upside_down)
    sample["video"][0] = turned.getvalue()
    first, second, *_ = store.open(legacy.convert(write(tmp_path / "val.lmdb", [sample]), tmp_path / "test.lmdb"))
    assert (decode(first.segments) == moving(0, 0)[::-1, ::-1]).all() and (decode(second.segments) == moving(0, 1)).all()
    assert first.info["boxes"][1] == [WIDTH - 9, HEIGHT - 9, WIDTH - 2, HEIGHT - 3]


WRONG_CLIPS = {
    "its video has 3 frames, its segment 4": lambda clip: clip | {"video": clip["video"][:3]},
    "its video has 4 frames, its clazz is an array u1 of 2 dimensions: .2, 3": lambda clip: clip | {"clazz": clip["clazz"][:2]},
    "the segment 3, its clip has 2 at most": lambda clip: clip | {"clazz": clip["clazz"][:, :2].copy()},
    "its clazz is vector": lambda clip: clip | {"clazz": clip["clazz"][0]},
    "its image begins with": lambda clip: clip | {"video": [b"x"] * 4},
    "its segment is bytes": lambda clip: clip | {"segment": [b"x"] * 4},
    "its field 'video/0' is neither": lambda clip: clip | {"video": [None]},
    "its field 'segment/0' is neither": lambda clip: {"video": clip["video"]},
    "frame 0 .*segment 255": lambda clip: clip | {"segment": [png(many)] * 4, "clazz": np.ones((4, 255), np.uint8)},
    "image file is truncated|image cannot be decoded": lambda clip: clip | {"video": [photo(0)[:-99]] * 4},
    "two releases are in one file": lambda clip: clip | {"segment": [webp(moving(0, 0))] * 4},
    "Invalid data found": lambda clip: clip | {"video": io.BytesIO(b"no video" * 999), "segment": io.BytesIO(b"x")},
    "its video has 4 frames, its segment 1|two releases": lambda clip: clip | {"video": avi([coloured(0, 0)] * 4, "libx264rgb", "rgb24"), "segment": avi([moving(0, 0)], "ffv1", "gray")},
    "mask is .* and its image|two releases": lambda clip: clip | {"video": avi([coloured(0, 0)] * 4, "libx264rgb", "rgb24"), "segment": avi([moving(0, 0)[:12]] * 4, "ffv1", "gray")},
    "asks for 'posix.system'": lambda clip: clip | {"video": Calls(os.system, "true")},
    "no image as bytes": lambda clip: clip | {"video": [], "segment": []},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG_CLIPS)
def test_what_is_wrong_with_a_clip_is_said(tmp_path, message):
    values = [ytvis(0, "smoothsa"), WRONG_CLIPS[message](ytvis(1, "smoothsa"))]
    with pytest.raises(ConversionError, match=f"000001.*({message})"):
        legacy.convert(write(tmp_path / "val.lmdb", values), tmp_path / "out.lmdb")
    assert not (tmp_path / "out.lmdb").exists()


def test_flipped_bytes_of_videos_in_memory(tmp_path):
    """FFmpeg decodes in the process that may be lost: the clip is read, or there is an error."""
    value, random = pickle.dumps(movi(1, "randsfq")), np.random.default_rng(0)
    values = [bytearray(value) for _ in range(40)]
    for flipped in values[1:]:
        for place in random.integers(0, len(value), 5):
            flipped[place] ^= int(random.integers(1, 256))
    path = write(tmp_path / "val.lmdb", list(map(bytes, values)))
    file = published.PublishedFile(path)
    for key in file.keys:
        try:
            assert all(sample.indices.shape == (HEIGHT, WIDTH) for sample in file.samples(key))
        except ConversionError as error:
            assert key.decode() in str(error)
            if file._script.poll() is not None:
                file = published.PublishedFile(path)


# What can be wrong


def changed(**fields):
    """The sample in the middle with other fields; None removes one."""

    def make(path: Path) -> Path:
        values = [coco(number, "v3") for number in range(3)]
        values[1] = {name: field for name, field in (values[1] | fields).items() if field is not None}
        return write(path, values)

    return make


def with_records(**records):
    values = [coco(number, "v3") for number in range(3)]
    return lambda path: write(path, values, records={key.lstrip("n").encode(): value for key, value in records.items()})


def cut(length: int):
    def make(path: Path) -> Path:
        content = write(path, [coco(number, "v3") for number in range(9)]).read_bytes()
        path.write_bytes(content[:length])
        return path

    return make


def text(content: bytes):
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def folder(path: Path) -> Path:
    release_of(path.parent, coco, "v3", name="train.lmdb").rename(path.parent / "train.lmdb")
    return path.parent


def our_store(path: Path) -> Path:
    record = store.Record(photo(0), None, {"source": 0})
    return store.write(path, [record], {"dataset": "coco", "split": "test"})


ranks, bits = panoptic(1), np.array([1, 2, 0, 0, 1], np.uint8)
unequal = np.repeat(ranks[..., None], 3, axis=2)
unequal[0, 0, 2] += 1
many = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
lossy = np.frombuffer(encoded(unequal, "WEBP", quality=90), np.uint8)
WRONG = {
    "gone.lmdb cannot be read: No such file.* Name a": lambda path: path.parent / "gone.lmdb",
    r"is a folder; name one published file. It has \[.*'train.lmdb'\]": folder,
    "val.lmdb is empty": text(b""),
    "val.lmdb is a zip file. Unpack it": text(b"PK\x03\x04" + bytes(9000)),
    "val.lmdb: it is not an LMDB file": text(b"<html>not found</html>" * 900),
    "is a store of dias_lab already": our_store,
    "val.lmdb: it holds no samples": lambda path: write(path, []),
    r"its keys are \[b'a/1'\], not six digits: another program": lambda path: write(path, [], records={b"a/1": b"x"}),
    r"its keys are \[b'0000001'\]": with_records(n0000001=b"x"),
    "item 000001: it is missing, the next one is 000002": with_records(n000001=None),
    "the record __keys__, which is written last, is missing": with_records(__keys__=None),
    "cut short or damaged. Unpack": cut(9 * 4096),
    "not an LMDB file, or its beginning is damaged": cut(4096),
    "item 000001: it is compressed with zstd": with_records(n000001=b"\x28\xb5\x2f\xfd" + bytes(99)),
    "item 000001: it is not a pickle": with_records(n000001=b""),
    "item 000001: it is not a pickled dict": with_records(n000001=pickle.dumps((1, 2))),
    "item 000001: .*dict whose keys are not short texts": with_records(n000001=pickle.dumps({1: b"x"})),
    "item 000001: its field 'image' is neither bytes": changed(image="text"),
    "item 000001: its field 'clazz' is neither": changed(clazz=(1, 2)),
    "item 000001: its field 'bbox' is neither": changed(bbox=[1, 2]),
    "item 000001: it has no image as bytes": changed(image=None),
    "item 000001: it has no image as bytes or no segments": changed(segment=None),
    "item 000001: its image begins with .* neither JPEG nor PNG": changed(image=b"GIF89a"),
    "item 000001: its mask begins with .* neither PNG nor WebP": changed(segment=np.zeros(99, np.uint8)),
    "item 000001: cannot identify image file": changed(image=b"\xff\xd8\xffxx"),
    "000001.*image cannot be decoded": changed(image=photo(1)[:-200]),
    "item 000001: .*mask.*unequal channels": changed(
        segment=np.frombuffer(encoded(unequal, "WEBP", lossless=True), np.uint8)
    ),
    "item 000001: its WebP mask is not of the kind that keeps": changed(segment=lossy),
    r"item 000001: its mask is \(36, 48\) .*its image \(48, 36\)": changed(segment=webp(ranks.T.copy())),
    "item 000001: its segment is an array f8 of 1": changed(segment=np.zeros(9)),
    "item 000001: its segment is an array u1 of 2": changed(segment=webp(ranks)[None]),
    "item 000001: its segment is bytes": changed(segment=webp(ranks).tobytes()),
    "item 000001: its isthing is an array f4": changed(isthing=ISTHING.astype(np.float32)),
    "item 000001: its isthing has values other than": changed(isthing=bits),
    r"item 000001: its mask has 5 segments, the highest is 5; its fields state \{'clazz': 5, 'isthing': 4\}": changed(
        isthing=ISTHING[:4]
    ),
    "item 000001: its mask has 4 segments, .* some are missing": changed(
        segment=webp(ranks * (ranks != 2)), clazz=CLAZZ[:4], isthing=ISTHING[:4]
    ),
    "item 000001: its mask has the segment 255; a store has at most 253": changed(
        segment=webp(many), clazz=np.ones(255, np.uint8), isthing=np.ones(255, bool)
    ),
    r"item 000001: besides image and segment it has \('bbox', 'clazz'\) .*two releases": lambda path: write(
        path, [coco(0, "v3"), coco(1, "v2")]
    ),
    "item 000001: .* a PNG mask, the first item .* WebP: two releases": lambda path: write(
        path, [coco(0, "v3"), coco(1, "v4")]
    ),
    r"val.lmdb: besides image and segment it has \('flow',\), and WebP masks: no published layout": lambda path: write(
        path, [{"image": photo(0), "segment": webp(ranks), "flow": ranks}]
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path, message):
    path = WRONG[message](tmp_path / "val.lmdb")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match=message) as caught:
        legacy.convert(path, tmp_path / "out" / "test.lmdb")
    assert str(path) in str(caught.value) and os.listdir(tmp_path / "out") == []


def test_a_16_bit_or_colour_png_is_no_mask(tmp_path):
    for pixels in (ranks.astype(np.uint16), unequal):
        root = changed(segment=np.frombuffer(encoded(pixels, "PNG"), np.uint8), isthing=None, clazz=None)
        with pytest.raises(ConversionError, match="item 000001: its PNG mask is not of the kind"):
            legacy.convert(root(tmp_path / "val.lmdb"), tmp_path / "out.lmdb")


# LMDB, compared with liblmdb


def test_the_fields_are_those_that_were_written_last(tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "x.lmdb"
    fields = {b"%06d" % number: random.bytes(int(random.integers(0, 3000)) ** 2 // 900) for number in range(5000)}
    environment = lmdb.open(str(path), map_size=1 << 30, subdir=False, lock=False)
    for keys in np.array_split(sorted(fields, key=lambda key: hash(key)), 20):  # pages split in all places
        with environment.begin(write=True) as transaction:
            for key in map(bytes, keys):
                transaction.put(key, pickle.dumps({"depth": fields[key]}))
    with environment.begin(write=True) as transaction:
        for number in range(4000, 5000):  # and pages become free
            transaction.delete(b"%06d" % number)
        transaction.put(b"000000", pickle.dumps(coco(0, "v3") | {"depth": fields[b"000000"]}))  # it tells the form
        transaction.put(b"__keys__", b"")
    assert environment.stat()["depth"] == 3
    environment.close()
    file = published.PublishedFile(path)
    assert file.keys == sorted(fields)[:4000]
    for key in random.permutation(file.keys).tolist():
        assert file._fields(key)["depth"] == ("bytes", fields[key])


def test_reading_leaves_the_folder_alone_and_no_process(tmp_path):
    path = release_of(tmp_path, coco, "v4")
    before = path.read_bytes(), path.parent.stat().st_mtime_ns
    file = published.PublishedFile(path)
    script = file._script
    assert file.read(b"000004") and script.poll() is None
    assert os.listdir(path.parent) == [path.name]  # no lock file
    script.kill()
    with pytest.raises(ConversionError, match=f"{path}: item 000004: reading it ended with status -9: it is cut short or damaged"):
        file.read(b"000004")
    file = published.PublishedFile(path)
    script = file._script
    del file
    gc.collect()
    assert script.poll() is not None and (path.read_bytes(), path.parent.stat().st_mtime_ns) == before


def page(number: int, flags: int, *nodes: bytes) -> bytes:
    """An LMDB page of 4096 bytes."""
    pointers, content = [], b""
    for node in nodes:
        content = node + content
        pointers.append(4096 - len(content))
    head = struct.pack("<QHHHH", number, 0, flags, 16 + 2 * len(nodes), 4096 - len(content))
    head += struct.pack(f"<{len(nodes)}H", *pointers)
    return head + bytes(4096 - len(head) - len(content)) + content


def branch(target: int, key: bytes = b"") -> bytes:
    return struct.pack("<HHHH", target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32, len(key)) + key


def leaf(key: bytes, value: bytes, flags: int = 0, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    return struct.pack("<HHHH", length & 0xFFFF, length >> 16, flags, len(key)) + key + value


LOOPS = {
    "a branch that is its own child": [page(2, 1, branch(2), branch(2, b"1"))],
    "two branches that double at each level": [page(2 + n, 1, branch(3 + n), branch(3 + n, b"1")) for n in range(30)]
    + [page(32, 2, leaf(b"000000", b"x"))],
    "a page without keys": [page(2, 2)],
    "a leaf out of order": [page(2, 2, leaf(b"1", b""), leaf(b"0", b""))],
    "a pointer out of the file": [page(2, 1, branch(1 << 40))],
    "a value out of the file": [page(2, 2, leaf(b"000000", struct.pack("<Q", 1 << 50), 1, 4000))],
    "a value of 4 GiB": [page(2, 2, leaf(b"000000", struct.pack("<Q", 3), 1, 0xFFFFFFFF))],
    "a table in the table": [page(2, 2, leaf(b"000000", bytes(48), 2))],
    "a page of another number": [page(7, 2, leaf(b"000000", b"x"))],
    "a page of another kind": [page(2, 8, leaf(b"000000", b"x"))],
    "values of a key in a table that has one each": [page(2, 2, leaf(b"000000", bytes(48), 4))],
    "a table of values, which is no page": [page(2, 2, leaf(b"000000", b"\xff" * 64, 4))],
    "a key beyond the file": [page(2, 2, struct.pack("<HHHH", 1, 0, 0, 0xFFFF))],
    "pages of zeros": [bytes(4096 * 30)],
    "pages of ones": [b"\xff" * 4096 * 30],
    "two branches that are each other's child": [page(2, 1, branch(3), branch(3, b"1")), page(3, 1, branch(2), branch(2, b"1"))],
    "a leaf twice": [page(2, 1, branch(3), branch(3, b"1")), page(3, 2, leaf(b"000000", b"x"))],
    "a node beyond its page": [page(2, 2, leaf(b"000000", b"x"))[:-9] + bytes(9)],
}


@pytest.mark.parametrize("flags", [0, 4], ids=["", "of many values a key"])  # MDB_DUPSORT
@pytest.mark.parametrize("pages", LOOPS.values(), ids=LOOPS)
def test_pointers_of_a_hostile_file(tmp_path, pages, flags):
    write(tmp_path / "val.lmdb", [b"x"])
    metas = bytearray((tmp_path / "val.lmdb").read_bytes()[:8192])
    for start in (0, 4096):
        metas[start + 92 : start + 94] = struct.pack("<H", flags)
        metas[start + 128 : start + 136] = struct.pack("<Q", 2)
    (tmp_path / "val.lmdb").write_bytes(bytes(metas) + b"".join(pages))
    start = processor_time()
    with pytest.raises(ConversionError):
        legacy.convert(tmp_path / "val.lmdb", tmp_path / "out.lmdb")
    assert processor_time() - start < 1


def processor_time() -> float:
    """Seconds, ours and those of children that ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def test_sizes_of_pages_that_lmdb_does_not_have(tmp_path):
    content = bytearray(write(tmp_path / "val.lmdb", [coco(0, "v3")]).read_bytes())
    for size in (0, 1, 4097, 1 << 31):
        content[4096 + 40 : 4096 + 44] = content[40:44] = struct.pack("<I", size)
        (tmp_path / "val.lmdb").write_bytes(content)
        with pytest.raises(ConversionError):
            legacy.convert(tmp_path / "val.lmdb", tmp_path / "out.lmdb")


# Hostile pickles


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    """An object whose state makes a file."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __setstate__(self, state: dict):
        Path(state["mark"]).touch()


def opcodes(text: str, mark: Path) -> bytes:
    """A pickle in the text of protocol 0, MARK standing for the file to be made."""
    return text.replace("MARK", str(mark)).encode("latin-1")


def frame(*fields: bytes) -> bytes:
    """A pickled dict of one field, `segment`, beside an image; the field's opcodes are given."""
    return b"\x80\x04}(X\x05\0\0\0imageC\x01xX\x07\0\0\0segment" + b"".join(fields) + b"u."


def name(module: str, attribute: str) -> bytes:
    return b"c%s\n%s\n" % (module.encode(), attribute.encode())


def array(
    shape: bytes = b"K\x01\x85", dtype: bytes = b"X\x02\0\0\0u1", data: bytes = b"C\x01x", made: bytes = b"K\0\x85"
) -> bytes:
    """An array's opcodes under protocol 4, with strange parts."""
    made = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + made + b"C\x01b\x87R"
    kind = name("numpy", "dtype") + dtype + b"\x89\x88\x87R(K\x03X\x01\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    return made + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def extension(mark: Path) -> bytes:
    return b"\x80\x02\x82\xf0X%s\x85R." % (struct.pack("<I", len(f"touch {mark}")) + f"touch {mark}".encode())


def touch(mark: Path) -> str:
    return f"touch {mark}"


def opens(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


LIVE = {  # each makes the file if it is unpickled
    "os.system by REDUCE": lambda mark: pickle.dumps(Calls(os.system, touch(mark))),
    "os.system in a field": lambda mark: pickle.dumps({"image": photo(0), "segment": Calls(os.system, touch(mark))}),
    "os.system as a key": lambda mark: pickle.dumps({Calls(os.system, touch(mark)): b""}),
    "os.system, protocol 0": lambda mark: pickle.dumps(Calls(os.system, touch(mark)), 0),
    "os.system, protocol 2": lambda mark: pickle.dumps(Calls(os.system, touch(mark)), 2),
    "os.system, protocol 5": lambda mark: pickle.dumps(Calls(os.system, touch(mark)), 5),
    "os.system by INST": lambda mark: opcodes("(S'touch MARK'\nios\nsystem\n.", mark),
    "os.system by OBJ": lambda mark: opcodes("(cos\nsystem\nS'touch MARK'\no.", mark),
    "os.system after STOP of another": lambda mark: opcodes("cos\nsystem\n(S'touch MARK'\ntR0}.", mark),
    "subprocess.Popen by INST": lambda mark: opcodes("((S'touch'\nS'MARK'\nlisubprocess\ncall\n.", mark),
    "subprocess.check_call": lambda mark: pickle.dumps(Calls(subprocess.check_call, ("touch", str(mark)))),
    "builtins.eval": lambda mark: pickle.dumps(Calls(eval, opens(mark))),
    "builtins.exec": lambda mark: pickle.dumps(Calls(exec, opens(mark))),
    "builtins.open": lambda mark: pickle.dumps(Calls(open, str(mark), "w")),
    "pathlib's touch by getattr": lambda mark: pickle.dumps(Calls(Path.touch, mark)),
    "operator.attrgetter chain": lambda mark: opcodes(
        "coperator\nattrgetter\n(S'system'\ntR(cimportlib\nimport_module\n(S'os'\ntRtR(S'touch MARK'\ntR.", mark
    ),
    "an object array": lambda mark: pickle.dumps(np.array([Calls(os.system, touch(mark))], object)),
    "os.system beside an array": lambda mark: pickle.dumps((np.zeros(1), Calls(os.system, touch(mark)))),
    "a __setstate__ by BUILD": lambda mark: pickle.dumps(Stateful(mark)),
    "copyreg._reconstructor and BUILD": lambda mark: pickle.dumps(Stateful(mark), 0),
    "a __setstate__ in an array's state": lambda mark: pickle.dumps({"segment": np.array([1, Stateful(mark)], object)}),
    "os.system as a dict's value": lambda mark: opcodes("}S'a'\ncos\nsystem\n(S'touch MARK'\ntRs.", mark),
    "numpy.f2py's evaluation": lambda mark: opcodes("cnumpy.f2py.crackfortran\nmyeval\n(S\"open('MARK', 'w').close()\"\ntR.", mark),
    "os.system behind an unused name": lambda mark: opcodes("cnumpy\nload\n0cos\nsystem\n(S'touch MARK'\ntR.", mark),
    "a registered extension by EXT1": extension,
    "dotted names of STACK_GLOBAL": lambda mark: b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93" + b"X%s\x85R." % (
        struct.pack("<I", len(touch(mark))) + touch(mark).encode()
    ),
    "numpy.memmap": lambda mark: pickle.dumps({"image": photo(0), "segment": Calls(np.memmap, str(mark), "u1", "w+", 0, (9,))}),
    "numpy's format.open_memmap": lambda mark: pickle.dumps(Calls(np.lib.format.open_memmap, str(mark), "w+", "u1", (9,))),
    "numpy.save": lambda mark: opcodes("cnumpy\nsave\n(cbuiltins\nopen\n(S'MARK'\nS'wb'\ntRI1\ntR.", mark),
    "io.open in an array's dtype": lambda mark: opcodes(
        "}S'a'\ncnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcio\nopen\n(S'MARK'\nS'w'\ntR"
        "I0\nS'x'\ntbs.", mark
    ),
    "NEWOBJ": lambda mark: b"\x80\x02cfunctools\npartial\ncos\nsystem\nX%s\x86\x81)R." % (
        struct.pack("<I", len(touch(mark))) + touch(mark).encode()
    ),
    "NEWOBJ_EX": lambda mark: b"\x80\x04cfunctools\npartial\ncos\nsystem\nX%s\x86}\x92)R." % (
        struct.pack("<I", len(touch(mark))) + touch(mark).encode()
    ),
}  # fmt: skip
BIG = struct.pack("<q", 1 << 40)
DOUBLED = b"C\x01x" + b"2\x86" * 40  # DUP and TUPLE2
MEMOED = b"C\x01x" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(40))  # the same without DUP: 2**40 leaves
INERT = {  # each wants memory, time, a strange object or a new module
    "an image of 2**40 bytes": frame(array(made=b"\x8a\x06" + BIG[:6] + b"\x85")),
    "a shape of 2**30": frame(array(shape=b"J\0\0\0\x40\x85")),
    "a made array of 2**30": frame(array(made=b"J\0\0\0\x40\x85", shape=b"K\x02\x85")),
    "bytes of a length": frame(name("builtins", "bytes"), b"J\0\0\0\x40\x85R"),
    "bytearray of a length": frame(name("builtins", "bytearray"), b"J\0\0\0\x40\x85R"),
    "BYTEARRAY8 of 2**40": frame(b"\x96" + BIG + b"x"),
    "BINBYTES of 4 GiB": frame(b"B\xff\xff\xff\xffx"),
    "BINBYTES8 of 2**40": frame(b"\x8e" + BIG + b"x"),
    "BINUNICODE of 4 GiB": frame(b"X\xff\xff\xff\xffx"),
    "LONG4 of 1 MB": frame(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)),
    "LONG4 of a negative size": frame(b"\x8b\xff\xff\xff\xff"),
    "LONG of a million digits": frame(b"L" + b"7" * 1_000_000 + b"L\n"),
    "FRAME of 2**40": b"\x80\x04\x95" + BIG + b"}.",
    "LONG_BINPUT of 2**31": frame(b"C\x01xr\0\0\0\x80"),
    "a million opcodes": frame(b"N0" * 500_000 + b"N"),
    "a million marks": frame(b"(" * 1_000_000),
    "tuples in tuples": frame(b")" + b"\x85" * 900),
    "tuples in 100,000 tuples": frame(b")" + b"\x85" * 100_000),
    "2**40 leaves by DUP": frame(DOUBLED),
    "2**40 leaves by memo": frame(MEMOED),
    "2**40 leaves as shape": frame(array(shape=MEMOED + b"\x85")),
    "2**40 leaves as dtype": frame(array(dtype=MEMOED)),
    "2**40 leaves as a key": b"\x80\x04}" + MEMOED + b"C\x01xs.",
    "2**40 leaves as the value": b"\x80\x04" + MEMOED + b".",
    "a field with a name of 1 MB": b"\x80\x04}X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"Ns.",
    "a dict in itself": b"\x80\x04}q\0X\x05\0\0\0imageh\0s.",
    "a hundred fields of one large text": b"\x80\x02}(X\x01\0\0\0aX" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\0"
    + b"".join(b"X\x02\0\0\0%02d" % n + name("_codecs", "encode") + b"h\0X\x06\0\0\0latin1\x86R" for n in range(99)) + b"u.",
    "an object dtype": frame(array(dtype=b"X\x02\0\0\0O8")),
    "an object dtype and a list": frame(array(dtype=b"X\x02\0\0\0O8", data=b"]C\x01xa")),
    "a raw list as the state": frame(array(data=b"](K\x01K\x02e")),
    "a void dtype": frame(array(dtype=b"X\x02\0\0\0V9")),
    "a dtype by its class": frame(array(dtype=name("numpy", "ndarray"))),
    "a dtype's own state": frame(name("numpy", "dtype"), b"X\x02\0\0\0u1\x85R(K\x03X\x01\0\0\0|NNNJ\0\0\0\x40K\x08K\x3ftb"),
    "a state twice": frame(array(), b"(K\x01K\x01\x85NNNtb"),
    "the state of a function": frame(name("numpy", "ndarray"), b"Nb"),
    "the state of bytes": frame(b"C\x01xNb"),
    "a subclass of ndarray": frame(name("numpy", "memmap"), b"C\x01x\x85R"),
    "_frombuffer of a text": frame(name("numpy.core.numeric", "_frombuffer"), b"(X\x01\0\0\0xNK\x01\x85X\x01\0\0\0CtR"),
    "_frombuffer of objects": frame(name("numpy.core.numeric", "_frombuffer"), b"(C\x08xxxxxxxx", name("numpy", "dtype"),
                                    b"X\x02\0\0\0O8\x85RK\x01\x85X\x01\0\0\0CtR"),
    "_reconstruct of another class": frame(name("numpy.core.multiarray", "_reconstruct"), name("builtins", "bytes"), b"K\0\x85C\x01b\x87R"),
    "a codec that inflates": frame(name("_codecs", "encode"), b"X\x01\0\0\0xX\x03\0\0\0zip\x86R"),
    "a codec that evaluates escapes": frame(name("_codecs", "encode"), b"X\x01\0\0\0xX\x0e\0\0\0unicode_escape\x86R"),
    "_codecs.decode": frame(name("_codecs", "decode"), b"C\x01xX\x03\0\0\0zip\x86R"),
    "latin1 of what is not latin": frame(name("_codecs", "encode"), b"X\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R"),
    "a call of a text": frame(b"X\x02\0\0\0os)R"),
    "a call of a call": frame(name("numpy", "dtype"), b")R)R"),
    "a name that is a number": b"\x80\x04\x8c\x02osK\x01\x93.",
    "a name that is called for": b"\x80\x04\x8c\x02os" + name("builtins", "bytes") + b")R\x93.",
    "a dotted name": b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x18_reconstruct.__globals__\x93.",
    "a name with a line break": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x8c\x01\n\x93.",
    "numpy.load": frame(name("numpy", "load"), b"X\x0b\0\0\0/etc/passwd\x85R"),
    "copyreg._reconstructor": frame(name("copyreg", "_reconstructor"), name("builtins", "object"), name("builtins", "object"), b"N\x87R"),
    "builtins.getattr": frame(name("builtins", "getattr"), name("numpy", "ndarray"), b"X\x04\0\0\0dump\x86R"),
    "a module that is not imported": frame(name("antigravity", "webbrowser")),
    "a module of this package": frame(name("dias_lab.book.ordered", "run")),
    "numpy.fromfile": frame(name("numpy", "fromfile"), b"X\x0b\0\0\0/etc/passwdX\x02\0\0\0u1\x86R"),
    "attributes for a function": frame(name("numpy", "dtype"), b"N}X\x08\0\0\0functionX\x01\0\0\0xs\x86b"),
    "a call that is a key": b"\x80\x04}" + name("builtins", "bytes") + b")RC\x01xs.",
    "100,000 tuples in each other as a key": b"\x80\x04})" + b"\x85" * 100_000 + b"C\x01xs.",
    "a memo that grows": frame(b"C\x01x" + b"".join(b"r" + struct.pack("<I", 1 << n) for n in range(32))),
    "lists that double": frame(b"]" + b"(" + b"C\x01x" * 9 + b"e" + b"".join(b"q%c(" % n + b"h%c" % n * 9 + b"t" for n in range(99))),
    "a text in a hundred texts": frame(b"]q\0" + b"(h\0h\0e" * 20 + b"0C\x01x"),
    "PERSID": frame(b"Pos\n"),
    "BINPERSID": frame(b"X\x02\0\0\0osQ"),
    "EXT2": frame(b"\x83\x01\0"),
    "EXT4": frame(b"\x84\x01\0\0\0"),
    "NEXT_BUFFER": frame(b"\x97\x98"),
    "a set": frame(b"\x8f(K\x01\x90"),
    "a frozenset": frame(b"(K\x01\x91"),
    "a memo that is not there": frame(b"h\x09"),
    "an empty stack": b"\x80\x04R.",
    "no STOP": b"\x80\x04}",
    "two results": b"\x80\x04}}.",
    "more after STOP": b"\x80\x04}.}.",
    "a protocol of the future": b"\x80\xff\x99}.",
}  # fmt: skip


@pytest.fixture
def extension_code():
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)


@pytest.mark.parametrize("case", LIVE)
def test_no_pickle_is_run(tmp_path, case, extension_code):
    mark = tmp_path / "mark"
    value = LIVE[case](mark)
    refused(tmp_path, value)
    root = write(tmp_path / "keys.lmdb", [coco(0, "v3")], records={b"__keys__": value})
    legacy.convert(root, tmp_path / "keys_out.lmdb", split="test")  # nobody reads the keys
    assert not mark.exists()
    try:
        pickle.loads(value)
    except Exception:  # what follows the call may fail
        pass
    assert mark.exists(), "this payload does nothing, so that the test shows nothing"


@pytest.mark.parametrize("case", INERT)
def test_no_pickle_takes_memory_time_or_modules(tmp_path, case):
    refused(tmp_path, INERT[case])


def test_memory_has_a_limit(tmp_path):
    """Half of it may be taken, and a value that asks for twice as much gets none."""
    for size, message in ((untrusted.MEMORY // 2, "EOFError|truncated"), (2 * untrusted.MEMORY, "MemoryError")):
        value = frame(b"\x96" + struct.pack("<q", size) + b"x")
        with pytest.raises(ConversionError, match=f"item 000001: it is not a pickle, or a damaged one .*{message}"):
            legacy.convert(write(tmp_path / f"{size}/val.lmdb", [coco(0, "v3"), value]), tmp_path / "out.lmdb")


def refused(folder: Path, value: bytes) -> None:
    """The value as the item in the middle is an error of bounded cost, which imports and writes nothing."""
    root = write(folder / "val.lmdb", [coco(0, "v3"), value, coco(2, "v3")])
    modules = set(sys.modules)
    tracemalloc.start()
    start = processor_time()
    try:
        with pytest.raises(ConversionError, match="item 000001: ") as caught:
            legacy.convert(root, folder / "out.lmdb")
        gc.collect()  # the reading process has ended
        assert processor_time() - start < 2
        assert tracemalloc.get_traced_memory()[1] < 3e6 + 5 * len(value)
    finally:
        tracemalloc.stop()
    assert set(sys.modules) == modules and not (folder / "out.lmdb").exists()
    assert len(str(caught.value)) < 600


def test_values_have_a_largest_size(tmp_path):
    size = untrusted.MAX_VALUE + 1
    with pytest.raises(ConversionError, match=f"item 000001: it has {size} bytes; no published value has more than {size - 1}"):
        legacy.convert(write(tmp_path / "val.lmdb", [coco(0, "v3"), bytes(size)]), tmp_path / "out.lmdb")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("release", ["v3", "v4"])
def test_flipped_bytes_of_a_value(tmp_path, protocol, release):
    """The sample is as it was, or another sample of the same form, or a ConversionError. Nothing else is ever raised."""
    value, random = pickle.dumps(coco(1, release), protocol), np.random.default_rng(protocol)
    opcodes = [
        place for place in range(len(value)) if place < 40 or place > value.find(b"segment") - 40
    ]  # fewer in the photo
    values = [bytearray(value) for _ in range(250)]
    for flipped in values[1:]:
        flipped[random.choice(opcodes)] ^= int(random.integers(1, 256))
    path, errors = write(tmp_path / "val.lmdb", list(map(bytes, values))), 0
    file = published.PublishedFile(path)
    for key in file.keys:
        try:
            found = file.read(key)
        except ConversionError as error:
            assert f"{path}: item {key.decode()}: " in str(error)
            errors += 1
            if file._script.poll() is not None:  # it was lost
                file = published.PublishedFile(path)
        else:
            assert type(found.image) is bytes and found.indices.shape == (HEIGHT, WIDTH)
    assert 30 < errors < 250


def test_flipped_bytes_and_cuts_of_a_file(tmp_path):
    """The store is written and sound, or there is one error and no store."""
    content = release_of(tmp_path, coco, "v4").read_bytes()
    root, out, random, written = tmp_path / "val.lmdb", tmp_path / "out" / "test.lmdb", np.random.default_rng(0), 0
    out.parent.mkdir()
    places = [*random.integers(0, len(content), 20), *range(0, 160, 8), *range(4096, 4256, 8)]
    leaves = [start for start in range(8192, len(content), 4096) if content[start + 10] == 2]
    places += [start + offset for start in leaves for offset in (*range(0, 32, 5), *range(3960, 4096, 17))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= int(random.integers(1, 256))
        written += one_error_or_a_store(root, out, bytes(damaged))
    assert 20 < written < len(places)
    for length in random.integers(0, len(content), 20):
        written += one_error_or_a_store(root, out, content[:length])


def one_error_or_a_store(root: Path, out: Path, content: bytes) -> bool:
    root.write_bytes(content)
    try:
        legacy.convert(root, out)
    except ConversionError as error:
        assert str(root) in str(error) and os.listdir(out.parent) == []
        return False
    store.verify(out)
    out.unlink()
    return True


# The shell, and being killed


def test_the_command(tmp_path, capsys):
    root = release_of(tmp_path, coco, "v2")
    out = tmp_path / "test.lmdb"
    assert main(["convert", "legacy", "--root", str(root), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"wrote {out}: 5 images of coco, layout v1/v2, split test. Lost: image ids" in printed.out
    assert "stuff and unannotated pixels are background" in printed.out and "coco test: 100%" in printed.err
    assert main(["verify", str(out)]) == 0
    command = store.open(out).meta["command"].split()
    assert main([*command[3:-5], str(tmp_path / "again.lmdb"), *command[-4:]]) == 0  # the recorded command works
    assert list(store.open(out)) == list(store.open(tmp_path / "again.lmdb"))
    capsys.readouterr()
    for wrong in (["--root", str(tmp_path / "gone.lmdb")], ["--root", str(root), "--layout", "v4"]):
        assert main(["convert", "legacy", *wrong, "--out", str(tmp_path / "x.lmdb")]) == 2
        assert "dias_lab convert: refused: " in capsys.readouterr().err
    assert main(["convert", "legacy", "--root", str(root), "--out", str(tmp_path / "no" / "x.lmdb")]) == 1
    assert not (tmp_path / "x.lmdb").exists()


def test_a_killed_conversion_leaves_no_store(tmp_path):
    root, out = write(tmp_path / "val.lmdb", [coco(0, "v4")] * 150), tmp_path / "out" / "test.lmdb"
    out.parent.mkdir()
    code = (
        "import os\nfrom dias_lab.data.convert import legacy, published\nread = published.PublishedFile.samples\n"
        "def killed(self, key):\n    os.kill(os.getpid(), 9) if key == b'000140' else None\n    return read(self, key)\n"
        f"published.PublishedFile.samples = killed\nlegacy.convert({str(root)!r}, {str(out)!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert os.listdir(out.parent) and not out.exists()
    legacy.convert(root, out)
    assert os.listdir(out.parent) == ["test.lmdb"] and store.verify(out)["items"] == 150
