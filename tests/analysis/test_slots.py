"""Slots on disk: those that evaluation sees, whole after any kill, and refused where they are of something else."""

import contextlib
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from interruptions import Killed, killed_twice
from small_clips import frames_of, write_clips

from dias_lab import files, fit, runs
from dias_lab.analysis import slots
from dias_lab.analysis.baselines import cluster_segments, followed, position_segments
from dias_lab.analysis.evaluate import maps_of
from dias_lab.analysis.slots import extract, identity, mean_features, open_slots, slots_for
from dias_lab.data import slot_files, store
from dias_lab.data.clips import clip_squares
from dias_lab.data.dataset import read, square, squares
from dias_lab.data.slot_files import ABOUT, ARRAYS, PROGRESS
from dias_lab.methods import build, segments_from


@pytest.fixture(autouse=True)
def outside_git(monkeypatch):
    """Asking git takes longer than the rest of an extraction."""
    monkeypatch.setattr("dias_lab.runs.places.commit", lambda: None)


@pytest.fixture
def scenes(small_scenes):
    return store.open(small_scenes / "train.lmdb")  # ten: batches of 4, 4 and 2


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"), ["test"])


@pytest.fixture
def clips(clip_folder):
    return store.open(clip_folder / "test.lmdb")  # of 4, 3 and 5 frames


@pytest.fixture
def model(small_config):
    return build(small_config).eval()


@pytest.fixture
def clip_model(small_config):
    return build(small_config.replace(clip_frames=3, batch_size=2, seed=7)).eval()


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ARRAYS}


@torch.no_grad()
def test_slots_of_images_are_those_of_an_evaluation(model, scenes, tmp_path):
    exact, half = (extract(model, scenes, tmp_path / dtype, dtype=dtype) for dtype in ("float32", "float16"))
    predict, first = maps_of(model, model.config.seed), 0
    for batch in squares(scenes, model.config):
        items = batch["info"]["item"].tolist()
        output = model(model.normalise(batch["image"]), draws=model.draw(items, model.config.seed))
        shown, evaluated = slice(first, first + len(items)), predict(batch)
        assert np.array_equal(exact.slots[shown], output.slots.numpy()) and np.array_equal(exact.keep[shown], output.keep.numpy())
        assert np.array_equal(exact.segments[shown], evaluated["decoder"].numpy())
        assert np.array_equal(exact.keep[shown].sum(1), evaluated["kept"].numpy())
        first += len(items)
    assert first == 10 and np.array_equal(half.slots, exact.slots.astype(np.float16)) and not model.training
    assert half.slots.shape == (10, 5, 12) and half.segments.shape == (10, 128, 128) and isinstance(half.slots, np.memmap)
    assert (half.slots.dtype, half.keep.dtype, half.segments.dtype) == (np.float16, bool, np.uint8)
    assert not half.slots.flags.writeable
    about = {"source": "model", "split": "train", "dtype": "float16", "map": "decoder", "seed": 42, "shape": [10, 5, 12]}
    assert about.items() <= half.about.items() and half.about["made"].keys() == runs.about().keys()
    assert (half.about["identity"], half.about["records"]) == (identity(model), scenes.fingerprint()[:16])


@torch.no_grad()
def test_slots_of_clips_are_those_of_an_evaluation(clip_model, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("dias_lab.methods.clip.AT_ONCE", 2)  # a clip in several pieces
    found, first = extract(clip_model, clips, tmp_path / "x", dtype="float32"), 0
    for batch in clip_squares(clips, clip_model.config):
        number, frames = batch["info"]["clip"].tolist(), batch["frames"].shape[1]
        output = clip_model(clip_model.normalise(batch["image"]), draws=clip_model.draw(number, 7, frames=1))
        shown = slice(first, first + frames)
        assert np.array_equal(found.slots[shown], output.slots[0].numpy()) and np.array_equal(found.keep[shown], output.keep[0].numpy())
        assert np.array_equal(found.segments[shown], maps_of(clip_model, 7)(batch)["decoder"][0].numpy())
        first += frames
    assert first == len(clips) == len(found.slots) == 12


@torch.no_grad()
def test_an_image_model_sees_the_frames_of_clips_each_alone(model, clips, tmp_path):
    found, first = extract(model, clips, tmp_path / "x", dtype="float32"), 0
    for batch in clip_squares(clips, model.config):
        frames = batch["frames"].shape[1]
        assert np.array_equal(found.segments[first : first + frames], maps_of(model, 42)(batch)["decoder"][0].numpy())
        first += frames
    images = torch.stack([read(clips, item)[0] for item in range(12)])
    alone = model(model.normalise(images), draws=model.draw(range(12), 42))
    np.testing.assert_allclose(found.slots, alone.slots, atol=1e-5)


def test_boxes_reach_a_clip_model_that_starts_from_them(clip_model, clips, tmp_path):
    boxed = build(clip_model.config.replace(condition="boxes")).eval()
    found, batch = extract(boxed, clips, tmp_path / "x", dtype="float32"), next(clip_squares(clips, boxed.config))
    with torch.no_grad():
        output = boxed(boxed.normalise(batch["image"]), draws=boxed.draw([0], 7, frames=1), boxes=batch["boxes"])
    assert np.array_equal(found.slots[:4], output.slots[0].numpy())


@pytest.mark.parametrize("which", ["decoder", "last"])
@torch.no_grad()
def test_segments_are_of_the_map_that_the_method_is_scored_by(which, model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "evaluated_map", which)
    run, asked = model.run, []
    monkeypatch.setattr(model, "run", lambda features, given: asked.append(given.decoder_attention) or run(features, given))
    found, batch = extract(model, scenes, tmp_path / "x"), next(squares(scenes, model.config))
    assert set(asked) == {which == "decoder"} and found.about["map"] == which  # no map is made that nobody reads
    output = model(model.normalise(batch["image"]), draws=model.draw(range(4), 42))
    attention = output.attention[-1] if which == "last" else output.decoder_attention
    assert np.array_equal(found.segments[:4], segments_from(attention, 128).numpy())


def test_the_twin_before_training(model, scenes, tmp_path):
    twin = model.untrained()
    with torch.no_grad():
        for parameter in model.aggregator.parameters():
            parameter.add_(0.1)
    found, expected = extract(model, scenes, tmp_path / "a", "untrained"), extract(twin, scenes, tmp_path / "b")
    assert np.array_equal(found.slots, expected.slots) and np.array_equal(found.segments, expected.segments)
    assert not np.array_equal(found.slots, extract(model, scenes, tmp_path / "c").slots)
    assert found.about["identity"] == identity(model) != identity(twin)


def test_mean_features_of_true_segments(model, scenes, tmp_path):
    found = extract(model, scenes, tmp_path / "x", "true", "float32")
    assert found.slots.shape == (10, max(sum(scenes[item].info["things"].values()) for item in range(10)), 16)
    for item in range(10):
        image, true = (one[0] for one in square(*(one[None] for one in read(scenes, item)), 128))
        things = [number for number in true.unique().tolist() if 0 < number < 254]
        with torch.no_grad():
            features = model.backbone(model.normalise(image[None]))[0].repeat_interleave(16, 1).repeat_interleave(16, 2)  # [C R R]
        assert found.keep[item].sum() == len(things) and (found.slots[item][~found.keep[item]] == 0).all()
        for slot, thing in enumerate(things):
            assert np.array_equal(found.segments[item] == slot, true == thing)
            np.testing.assert_allclose(found.slots[item, slot], features[:, true == thing].mean(1), atol=1e-5)
        assert ((found.segments[item] == 255) == (true == 0).numpy()).all()


def test_an_object_has_the_same_slot_in_all_frames_of_its_clip(model, tmp_path):
    folder = write_clips(tmp_path / "clips", ["test"], without_masks=[("red", 1), *(("green", i) for i in range(3))])
    found, true = extract(model, store.open(folder / "test.lmdb"), tmp_path / "x", "true"), frames_of(0, 4)
    assert found.slots.shape[1] == 2
    assert found.keep.tolist() == [[True] * 2, [False] * 2, [True] * 2, [True] * 2, *[[False] * 2] * 3, *[[True] * 2] * 5]
    assert np.array_equal(found.segments[3], np.where(true[3] == 0, 255, true[3] - 1)) and (found.segments[1] == 255).all()


def test_numbers_of_segments_are_counted_even_where_some_are_missing(model, clips, tmp_path):
    """Segments 3 and 9, of which the second frame lacks the first; stuff and void are none."""
    true = np.zeros((2, 128, 128), np.uint8)
    true[0, :40, :40], true[:, 50:60, 50:60], true[:, 100:], true[:, 64, :3] = 3, 9, 20, 255
    things = [{3: True, 9: True, 20: False}, {9: True, 20: False}]
    info = [{"source": "", "clip": "a", "frame": frame, "things": things[frame]} for frame in range(2)]
    for kind in ("video", "image"):
        records = [store.Record(clips[0].image, one, about) for one, about in zip(true, info)]
        path = store.write(tmp_path / f"{kind}.lmdb", records, {"dataset": "x", "split": "test", "kind": kind})
        found = extract(model, store.open(path), tmp_path / kind, "true")
        slot = 1 if kind == "video" else 0
        assert found.keep.tolist() == [[True, True], [False, True] if kind == "video" else [True, False]]
        assert np.array_equal(found.segments[1] == slot, true[1] == 9) and (found.segments[1][true[1] != 9] == 255).all()


def test_a_segment_too_small_for_any_location_has_the_features_at_its_place():
    features, segments = torch.randn(2, 3, 4, 4), torch.full((2, 64, 64), 255)
    segments[0, 17, 34], segments[1, 5:20, 15:18] = 0, 1  # locations [1, 2]; four of them
    means, there = mean_features(features, segments, 2)
    assert there.tolist() == [[True, False], [False, True]] and means[0, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(means[0, 0], features[0, :, 1, 2])
    share = torch.tensor([[11 * 1, 11 * 2], [4 * 1, 4 * 2]]) / 45
    torch.testing.assert_close(means[1, 1], (features[1, :, :2, :2] * share).sum((1, 2)))
    odd = mean_features(torch.ones(1, 2, 5, 7), torch.zeros(1, 64, 64, dtype=torch.uint8), 1)  # no whole pixels a location
    torch.testing.assert_close(odd[0], torch.ones(1, 1, 2))


@torch.no_grad()
def test_clusters_and_tiles_are_those_of_the_baselines(model, scenes, clips, tmp_path):
    batch, k = next(squares(scenes, model.config)), model.config.num_slots
    features = model.backbone(model.normalise(batch["image"]))
    expected = {"k_means": cluster_segments(features, k, 128), "tiles": position_segments(model.backbone.grid, k, 128, 4)}
    for source, segments in expected.items():
        found = extract(model, scenes, tmp_path / source, source, "float32")
        assert np.array_equal(found.segments[:4], segments.numpy()) and found.about["map"] == source
        assert found.slots.shape == (10, k, 16) and found.keep.all()
        np.testing.assert_allclose(found.slots[:4], mean_features(features, segments, k)[0], atol=1e-6)
    frames = torch.stack([read(clips, item)[0] for item in range(4)])
    segments = followed(cluster_segments(model.backbone(model.normalise(frames)), k, 128), k)
    assert np.array_equal(extract(model, clips, tmp_path / "clips", "k_means").segments[:4], segments.numpy())


MOMENTS = [("_seen", 2), ("sync", 2), ("sync", 4), ("write_sealed", 1), ("write_sealed", 2), ("write_sealed", 4)]


@pytest.mark.parametrize("name, moment", MOMENTS)
def test_a_killed_extraction_goes_on_to_the_same_bytes(name, moment, model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(slot_files, "SAVED", 4)
    straight = contents(tmp_path / "a") if extract(model, scenes, tmp_path / "a") else None
    killed_twice(lambda: extract(model, scenes, tmp_path / "b"), moment, [(slots if name == "_seen" else slot_files, name)], monkeypatch)
    there = [path for path in (tmp_path / "b" / one for one in ARRAYS) if path.exists()]
    if name == "_seen":
        assert not (tmp_path / "b" / ABOUT).exists() and there
        with pytest.raises(ValueError, match="are unfinished.*goes on"):
            open_slots(tmp_path / "b")
        with pytest.raises(ValueError):
            np.load(there[0])  # nothing that looks whole to NumPy either
    extract(model, scenes, tmp_path / "b")
    assert contents(tmp_path / "b") == straight and not (tmp_path / "b" / PROGRESS).exists()


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_what_is_done_is_not_done_again(kind, model, clip_model, scenes, clips, tmp_path, monkeypatch):
    model, data, batches = (model, scenes, 3) if kind == "images" else (clip_model, clips, 3)
    monkeypatch.setattr(slot_files, "SAVED", 1)
    seen, calls = slots._seen, []

    def dying(model, batch):
        calls.append(batch["info"]["item"])
        if len(calls) == batches:
            raise Killed
        return seen(model, batch)

    monkeypatch.setattr(slots, "_seen", dying)
    with contextlib.suppress(Killed):
        extract(model, data, tmp_path / "x")
    first = extract(model, data, tmp_path / "x")
    assert len(calls) == batches + 1 and torch.equal(calls[-1], calls[-2])  # the one that was lost
    again = extract(model, data, tmp_path / "x")
    assert len(calls) == batches + 1 and np.array_equal(first.slots, again.slots)
    assert first.about == again.about == open_slots(tmp_path / "x", model, data, "model").about


def test_batches_of_another_size_begin_anew(model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(slot_files, "SAVED", 4)
    killed_twice(lambda: extract(model, scenes, tmp_path / "x"), 3, [(slots, "_seen")], monkeypatch)
    other = build(model.config.replace(batch_size=3)).eval()
    assert identity(other) == identity(model)
    found = extract(other, scenes, tmp_path / "x")
    np.testing.assert_allclose(found.slots, extract(model, scenes, tmp_path / "y").slots, atol=1e-3)


def test_slots_of_something_else_are_refused_by_name(model, small_config, scenes, small_scenes, tmp_path, monkeypatch):
    other, validation = build(small_config.replace(seed=1)).eval(), store.open(small_scenes / "validation.lmdb")
    extract(model, scenes, tmp_path / "x")
    for wrong, told in (((other,), "model's identity"), ((None, validation), "store's records"), ((model, scenes, "true"), "source is 'model'")):
        with pytest.raises(ValueError, match=f"x are of something else: the {told}|x are of something else: {told}.*Choose another folder"):
            open_slots(tmp_path / "x", *wrong)
    monkeypatch.setattr(slot_files, "SAVED", 1)
    killed_twice(lambda: extract(model, scenes, tmp_path / "half"), 2, [(slots, "_seen")], monkeypatch)
    for folder in (tmp_path / "x", tmp_path / "half"):  # whole, or not
        before = contents(folder)
        for given, told in (
            ((other, scenes), "identity is"), ((model, validation), "records is .*split is 'train' there"), ((model, scenes, "tiles"), "source is"),
            ((model, scenes, "model", "float32"), "dtype is 'float16' there, not 'float32'"),
        ):  # fmt: skip
            args = (*given[:2], folder, *given[2:])
            with pytest.raises(ValueError, match=f"{folder.name} are of something else: .*{told}"):
                extract(*args)
        assert contents(folder) == before
    with pytest.raises(ValueError, match="nowhere are not there: python -m dias_lab slots"):
        open_slots(tmp_path / "nowhere")


def test_damage_is_noticed(model, scenes, tmp_path):
    extract(model, scenes, tmp_path / "x")
    changes = {"bit": lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:], "header": lambda data: data[:30] + b"?" + data[31:]}
    changes |= {"short": lambda data: data[:-3], "empty": lambda data: b"", "missing": None}
    for name in (*ARRAYS, ABOUT):
        path = tmp_path / "x" / name
        whole = path.read_bytes()
        for damage, change in changes.items():
            path.write_bytes(change(whole)) if change else path.unlink()
            told = "are not there" if name == ABOUT and damage == "missing" else f"{name}.*Delete .*x to extract"
            with pytest.raises(ValueError, match=told):
                open_slots(tmp_path / "x")
        path.write_bytes(whole)
    assert len(open_slots(tmp_path / "x").slots) == 10


def test_a_damaged_progress_says_what_to_do(model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(slot_files, "SAVED", 1)
    killed_twice(lambda: extract(model, scenes, tmp_path / "x"), 2, [(slots, "_seen")], monkeypatch)
    path = tmp_path / "x" / PROGRESS
    path.write_text(path.read_text().replace('"done": 8', '"done": 4'))
    with pytest.raises(ValueError, match="progress.json is not as it was written.*Delete"):
        extract(model, scenes, tmp_path / "x")


def test_what_cannot_begin_is_refused_and_nothing_is_written(model, clip_model, scenes, clip_folder, tmp_path):
    bare = write_clips(tmp_path / "bare", ["test"], lengths={"a": 2}, without_masks=[("a", 0), ("a", 1)])
    empty = store.write(tmp_path / "empty.lmdb", [], {"dataset": "x", "split": "test"})
    for args, told in (
        ((model, scenes, "x", "truth"), "source is one of model, untrained, true, k_means, tiles, got 'truth'"),
        ((model, scenes, "x", "model", "float64"), "dtype is one of float16, float32, got 'float64'"),
        ((clip_model, scenes, "x"), "train.lmdb holds images, not the frames of clips"),
        ((model, store.open(bare / "test.lmdb"), "x", "true"), "test.lmdb has no true segments"),
        ((model, store.open(empty), "x"), "empty.lmdb is empty"),
    ):
        with pytest.raises(ValueError, match=told):
            extract(*args[:2], tmp_path / args[2], *args[3:])
    assert not (tmp_path / "x").exists()


def test_slots_that_no_file_can_hold(model, scenes, tmp_path, monkeypatch):
    seen = slots._seen
    monkeypatch.setattr(slots, "_seen", lambda model, batch: [seen(model, batch)[0] * 1e9, *seen(model, batch)[1:]])
    with pytest.raises(ValueError, match="items 0 to 3 is not finite as float16; .*dtype='float32'"), np.errstate(over="ignore"):
        extract(model, scenes, tmp_path / "x")
    assert np.isfinite(extract(model, scenes, tmp_path / "y", dtype="float32").slots).all()


def test_a_full_disk_says_so_and_the_rest_goes_on(model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(slot_files, "SAVED", 1)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(slot_files, "sync", full)
        with pytest.raises(OSError, match="no space is left on the disk.*slots.npy"):
            extract(model, scenes, tmp_path / "x")
    assert len(extract(model, scenes, tmp_path / "x").slots) == 10


def test_of_several_who_want_the_same_slots_one_extracts_them(model, scenes, tmp_path, monkeypatch):
    seen, calls = slots._seen, []
    monkeypatch.setattr(slots, "_seen", lambda *given: calls.append(given) or seen(*given))
    with ThreadPoolExecutor(3) as pool:  # a claim holds against threads of one process, too
        found = list(pool.map(lambda _: extract(model, scenes, tmp_path / "x"), range(3)))
    assert len(calls) == 3 and all(np.array_equal(one.slots, found[0].slots) for one in found)
    monkeypatch.setattr(slots, "PATIENCE", -1)
    with runs.claim(tmp_path / "y"), pytest.raises(runs.RunBusy, match="y is in use by process"):
        extract(model, scenes, tmp_path / "y")


def test_identity_follows_from_what_slots_depend_on(model, clip_model, small_config, monkeypatch):
    own = identity(model)
    for part in slots.PARTS:  # the tables of the config may change: what a model is follows from its fields
        monkeypatch.setattr(part, "changes", {"steps": 1}, raising=False)
        monkeypatch.setattr(part, "on_presets", {"scenes": {"steps": 1}}, raising=False)
    assert identity(model) == own
    monkeypatch.undo()
    assert own == identity(build(small_config)) and len(own) == 16 and int(own, 16) >= 0
    same = dict(steps=7, data="elsewhere", batch_size=2, learning_rate=1.0, parent="x", device="auto", workers=2, crop_scale=0.5)
    for name, value in same.items():
        assert identity(build(small_config.replace(**{name: value}))) == own, name
    for name, value in dict(seed=1, num_iterations=2, num_slots=4, merging="none", image_size=64, fourier_texture=0.7).items():
        other = build(small_config.replace(**{name: value}))
        if name != "seed":
            other.load_state_dict(model.state_dict(), strict=False)
        assert identity(other) != own, name
    assert identity(clip_model) != own
    with torch.no_grad():
        weight = next(model.decoder.parameters())
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert identity(model) != own


def test_what_a_head_asks_for(small_config, scenes, tmp_path):
    data = shutil.copytree(scenes.path.parent, tmp_path / "data")
    fit(small_config.replace(steps=1, data=str(data)), tmp_path / "run", progress=False)
    opened = store.open(data / "test.lmdb")
    config = small_config.for_task("recognition", parent=str(tmp_path / "run"), data=str(data), slots_of="tiles", seed=5)
    found = slots_for(config, opened)
    (folder,) = (data / "slots").iterdir()
    assert folder.name == f"{found.about['identity']}-tiles" and (folder / "test" / ABOUT).exists() and len(found.slots) == 3
    config = config.replace(slots=str(tmp_path / "mine"), slots_of="model")
    model = slots.checkpoint.load_model(tmp_path / "run")
    made = extract(model, opened, tmp_path / "mine/test", dtype="float32")
    assert slots_for(config, opened).slots.dtype == np.float32 and np.array_equal(slots_for(config, opened).slots, made.slots)
    with pytest.raises(ValueError, match="source is 'model' there, not 'true'"):
        slots_for(config.replace(slots_of="true"), opened)
    assert files.read_object(tmp_path / "mine/test" / ABOUT)["shape"] == [3, 5, 12]
