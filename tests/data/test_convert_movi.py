"""MOVi's TFRecord files, written here as TFDS lays them out, without TensorFlow; cut, damaged and hostile ones."""

import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dias_lab.data import pictures, store
from dias_lab.data.convert import movi, tfrecord
from dias_lab.data.convert.common import ConversionError

SIDE, FRAMES = 16, 4


# The format, written from its description


TABLE = list(range(256))
for _ in range(8):
    TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in TABLE]


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_that_of_rfc_3720():
    assert crc32c(b"123456789") == 0xE3069283 and masked(b"abc") == tfrecord.masked(b"abc")


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values) -> bytes:
    if len(values) and isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values, np.ndarray):
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(map(varint, values))))


def example(features: dict) -> bytes:
    entries = (field(1, field(1, name.encode()) + field(2, feature(values))) for name, values in features.items())
    return field(1, b"".join(entries))


def record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + masked(length) + content + masked(content)


def write(path: Path, *contents: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(record, contents)))
    return path


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# A clip: instance 0 moves to the right, instance 1 is seen in frame 2 alone, instance 2 never


def picture(number: int, frame: int) -> np.ndarray:
    return np.random.default_rng([number, frame]).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def mask(frame: int) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[2:6, frame : frame + 8] = 1
    if frame == 2:
        labels[8:16, 4:6] = 2
    return labels


def features(number: int = 0, **changed) -> dict:
    boxes = [[2, frame, 6, frame + 8] for frame in range(FRAMES)] + [[8, 4, 16, 6]]
    found = {
        "metadata/video_name": [f"{number}".encode()],
        "metadata/num_instances": [3],
        "background": [b"sky"],
        "video": [png(picture(number, frame)) for frame in range(FRAMES)],
        "segmentations": [png(mask(frame)) for frame in range(FRAMES)],
        "instances/category": [14, 0, 3],
        "instances/bboxes/ragged_flat_values": np.array(boxes).ravel() / SIDE,
        "instances/bboxes/ragged_row_lengths_0": [4, 1, 0],
        "instances/bbox_frames/ragged_flat_values": [0, 1, 2, 3, 2],
        "instances/bbox_frames/ragged_row_lengths_0": [4, 1, 0],
        "camera/focal_length": np.array([35.0]),
        "events/collisions/force": np.zeros(0),
        "instances/friction": [-1, 1 << 40],
    }
    return {name: value for name, value in (found | changed).items() if value is not None}


def data(root: Path, train: int = 5, name: str = "movi_c") -> Path:
    shards = [range(0, train - 2), range(train - 2, train)]
    for place, numbers in enumerate(shards):
        write(root / f"256x256/1.0.0/{name}-train.tfrecord-{place:05d}-of-00002", *(example(features(number)) for number in numbers))
    write(root / f"256x256/1.0.0/{name}-validation.tfrecord-00000-of-00001", example(features(100)))
    return root


def items(path: Path) -> list[store.Record]:
    return list(store.open(path))


def boxes(record: store.Record) -> dict[int, list[int]]:
    return {int(segment): box for segment, box in record.info["boxes"].items()}


def test_clips_keep_frames_masks_boxes_and_classes(tmp_path):
    movi.convert(data(tmp_path / "in"), tmp_path / "out")
    found = items(tmp_path / "out/test.lmdb")
    meta = store.open(tmp_path / "out/test.lmdb").meta
    assert (meta["dataset"], meta["kind"], meta["count"]) == ("movi_c", "video", FRAMES)
    assert meta["classes"]["14"] == "Shoe" if "14" in meta["classes"] else meta["classes"][14] == "Shoe"
    for frame, item in enumerate(found):
        assert (np.asarray(pictures.rgb(item.image)) == picture(100, frame)).all()
        assert (np.asarray(pictures.decoded(item.segments)) == mask(frame)).all() and item.info["frame"] == frame
        seen = {1: [frame, 2, frame + 8, 6]} | ({2: [4, 8, 6, 16]} if frame == 2 else {})
        assert boxes(item) == seen and item.info["classes"] == {1: 14} | ({2: 0} if frame == 2 else {})
    counts = {split: len(items(tmp_path / f"out/{split}.lmdb")) // FRAMES for split in store.SPLITS}
    assert counts["test"] == 1 and counts["train"] + counts["validation"] == 5 and counts["validation"] >= 1
    assert meta["command"] == f"python -m dias_lab convert movi --root {tmp_path}/in --out {tmp_path}/out --validation 0.05"
    movi.convert(tmp_path / "in", tmp_path / "out")  # in the place of the one that is there


def test_masks_of_16_bits_and_files_of_one_split(tmp_path):
    masks = [png(mask(frame).astype(np.uint16)) for frame in range(FRAMES)]
    deep = features(segmentations=masks, **{"instances/category": None})  # A and B have shapes in place of categories
    write(tmp_path / "in/movi_a-validation.tfrecord-00000-of-00001", example(deep))
    [path] = movi.convert(tmp_path / "in", tmp_path / "out").values()
    assert path.stem == "test" and store.open(path).meta["classes"] is None and "classes" not in items(path)[0].info
    assert boxes(items(path)[2]) == {1: [2, 2, 10, 6], 2: [4, 8, 6, 16]}
    assert all((np.asarray(pictures.decoded(item.segments)) == mask(frame)).all() for frame, item in enumerate(items(path)))


def test_boxes_may_end_between_two_pixels(tmp_path):
    """As in the variants of half the size, whose boxes were measured at full size."""
    rows = np.array([[2.5, 3.5, 3, 4]] * 4 + [[8, 4, 16, 6]]).ravel() / SIDE
    write(tmp_path / "in/movi_c-validation.tfrecord-00000-of-00001", example(features(**{"instances/bboxes/ragged_flat_values": rows})))
    [path] = movi.convert(tmp_path / "in", tmp_path / "out").values()
    assert boxes(items(path)[0]) == {1: [3.5, 2.5, 4, 3]}


def test_two_resolutions_are_not_mixed(tmp_path):
    shutil.copytree(data(tmp_path / "in") / "256x256", tmp_path / "in/128x128")
    with pytest.raises(ConversionError, match="00000-of-00002, .* more than once.*Name one of .*128x128/1.0.0, .*256x256/1.0.0"):
        movi.convert(tmp_path / "in", tmp_path / "out")
    assert len(movi.convert(tmp_path / "in/128x128", tmp_path / "out")) == 3


def test_files_that_are_not_there_are_said(tmp_path, capsys):
    next(data(tmp_path / "in").rglob("*train*00001-of-00002")).unlink()
    movi.convert(tmp_path / "in", tmp_path / "out", progress=True)
    assert "1 of the 2 files of train are there" in capsys.readouterr().out
    data(tmp_path / "in", name="movi_e")
    with pytest.raises(ConversionError, match="has several: movi_c, movi_e"):
        movi.convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ConversionError, match="has no files of MOVi.*movi_c-train"):
        movi.convert(tmp_path / "out", tmp_path / "out")


@pytest.mark.parametrize("change, message", [
    ({"video": None}, "it has no feature 'video'"),
    ({"segmentations": [png(mask(0))]}, "its video has 4 frames, its segmentations 1"),
    ({"video": [], "segmentations": []}, "in frame 0 of 0"),
    ({"instances/category": [1]}, "its 1 instances have 5 boxes in rows of 4, 1, 0"),
    ({"instances/bbox_frames/ragged_flat_values": [0, 1, 2, 3, 4]}, "instance 1 has the box .* in frame 4"),
    ({"instances/bboxes/ragged_flat_values": np.full(20, 1.5)}, "instance 0 has the box"),
    ({"instances/bboxes/ragged_flat_values": np.full(20, np.nan)}, "instance 0 has the box"),
    ({"instances/bboxes/ragged_flat_values": np.zeros(19)}, "4.75 boxes"),
    ({"segmentations": [png(mask(0) * 7)] * FRAMES}, "frame 0: its mask .* with numbers up to 7"),
    ({"segmentations": [png(mask(0)[:8])] * FRAMES}, r"frame 0: its mask is \(8, 16\)"),
    ({"video": [png(picture(0, 0))] * 2 + [b"x"] + [png(picture(0, 3))]}, "record 1: frame 2 is no picture"),
    ({"segmentations": [png(mask(0))] * 3 + [png(mask(0))[:-20]]}, "record 1: frame 3's mask"),
])  # fmt: skip
def test_what_a_record_gets_wrong_is_named(tmp_path, change, message):
    path = write(tmp_path / "in/movi_c-validation.tfrecord-00000-of-00001", example(features()), example(features(1, **change)))
    with pytest.raises(ConversionError, match=message) as caught:
        movi.convert(tmp_path / "in", tmp_path / "out")
    assert f"{path}: record 1" in str(caught.value) and not list(tmp_path.glob("out/*.lmdb"))


def convert(path: Path) -> None:
    movi.convert(path.parent, path.parent / "out")


def test_cut_and_damaged_files_name_the_record(tmp_path):
    path = write(tmp_path / "movi_c-validation.tfrecord-00000-of-00001", *(example(features(number)) for number in range(3)))
    whole, size = path.read_bytes(), len(record(example(features())))
    for length, message in ((size + 5, "record 1: the file is cut short in"), (2 * size + 99, "record 2: the file is cut short: the record ends at")):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match=message):
            convert(path)
    random = np.random.default_rng(0)
    for place in [3, 9, *random.integers(12, size, 20)]:
        content = bytearray(whole)
        content[size + place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        with pytest.raises(ConversionError, match=f"{path}: record 1: its (length|content) fails its checksum"):
            convert(path)
    path.write_bytes(b"<html>not found</html>" * 99)
    with pytest.raises(ConversionError, match="record 0: .*no TFRecord file"):
        convert(path)


HOSTILE = {
    "nothing": b"",
    "text": b"no example at all",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x7f",
    "a number without end": b"\x0a" + b"\xff" * 30,
    "a group": b"\x0b\x0c",
    "an integer in the place of a message": b"\x08\x01",
    "a message in the place of a list": field(1, field(1, field(1, b"video") + field(2, b"\x08\x01"))),
    "floats in the place of pictures": example(features(video=np.zeros(4))),
    "a picture in the place of numbers": example(features(**{"instances/category": [b"x"]})),
    "numbers cut short": field(1, field(1, field(1, b"instances/category") + field(2, field(3, field(1, b"\xff\xff"))))),
    "floats cut short": field(1, field(1, field(1, b"instances/bboxes/ragged_flat_values") + field(2, field(2, field(1, b"xxx"))))),
    "a name that is no text": field(1, field(1, field(1, b"\xff\xfe") + field(2, feature([b"x"])))),
    "no video's name": example(features(**{"metadata/video_name": [7]})),
    "a negative frame": example(features(**{"instances/bbox_frames/ragged_flat_values": [0, -1, 2, 3, 2]})),
    "negative lengths": example(features(**{"instances/bboxes/ragged_row_lengths_0": [-4, 9, 0], "instances/bbox_frames/ragged_row_lengths_0": [-4, 9, 0]})),
    "huge lengths": example(features(**{"instances/bboxes/ragged_row_lengths_0": [1 << 62, 1, 0], "instances/bbox_frames/ragged_row_lengths_0": [1 << 62, 1, 0]})),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_records_are_errors(tmp_path, case):
    path = write(tmp_path / "movi_c-validation.tfrecord-00000-of-00001", HOSTILE[case])
    with pytest.raises(ConversionError, match=f"{path}: record 0"):
        convert(path)


def test_flipped_bytes_with_a_right_checksum_raise_nothing_else(tmp_path):
    content, random = example(features()), np.random.default_rng(1)
    for _ in range(150):
        flipped = bytearray(content)
        flipped[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        [place] = tfrecord.places(write(tmp_path / "x", bytes(flipped)))
        try:
            list(movi._frames(place))
        except ConversionError as error:
            assert "record 0" in str(error)
