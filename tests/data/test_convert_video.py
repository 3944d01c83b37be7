"""Video files, made here by FFmpeg: every container, rotation, variable frame rate, cuts and damage."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dias_lab.__main__ import main
from dias_lab.data import pictures, store
from dias_lab.data.convert import video
from dias_lab.data.convert.common import ConversionError

CODECS = {"mp4": ("libx264", "yuv420p"), "mov": ("mpeg4", "yuv420p"), "avi": ("libx264rgb", "rgb24"), "webm": ("libvpx-vp9", "yuv420p"),
          "mkv": ("ffv1", "yuv420p"), "gif": ("gif", "rgb8")}  # fmt: skip


def frame(number: int) -> np.ndarray:
    """A grey whose shade counts, and a red corner at the top left: [48 64 3]."""
    pixels = np.random.default_rng(number).integers(0, 40, (6, 8, 1), np.uint8).repeat(8, 0).repeat(8, 1).repeat(3, 2) + 100
    pixels[:16, :16] = 250, 10, 10
    return pixels


def make(path: Path, times=range(30), options: dict | None = None, codec=None) -> Path:
    """One frame at each time, in twelfths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, form = codec or CODECS[path.suffix[1:]]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(name, rate=12, options={"qp": "0"} if "rgb" in name else {})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, form, Fraction(1, 12)
        stream.codec_context.time_base = Fraction(1, 12)
        for number, time in enumerate(times):
            image = av.VideoFrame.from_ndarray(frame(number), "rgb24")
            image.pts, image.time_base = time, Fraction(1, 12)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def items(path: Path) -> list[store.Record]:
    return list(store.open(path))


def pixels(record: store.Record) -> np.ndarray:
    return np.asarray(pictures.rgb(record.image)).astype(int)


@pytest.mark.parametrize("ending", CODECS)
def test_every_container_keeps_all_frames(tmp_path, ending):
    found = items(video.convert(make(tmp_path / f"a.{ending}"), tmp_path / "out")["train"])
    assert [item.info["frame"] for item in found] == list(range(30))
    assert [item.info["seconds"] for item in found] == pytest.approx([number / 12 for number in range(30)], abs=0.02)
    assert found[0].info["clip"] == f"a.{ending}" and found[0].image.startswith(b"\x89PNG")
    right = [np.abs(pixels(item) - frame(number)).mean() for number, item in enumerate(found)]
    assert max(right) < (1e-9 if ending == "avi" else 25), right  # rgb8 of the GIF is coarse; the AVI is without loss


def test_a_folder_is_divided_by_file_and_frames_are_chosen(tmp_path, capsys):
    for name in ("a.mp4", "b/c.mkv", "d.avi"):
        make(tmp_path / "in" / name)
    (tmp_path / "in/notes.txt").write_text("no video")
    words = ["--root", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--every", "5", "--seconds", "0.5", "2"]
    assert main(["convert", "video", *words]) == 0
    found = {split: items(tmp_path / f"out/{split}.lmdb") for split in store.SPLITS}
    assert sorted({item.info["clip"] for of in found.values() for item in of}) == ["a.mp4", "b/c.mkv", "d.avi"]
    assert all([item.info["frame"] for item in of] == [10, 15, 20] for of in found.values())
    command = store.open(tmp_path / "out/train.lmdb").meta["command"].split()
    assert main([*command[3:], "--out", str(tmp_path / "again")]) == 0
    assert items(tmp_path / "again/test.lmdb") == found["test"]


def test_variable_frame_rate_keeps_frames_and_times(tmp_path):
    times = [0, 1, 2, 20, 21, 40, 47]
    for ending in ("mp4", "mkv", "webm"):
        found = items(video.convert(make(tmp_path / f"a.{ending}", times), tmp_path / ending)["train"])
        assert [item.info["frame"] for item in found] == list(range(7))
        assert [item.info["seconds"] for item in found] == pytest.approx([time / 12 for time in times], abs=0.02)


@pytest.mark.parametrize("matrix, corner", [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))])
def test_the_rotation_that_a_file_states_is_obeyed(tmp_path, matrix, corner):
    """(a, b, c, d) of the track's header takes (x, y) to (a x + c y, b x + d y), y downwards."""
    path = make(tmp_path / "a.mp4", range(3))
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    picture = pixels(items(video.convert(path, tmp_path / "out")["train"])[0])
    assert picture.shape == ((64, 48, 3) if matrix[0] == 0 else (48, 64, 3))
    rows, columns = (slice(0, 12) if end == 0 else slice(-12, None) for end in corner)
    assert picture[rows, columns, 0].mean() > 200 and picture[rows, columns, 1].mean() < 60


@pytest.mark.parametrize("ending, options", [("mp4", None), ("mp4", {"movflags": "faststart"}), ("avi", None), ("webm", None), ("mkv", None)])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_names_file_and_frame(tmp_path, ending, options, share):
    path = make(tmp_path / f"a.{ending}", options=options)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConversionError, match="frame [0-9]+|is no video, or its beginning or end is damaged|without frames") as caught:
        video.convert(path, tmp_path / "out")
    assert str(path) in str(caught.value) and not list(tmp_path.glob("out/*.lmdb"))


def test_what_there_is_of_a_truncated_file_can_be_taken(tmp_path):
    path = make(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ConversionError, match=r"is cut short after frame \d+ .*--seconds 0 END"):
        list(video.frames(path))
    assert len(items(video.convert(path, tmp_path / "out", seconds=(0, 0.5))["train"])) == 6


def test_damage_in_the_middle(tmp_path):
    path = make(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + len(content) // 3
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="frame [1-9][0-9]* cannot be decoded"):
        list(video.frames(path))


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        samples.pts = 0
        container.mux(stream.encode(samples))
    return path


def test_files_without_video_are_listed_at_once(tmp_path):
    (tmp_path / "in").mkdir()
    sound(tmp_path / "in/sound.mkv")
    (tmp_path / "in/text.mp4").write_text("no video")
    make(tmp_path / "in/good.mp4")
    with pytest.raises(ConversionError, match="(?s)2 problems.*sound.mkv has no video stream.*text.mp4 is no video") as caught:
        video.convert(tmp_path / "in", tmp_path / "out")
    assert "good.mp4" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_video_without_frames(tmp_path):
    path = make(tmp_path / "a.avi", ())
    with pytest.raises(ConversionError, match="a.avi .*(without frames|no video)"):
        video.convert(path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="has no videos"):
        video.convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConversionError, match="a.mkv has no frame between 9 and 10 seconds"):
        video.convert(make(tmp_path / "a.mkv", range(3)), tmp_path / "out", seconds=(9, 10))
    with pytest.raises(ConversionError, match="every=0"):
        video.convert(path, tmp_path / "out", every=0)


def test_ten_thousand_frames_are_streamed(tmp_path, monkeypatch):
    """No more frames are decoded ahead than threads need."""
    ahead, decoded, stored = [], 0, 0

    def many(file, every=1):
        nonlocal decoded
        for number in range(10_000):
            decoded += 1
            ahead.append(decoded - stored)
            yield video.Frame(number, number / 12, Image.new("RGB", (8, 6)))

    real = store.pack

    def counted(record):
        nonlocal stored
        stored += 1
        return real(record)

    path = make(tmp_path / "a.avi", range(2))
    monkeypatch.setattr(video, "frames", many)
    monkeypatch.setattr(store, "pack", counted)
    monkeypatch.setattr(store, "write", lambda path, records, meta: sum(1 for _ in records))
    assert video.convert(path, tmp_path / "out")["train"] == 10_000 and max(ahead) < 100


def test_a_picture_is_read_as_png(tmp_path):
    [first] = items(video.convert(make(tmp_path / "a.avi", range(1)), tmp_path / "out")["train"])
    assert (np.asarray(Image.open(io.BytesIO(first.image))) == frame(0)).all()
