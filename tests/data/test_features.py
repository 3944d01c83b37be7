"""The feature cache: the same views, the same features, the same training."""

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dias_lab import runs
from dias_lab.analysis import discovery
from dias_lab.data import features, store
from dias_lab.data.dataset import Batches, batches, fixed_view
from dias_lab.data.features import FeatureBatches, feature_batches, make
from dias_lab.methods import build, checkpoint
from dias_lab.training import loop


@pytest.fixture
def data(small_scenes, tmp_path):
    """A copy of the scenes, so that each test has caches of its own."""
    return shutil.copytree(small_scenes, tmp_path / "scenes", ignore=shutil.ignore_patterns("features"))


@pytest.fixture
def config(small_config, data):
    return small_config.replace(data=str(data), cache_views=2, steps=6)


@pytest.fixture
def scenes(data):
    return store.open(data / "train.lmdb")


def test_cached_features_are_those_of_the_same_views(config, scenes):
    model = build(config)
    cached = list(feature_batches(scenes, config, model.backbone))
    pixels = list(batches(scenes, config))
    assert len(cached) == len(pixels) == 6
    for a, b in zip(cached, pixels):
        assert torch.equal(a["info"]["item"], b["info"]["item"]) and a["features"].dtype == torch.float16
        torch.testing.assert_close(
            a["features"].float(), model.backbone(model.normalise(b["image"])), rtol=1e-3, atol=1e-3
        )


def test_views_are_few_and_come_in_pairs(config, scenes):
    picture, segments = fixed_view(scenes, 3, 0, config)
    flipped, segments_too = fixed_view(scenes, 3, 1, config)
    assert torch.equal(picture.flip(-1), flipped) and torch.equal(segments.flip(-1), segments_too)
    assert not torch.equal(picture, fixed_view(scenes, 3, 2, config)[0])
    shown = [image for step in range(40) for image, item in _pairs(Batches(scenes, config)[step]) if item == 3]
    assert len({image.numpy().tobytes() for image in shown}) == 4


def _pairs(batch):
    return zip(batch["image"], batch["info"]["item"].tolist())


def test_training_from_the_cache_is_training_from_the_pixels(config, tmp_path, monkeypatch):
    loop.fit(config, tmp_path / "cached", progress=False)
    monkeypatch.setattr(
        discovery, "feature_batches", lambda scenes, config, backbone, progress, **rest: batches(scenes, config, **rest)
    )
    loop.fit(config, tmp_path / "pixels", progress=False)
    a, b = (runs.read_lines(tmp_path / name / "metrics.jsonl") for name in ("cached", "pixels"))
    losses = [[(line["loss"], line["reconstruction"]) for line in lines if "loss" in line] for lines in (a, b)]
    assert losses[0] != losses[1]  # half precision leaves its mark
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_resume_from_the_cache(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.fit(config.replace(evaluate_every=3), whole, progress=False)
    training = loop.Training(config.replace(evaluate_every=3), parts)
    runs.write_json(parts / "config.json", training.config.to_dict())
    update, count = training.update, iter(range(4))

    def stops(batch):
        next(count)  # a StopIteration after four steps stands for the kill
        return update(batch)

    training.update = stops
    with pytest.raises((StopIteration, RuntimeError)):
        training.run(progress=False)
    loop.fit(config.replace(evaluate_every=3), parts, progress=False)
    a, b = (checkpoint.load_model(path, "last").trained_state() for path in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_workers_map_the_file_themselves(config, scenes):
    backbone = build(config).backbone
    alone = list(feature_batches(scenes, config, backbone))
    together = list(feature_batches(scenes, config.replace(workers=2), backbone))
    assert all(torch.equal(a["features"], b["features"]) for a, b in zip(alone, together, strict=True))


def test_a_killed_build_goes_on_where_it_was(config, scenes, monkeypatch):
    backbone = build(config).backbone
    whole = make(scenes, config, backbone)
    expected = (whole / features.FEATURES).read_bytes()
    shutil.rmtree(whole)
    seen = []
    monkeypatch.setattr(features, "SAVED", 4)
    monkeypatch.setattr(features, "fixed_view", lambda *place: seen.append(place[1]) or _fail_at(9, *place))
    with pytest.raises(KeyboardInterrupt):
        make(scenes, config, backbone)
    assert not (whole / features.ABOUT).exists() and not (whole / features.FEATURES).exists()
    seen.clear()
    monkeypatch.setattr(features, "fixed_view", lambda *place: seen.append(place[1]) or fixed_view(*place))
    assert make(scenes, config, backbone) == whole
    assert set(seen) == {8, 9} and (whole / features.FEATURES).read_bytes() == expected
    seen.clear()
    make(scenes, config, backbone)
    assert not seen


def _fail_at(stop, scenes, item, *view):
    if item == stop:
        raise KeyboardInterrupt
    return fixed_view(scenes, item, *view)


def test_several_processes_want_the_same_cache(config, scenes, monkeypatch):
    backbone, seen = build(config).backbone, []
    monkeypatch.setattr(features, "fixed_view", lambda *place: seen.append(place[1:3]) or time.sleep(0.01) or fixed_view(*place))
    with ThreadPoolExecutor(3) as pool:  # a claim holds against threads of one process, too
        folders = set(pool.map(lambda _: make(scenes, config, backbone), range(3)))
    assert len(folders) == 1 and sorted(seen) == [(item, view) for item in range(10) for view in range(4)]
    (folder,) = folders
    (folder / features.ABOUT).unlink()
    monkeypatch.setattr(features, "PATIENCE", -1)
    with runs.claim(folder), pytest.raises(runs.RunBusy):
        make(scenes, config, backbone)


def test_another_cache_for_other_weights_images_or_crops(config, scenes, data):
    backbone = build(config).backbone
    folders = {make(scenes, config, backbone)}
    folders.add(make(scenes, config.replace(crop_scale=0.5), backbone))
    folders.add(make(scenes, config.replace(seed=1), backbone))
    backbone.frequency += 0.1
    folders.add(make(scenes, config, backbone))
    folders.add(make(store.open(data / "validation.lmdb"), config, backbone))
    other = store.write(data / "train.lmdb", [*list(scenes)[1:], scenes[0]], {"dataset": "scenes", "split": "train"})
    folders.add(make(store.open(other), config, backbone))
    assert len(folders) == 6
    assert make(store.open(other), config.replace(steps=99, learning_rate=0.1), backbone) in folders
    whole = {make(scenes, config.replace(crop_scale=1.0, seed=seed), backbone) for seed in (1, 2, 3)}
    assert len(whole) == 1  # whole squares are those of every seed


def test_a_disk_too_small_is_noticed_before_anything_is_computed(config, scenes, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"10 images x 4 views x 64 locations x 16 channels.*cache_views"):
        make(scenes, config, build(config).backbone)


def spoil(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", [features.FEATURES, features.SUMS, features.ABOUT])
def test_any_bit_that_changed_is_noticed_where_it_is_read(name, config, scenes):
    backbone, config = build(config).backbone, config.replace(steps=100)
    folder = make(scenes, config, backbone)
    list(feature_batches(scenes, config, backbone))
    content, random = (folder / name).read_bytes(), np.random.default_rng(3)
    places, named = random.integers(len(content), size=6), content.rfind(b'"checksum"')
    for place in places[(places < named) | (places > named + 9)]:  # that name is no content
        spoil(folder / name, place, random.integers(7))
        with pytest.raises(ValueError, match=f"{name}.*Delete .*features/train-.* to make it again"):
            list(feature_batches(scenes, config, backbone))
        (folder / name).write_bytes(content)
    list(feature_batches(scenes, config, backbone))


def test_the_view_that_changed_is_named_by_whoever_reads(config, scenes):
    backbone, config = build(config).backbone, config.replace(steps=100)
    folder = make(scenes, config, backbone)
    L, C = 64, 16
    spoil(folder / features.FEATURES, 2 * L * C * (3 * 4 + 2) + 5)  # item 3, view 2 of 4
    for workers in (0, 1):
        with pytest.raises(ValueError, match="features.bin is not as it was written: the checksum of item 3, view 2 differs"):
            list(feature_batches(scenes, config.replace(workers=workers), backbone))


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", "7", '{"shape": null, "grid": 1}', '{"shape": [1, 2], "grid": [1]}', '{"shape": [10, 4, 64, 16], "grid": [8, 8]}', "{", ""],
)
def test_a_features_json_of_any_content_is_named(content, config, scenes):
    backbone = build(config).backbone
    folder = make(scenes, config, backbone)
    (folder / features.ABOUT).write_text(content)
    with pytest.raises(ValueError, match="features.json.*Delete .* to make it again"):
        list(feature_batches(scenes, config, backbone))


def test_a_cache_of_an_older_version_has_no_checksums_and_is_read(config, scenes):
    backbone = build(config).backbone
    folder = make(scenes, config, backbone)
    about = runs.read_json(folder / features.ABOUT)
    runs.write_json(folder / features.ABOUT, {name: about[name] for name in about if name not in ("checksum", "checksums")})
    (folder / features.SUMS).unlink()
    assert len(list(feature_batches(scenes, config, backbone))) == 6


@pytest.mark.parametrize("done", ["", "-4", "many", "99999"])
def test_a_killed_build_with_a_damaged_count_is_whole_in_the_end(done, config, scenes):
    backbone = build(config).backbone
    whole = make(scenes, config, backbone)
    expected = (whole / features.FEATURES).read_bytes()
    (whole / features.ABOUT).unlink()
    (whole / features.FEATURES).rename(whole / features.PARTIAL)
    (whole / features.SUMS).rename(whole / features.PARTIAL_SUMS)
    (whole / features.DONE).write_text(done)
    list(feature_batches(scenes, config, backbone))
    assert (whole / features.FEATURES).read_bytes() == expected


def test_a_disk_that_fills_up_is_told_before_the_map_is_written(config, scenes, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no space is left on the disk .*\.features\.bin\.partial"):
        make(scenes, config, build(config).backbone)


def test_a_damaged_cache_and_features_too_large_are_refused(config, scenes):
    backbone = build(config).backbone
    folder = make(scenes, config, backbone)
    with open(folder / features.FEATURES, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="100 bytes"):
        FeatureBatches(scenes, config, folder)
    backbone.features = lambda images: torch.full((len(images), 16, 8, 8), 1e6)
    with pytest.raises(ValueError, match="not finite in half precision"):
        make(scenes, config.replace(seed=7), backbone)
