import io
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from dias_lab import files
from dias_lab.trace import CLIP_AXES, AttentionTrace, upsample

B, T, N, h, w, H, W = 2, 3, 4, 5, 6, 20, 27


@pytest.fixture
def fields():
    random = np.random.default_rng(0)
    keep = np.ones((B, N), bool)
    keep[1, 2] = False
    return {
        "images": random.integers(0, 256, (B, H, W, 3), dtype=np.uint8),
        "attention": maps(random, (T, B)),
        "decoder_attention": maps(random, (B,)),
        "keep": keep,
        "segments": random.integers(0, 4, (B, H, W), dtype=np.uint8),
        "names": ["apple", "bowl, äöü"],
        "about": {"method": "dias", "seed": 3},
    }


def maps(random, leading):
    logits = 3 * random.standard_normal((*leading, N, h, w))
    return (np.exp(logits) / np.exp(logits).sum(axis=-3, keepdims=True)).astype(np.float32)


@pytest.fixture
def trace(fields):
    return AttentionTrace(**fields)


def test_save_then_load_is_the_same_trace(trace, tmp_path):
    path = tmp_path / "new folder" / "x.npz"
    trace.save(path)
    again = AttentionTrace.load(path)
    for name in ("images", "attention", "decoder_attention", "keep", "segments"):
        first, second = getattr(trace, name), getattr(again, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert again.names == trace.names
    assert again.about == trace.about == {"schema": 3, "axes": "T B N h w", "method": "dias", "seed": 3}
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]


def test_what_is_optional_stays_none(fields, tmp_path):
    fields |= {"decoder_attention": None, "segments": None, "names": []}
    AttentionTrace(**fields).save(tmp_path / "x.npz")
    again = AttentionTrace.load(tmp_path / "x.npz")
    assert again.decoder_attention is None and again.segments is None
    assert again.names == ["0", "1"]
    assert again.stops == [0, 1, 2]


def test_a_failed_save_leaves_the_old_file(trace, fields, tmp_path):
    trace.save(tmp_path / "x.npz")
    before = (tmp_path / "x.npz").read_bytes()
    fields["about"] = {"seed": {1, 2}}
    with pytest.raises(ValueError, match="JSON"):
        AttentionTrace(**fields).save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_maps_become_half_precision(trace, fields):
    assert trace.attention.dtype == trace.decoder_attention.dtype == np.float16
    np.testing.assert_allclose(trace.attention, fields["attention"], atol=1e-3)
    assert (trace.num_images, len(trace), trace.num_iterations, trace.num_slots) == (B, B, T, N)
    assert trace.stops == [0, 1, 2, "decoder"]


@pytest.mark.parametrize("size", [(20, 27), (5, 6), (16, 16), (3, 4), (1, 1)])
def test_upsampling_equals_torch(size):
    values = np.random.default_rng(0).random((2, 3, 5, 6), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values), size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample(values, *size), expected.numpy(), atol=1e-6)


def test_segments_equal_torch(fields):
    trace = AttentionTrace(**fields | {"keep": np.ones((B, N), bool)})
    for which in trace.stops:
        values = torch.from_numpy(trace.maps_of(which).astype(np.float32))
        larger = torch.nn.functional.interpolate(values, (H, W), mode="bilinear", align_corners=False)
        segments = trace.segments_of(which)
        assert segments.dtype == np.uint8
        np.testing.assert_array_equal(segments, larger.argmax(dim=1).numpy())


def test_the_last_map_has_a_name(fields):
    trace = AttentionTrace(**fields)
    np.testing.assert_array_equal(trace.segments_of("last"), trace.segments_of(trace.num_iterations - 1))
    with pytest.raises(ValueError, match="has no map 'lost'"):
        trace.maps_of("lost")


def test_slots_that_are_left_out_never_win(fields):
    for maps in (fields["attention"][-1, 1], fields["decoder_attention"][1]):
        maps[2] = 0
        maps /= maps.sum(axis=0)
    trace = AttentionTrace(**fields)
    assert 2 in trace.segments_of(0)[1]  # it was still there
    for which in trace.stops[-2:]:
        assert 2 not in trace.segments_of(which)[1]


def test_entropy_is_zero_when_decided_and_one_when_not(fields):
    attention = np.full((T, B, N, h, w), 1 / N, np.float32)
    attention[1] = np.eye(N, dtype=np.float32)[1][:, None, None]
    trace = AttentionTrace(**fields | {"attention": attention})
    assert trace.entropy_of(0).shape == (B, h, w)
    assert trace.entropy_of(0).dtype == np.float32
    np.testing.assert_allclose(trace.entropy_of(0), 1, atol=1e-3)
    assert (trace.entropy_of(1) == 0).all()


@pytest.fixture
def training(fields):
    """A trace of steps 0, 10 and 30; what is kept differs between them."""
    random, traces = np.random.default_rng(1), {}
    for step in (0, 10, 30):
        keep = random.random((B, N)) < 0.7
        keep[:, 0] = True
        changed = {"attention": maps(random, (T, B)), "decoder_attention": maps(random, (B,)), "keep": keep}
        traces[step] = AttentionTrace(**fields | changed)
    return AttentionTrace.over_training(traces), traces


def same(first, second):
    names = ("images", "attention", "decoder_attention", "keep", "segments")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names) and first.names == second.names


def test_a_training_holds_the_trace_of_each_step(training, tmp_path):
    whole, traces = training
    whole.save(tmp_path / "training.npz")
    for trace in (whole, AttentionTrace.load(tmp_path / "training.npz")):
        assert trace.training_steps.dtype == np.int64 and trace.training_steps.tolist() == [0, 10, 30]
        assert trace.training_attention.dtype == trace.training_decoder_attention.dtype == np.float16
        for step, plain in traces.items():
            assert same(trace.at(step), plain) and trace.at(step).training_steps is None
            assert trace.at(step).about == plain.about | {"step": step}
        assert same(trace, traces[30]) and trace.about == traces[30].about  # all who know no steps read the last one


def test_choosing_images_chooses_them_at_every_step(training):
    whole, traces = training
    for images in (1, [1, 0], slice(1, None)):
        for step, plain in traces.items():
            assert same(whole[images].at(step), plain[images])


def test_a_training_without_a_decoder(training):
    traces = {step: replace(trace, decoder_attention=None) for step, trace in training[1].items()}
    whole = AttentionTrace.over_training(traces)
    assert whole.training_decoder_attention is None and whole.at(10).stops == [0, 1, 2]


def test_steps_that_are_not_there_are_named(trace, training):
    with pytest.raises(ValueError, match="no maps of training step 20; it has those of 0, 10, 30"):
        training[0].at(20)
    with pytest.raises(ValueError, match="no maps of training step 0; it is of one model, not of a training"):
        trace.at(0)


@pytest.mark.parametrize(
    "changed, message",
    [
        (lambda t: {"training_steps": t.training_steps[::-1]}, r"whole numbers \[K\] from 0 that rise, got \[30, 10, 0\]"),
        (lambda t: {"training_steps": np.array([0, 10, 10])}, r"that rise, got \[0, 10, 10\]"),
        (lambda t: {"training_steps": np.array([-1, 0, 1])}, "from 0"),
        (lambda t: {"training_steps": t.training_steps / 2}, "whole numbers"),
        (lambda t: {"training_steps": t.training_steps[1:]}, r"training_keep must be \[K B N\], here \[2 2 4\], got \[3, 2, 4\]"),
        (lambda t: {"training_attention": t.training_attention[:, 1:]}, r"\[K T B N h w\], here \[3 3 2 4 5 6\], got \[3, 2,"),
        (lambda t: {"training_attention": t.training_attention / 2}, r"number of the step, iteration, image, row, column"),
        (lambda t: {"training_attention": t.training_attention * np.nan}, "training_attention .* finite"),
        (lambda t: {"training_decoder_attention": t.training_decoder_attention[..., 1:]}, r"here \[3 2 4 5 6\]"),
        (lambda t: {"training_decoder_attention": None}, "all of them; got training_steps, training_attention, training_keep"),
        (lambda t: {"training_steps": None}, "the maps of training steps are training_steps, "),
        (lambda t: {"decoder_attention": None}, "all of them; got"),
        (lambda t: {"keep": ~t.keep}, "keep must be that of the last training step"),
        (lambda t: {"attention": t.training_attention[0]}, "attention must be that of the last training step"),
    ],
)
def test_wrong_maps_of_training_steps_are_named(training, changed, message):
    with pytest.raises(ValueError, match=message):
        replace(training[0], **changed(training[0]))


def test_steps_of_other_pictures_do_not_go_together(training):
    traces = training[1]
    for wrong, message in (
        (traces[10][:1], r"images of step 10 are \[1, 20, 27, 3\], and those of step 30 \[2, 20, 27, 3\]"),
        (replace(traces[10], images=traces[10].images[:, :, :9], segments=None), r"step 10 are \[2, 20, 9, 3\]"),
        (replace(traces[10], images=traces[10].images[::-1]), "the pictures of step 10 are not those of step 30"),
        (replace(traces[10], attention=traces[10].attention[1:]), r"attention of step 10 are \[2, 2, 4, 5, 6\]"),
        (replace(traces[10], decoder_attention=None), r"decoder_attention of step 10 are \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            AttentionTrace.over_training(traces | {10: wrong})
    with pytest.raises(ValueError, match="at least one step"):
        AttentionTrace.over_training({})


@pytest.mark.parametrize("schema", [1, 2])
def test_files_of_older_schemas_load(change_file, trace, schema):
    again = AttentionTrace.load(change_file(about=text({"schema": schema, "axes": "T B N h w", "seed": 3})))
    assert same(again, trace) and again.training_steps is None and again.leader is None and again.about["schema"] == 3


@pytest.fixture
def merged(fields):
    """Slot 2 of the second image goes into slot 0 after two of three iterations."""
    leader = np.broadcast_to(np.arange(N), (T, B, N)).copy()
    leader[2, 1, 2] = 0
    return fields | {"leader": leader}


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.from_numpy, np.ndarray.tolist])
def test_leaders_are_kept_small(merged, kind, tmp_path):
    leader = merged["leader"]
    trace = AttentionTrace(**merged | {"leader": kind(leader)})
    trace.save(tmp_path / "x.npz")
    for one in (trace, AttentionTrace.load(tmp_path / "x.npz")):
        assert one.leader.dtype == np.uint8
        np.testing.assert_array_equal(one.leader, leader)
    np.testing.assert_array_equal(trace[1].leader, leader[:, 1:])
    np.testing.assert_array_equal(trace[[1, 0]].leader, leader[:, ::-1])


def test_a_training_has_the_leaders_of_its_last_step(merged, fields, tmp_path):
    traces = {0: AttentionTrace(**fields | {"keep": np.ones((B, N), bool)}), 7: AttentionTrace(**merged)}
    over = AttentionTrace.over_training(traces)
    over.save(tmp_path / "x.npz")
    for one in (over, AttentionTrace.load(tmp_path / "x.npz")):
        np.testing.assert_array_equal(one.leader, merged["leader"])
        np.testing.assert_array_equal(one.at(7).leader, merged["leader"])
        assert one.at(0).leader is None
    assert AttentionTrace.over_training({9: traces[0], 7: traces[7]}).leader is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a[:2], r"leader must be \[T B N\], here \[3 2 4\], got \[2, 2, 4\]"),
        (lambda a: a / 1, r"leader must be uint8 \[T B N\], got float64"),
        (lambda a: a > 0, "got bool"),
        (lambda a: np.where(a == 3, 4, a), r"a slot, 0 to 3, that leads itself, .*; got 4 at \(iteration, image, slot\) = \(0, 0, 3\)"),
        (lambda a: np.where(a == 3, -1, a), "got -1"),
        (lambda a: a + np.eye(N, dtype=int)[1] * (a == 1) * (a[..., 2:3] == 0), r"got 2 at .* = \(2, 1, 1\)"),  # leads to 2, which has gone into 0
        (lambda a: a[[0, 0, 0]], r"one that is kept; got 2 at .* = \(2, 1, 2\)"),
        (lambda a: np.where(a == 1, 0, a), r"one that is kept; got 0 at .* = \(2, 0, 1\)"),
    ],
)
def test_wrong_leaders_are_named(merged, change, message):
    with pytest.raises(ValueError, match=message):
        AttentionTrace(**merged | {"leader": change(merged["leader"])})


@pytest.mark.parametrize("images", [1, [1], slice(1, None), np.array([False, True])])
def test_choosing_images(trace, images):
    chosen = trace[images]
    assert chosen.names == ["bowl, äöü"] and chosen.num_images == 1
    np.testing.assert_array_equal(chosen.segments_of("decoder"), trace.segments_of("decoder")[1:])
    np.testing.assert_array_equal(chosen.attention, trace.attention[:, 1:])
    np.testing.assert_array_equal(chosen.segments, trace.segments[1:])
    assert chosen.about == trace.about


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("images", lambda a: a[0], r"images must be \[B H W 3\], here \[\? \? \? 3\]"),
        ("images", lambda a: a / 255, "images must be uint8.*float64"),
        ("attention", lambda a: a[:, :1], r"attention must be \[T B N h w\], here \[\? 2 \? \? \?\], got \[3, 1,"),
        ("attention", lambda a: a[:0], r"got \[0, 2,"),
        ("attention", lambda a: (a * 100).astype(int), "attention must be floats"),
        ("attention", lambda a: a * np.nan, "finite"),
        ("attention", lambda a: a * 4, r"in \[0, 1\]"),
        ("attention", lambda a: a / 2, r"sum to 1 over slots, got 0.5 at \(iteration, image, row, column\) = \(0, 0"),
        ("decoder_attention", lambda a: a[:, 1:], r"decoder_attention must be \[B N h w\], here \[2 4 "),
        ("decoder_attention", lambda a: a / 2, r"decoder_attention must sum .* \(image, row, column\)"),
        ("keep", lambda a: a[:, 1:], r"keep must be \[B N\], here \[2 4\], got \[2, 3\]"),
        ("keep", lambda a: a.astype(float), "keep must be bool"),
        ("segments", lambda a: a[:, 1:], r"segments must be \[B H W\], here \[2 20 27\]"),
        ("segments", lambda a: a.astype(int), "segments must be uint8"),
        ("names", lambda a: a[:1], "1 names for 2 images"),
        ("about", lambda a: [], "about must be a dict"),
        ("about", lambda a: {"axes": "B T"}, "about\\['axes'\\]"),
    ],
)
def test_bad_fields_are_named(fields, name, change, message):
    fields[name] = change(fields[name])
    with pytest.raises(ValueError, match=message):
        AttentionTrace(**fields)


def test_an_image_without_slots_needs_no_sum(fields):
    fields["keep"][1] = False
    fields["attention"][:, 1] = 0
    AttentionTrace(**fields).segments_of(0)


@pytest.fixture
def clips(fields):
    """Three clips of the two pictures."""
    three = {name: np.concatenate([value] * 3, int(name == "attention")) for name, value in fields.items() if name not in ("names", "about")}
    return AttentionTrace(**three, names=[f"clip {number // 2} frame {number % 2}" for number in range(6)], about={"frames": 2, "seed": 3})


def test_frames_of_clips(clips, trace, tmp_path):
    clips.save(tmp_path / "x.npz")
    for one in (clips, AttentionTrace.load(tmp_path / "x.npz")):
        assert (one.frames, one.num_clips, one.num_images) == (2, 3, 6)
        assert one.about == {"schema": 3, "axes": CLIP_AXES, "frames": 2, "seed": 3}
        clip = one.clip(1)
        assert (clip.names, clip.frames, clip.num_clips) == (["clip 1 frame 0", "clip 1 frame 1"], 2, 1)
        np.testing.assert_array_equal(clip.attention, trace.attention)
    assert (trace.frames, trace.num_clips) == (None, 0)
    assert replace(trace, about={**trace.about, "frames": 1}).about["axes"] == CLIP_AXES  # "T B N h w" was filled in
    told = f"it has {clips.num_clips}, of {clips.frames} frames", r"it has none: no about\['frames'\]"
    for one, number, there in ((clips, 3, told[0]), (clips, -1, told[0]), (trace, 0, told[1])):
        with pytest.raises(ValueError, match=f"no clip {number}; {there}"):
            one.clip(number)


@pytest.mark.parametrize(
    "images, left", [(slice(2, None), 2), ([4, 5, 0, 1], 2), (slice(None), 3), (slice(1, 5), None), ([0, 1, 2], None), ([1, 0], None), (3, None), ([0, 2], None)]
)
def test_parts_of_clips_are_images(clips, images, left):
    chosen = clips[images]
    assert chosen.frames == (2 if left else None) and chosen.num_clips == (left or 0)
    assert chosen.about == {"schema": 3, "axes": CLIP_AXES if left else "T B N h w", "seed": 3} | ({"frames": 2} if left else {})
    np.testing.assert_array_equal(chosen.keep, np.atleast_2d(clips.keep[images]))


@pytest.mark.parametrize("about", [{"frames": 4}, {"frames": 0}, {"frames": -2}, {"frames": 2.0}, {"frames": True}, {"frames": "2"}, {"axes": CLIP_AXES}])
def test_wrong_numbers_of_frames_are_named(clips, about):
    with pytest.raises(ValueError, match=r"about\['frames'\] must be the whole number of frames .* the 6 images, .*, got " + re.escape(repr(about.get("frames")))):
        replace(clips, about=about)


def test_a_training_of_clips(clips):
    over = AttentionTrace.over_training({0: clips, 5: clips})
    assert (over.frames, over.at(0).frames, over.clip(2).at(5).num_clips) == (2, 2, 1)


def test_unknown_maps_are_named(trace):
    with pytest.raises(ValueError, match="no map 3; it has 0, 1, 2, 'decoder'"):
        trace.segments_of(3)


@pytest.fixture
def change_file(trace, tmp_path):
    """Saves the trace with some arrays replaced (None: left out); returns the path."""

    def change(**changed):
        path = tmp_path / "changed.npz"
        trace.save(path)
        with np.load(path) as archive:
            arrays = {**archive, **changed}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path

    return change


def text(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"about": text({"schema": 4})}, "schema is 4.*update"),
        ({"about": text({"schema": "1"})}, "schema is '1'"),
        ({"about": np.zeros(3)}, "about must be JSON"),
        ({"about": np.frombuffer(b"\xff{", np.uint8)}, "not a trace"),
        ({"attention": None}, "no array attention"),
        ({"names": text("ab")}, "names must be a list, got str"),
        ({"keep": np.ones((B, N + 1), bool)}, "keep must be"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "[Oo]bject"),
    ],
)
def test_bad_files_are_named(change_file, changed, message):
    path = change_file(**changed)
    with pytest.raises(ValueError, match=f"changed.npz.*{message}"):
        AttentionTrace.load(path)


@pytest.mark.parametrize("where", [42, 16, 24])  # of the first entry of its directory: the place, the checksum, the size
@pytest.mark.parametrize("foreign", [b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"])
def test_a_damaged_directory_of_the_file_is_named(where, foreign, trace, tmp_path):
    trace.save(tmp_path / "x.npz")
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[(at := content.index(b"PK\x01\x02") + where) : at + 4] = foreign
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="x.npz is not a trace that can be read"):
        AttentionTrace.load(tmp_path / "x.npz")


@pytest.mark.parametrize("end", [1, 3, 12])
def test_a_directory_that_starts_before_the_file_is_named(end, trace, tmp_path):
    """zipfile then seeks to a place before the file, and the system's error names no file."""
    trace.save(tmp_path / "x.npz")
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[5000:] if end == 1 else content[: len(content) // end] + content[-22 * end :])
    with pytest.raises(ValueError, match="x.npz"):
        AttentionTrace.load(tmp_path / "x.npz")


def test_unreadable_files_are_named(trace, tmp_path):
    trace.save(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    damaged = whole[:3000] + bytes(50) + whole[3050:]
    for content in (b"", b"PK", b"hello", whole[:100], whole[:-30], array.getvalue(), damaged):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="bad.npz"):
            AttentionTrace.load(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError):
        AttentionTrace.load(tmp_path / "none.npz")


def header(shape, kind="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    "name, shape, kind, content, message",
    [
        ("images", (1, 100_000, 100_000, 3), "|u1", b"", "images .* has 128 bytes, and its header speaks of 30,000,000,128"),
        ("attention", (3, 2, 4, 50_000, 50_000), "<f2", bytes(480), "attention .*its header speaks of"),
        ("keep", (2, 4), "|b1", bytes(9), "keep .* has 137 bytes, and its header speaks of 136"),
        ("segments", (2, 20, 27), "|u1", bytes(1079), "segments .* has 1,207 bytes, and its header speaks of 1,208"),
        ("about", (2**24,), "|u1", bytes(2**24), "would take 17 MB of memory"),
        ("images", (1, 2**12, 2**12, 3), "|u1", bytes(2**24 * 3), "would take 50 MB of memory"),
        ("names", (2**25,), "|u1", bytes(2**25), "would take 34 MB of memory"),
    ],
)
def test_sizes_are_checked_before_anything_is_unpacked(name, shape, kind, content, message, trace, tmp_path, monkeypatch):
    trace.save(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz") as old, zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for member in old.namelist():
            new.writestr(member, header(shape, kind) + content if member == f"{name}.npy" else old.read(member))
    monkeypatch.setattr(files, "UNPACKED", (2**20, 100))
    AttentionTrace.load(tmp_path / "x.npz")
    monkeypatch.setattr(np.lib.format, "read_array", lambda *arguments, **options: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=f"bomb.npz is not a trace that can be read: .*{message}"):
        AttentionTrace.load(tmp_path / "bomb.npz")


def elsewhere(array):
    """A tensor of another library, which NumPy can read only when it has left its device."""

    class Tensor:
        def detach(self):
            return self

        def cpu(self):
            return array

        def __array__(self, *arguments, **options):
            raise TypeError("can't convert a device tensor to numpy; call .cpu() first")

    return Tensor()


TENSORS = {
    "float32": torch.from_numpy,
    "float64": lambda array: torch.from_numpy(array).double(),
    "float16": lambda array: torch.from_numpy(array).half(),
    "bfloat16": lambda array: torch.from_numpy(array).bfloat16(),
    "with gradients": lambda array: torch.from_numpy(array).requires_grad_() * 1,
    "bfloat16 with gradients": lambda array: torch.from_numpy(array).requires_grad_().bfloat16(),
    "inference": lambda array: torch.inference_mode()(lambda: torch.from_numpy(array) * 1)(),
    "not contiguous": lambda array: torch.from_numpy(array.T.copy()).T if array.ndim == 2 else torch.from_numpy(array[::-1].copy()).flip(0),
    "a list of tensors": lambda array: list(torch.from_numpy(array).bfloat16()),
    "lists": lambda array: array.tolist(),
    "elsewhere": elsewhere,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_maps_may_be_tensors_of_any_kind(kind, fields):
    from dias_lab.viz import explore

    given = fields | {name: TENSORS[kind](fields[name]) for name in ("attention", "decoder_attention")}
    found = AttentionTrace(**given)
    expected = AttentionTrace(**fields)
    for name in ("attention", "decoder_attention"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, theirs, atol=2**-8 if "bfloat16" in kind or kind == "a list of tensors" else 1e-3)
    maps = TENSORS[kind](fields["attention"][:, 0])
    image = fields["images"][0]
    assert explore(image, maps).html() and explore(torch.from_numpy(image), maps).html()
    keep = torch.from_numpy(fields["keep"])
    assert (AttentionTrace(**given | {"keep": keep, "segments": torch.from_numpy(fields["segments"])}).keep == fields["keep"]).all()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_object_arrays_are_not_executed(change_file, tmp_path):
    path = change_file(names=np.array([Hostile(tmp_path / "executed")], dtype=object))
    with zipfile.ZipFile(path) as archive:
        assert b"executed" in archive.read("names.npy")
    with pytest.raises(ValueError, match="changed.npz"):
        AttentionTrace.load(path)
    assert not (tmp_path / "executed").exists()


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch must not be imported here")
sys.meta_path.insert(0, NoTorch())
"""


def test_needs_no_torch(trace, tmp_path):
    trace.save(tmp_path / "x.npz")
    code = WITHOUT_TORCH + (
        "from dias_lab.trace import AttentionTrace\n"
        "trace = AttentionTrace.load(sys.argv[1])\n"
        "trace[:1].save(sys.argv[1])\n"
        "print(AttentionTrace.load(sys.argv[1]).segments_of('decoder').shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.npz"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 20, 27)"
