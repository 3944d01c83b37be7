"""Shapes: textured regions, of which clustering finds much. Toys are in test_toys.py."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from dias_lab.config import Config
from dias_lab.data.convert import scenes as converter
from dias_lab.data.scenes import SPLITS, scene
from dias_lab.data.shapes import Difficulty
from dias_lab.metrics import segmentation_scores


def test_the_difficulty_shapes_is_pinned():
    digest = hashlib.sha256()
    for seed in [*range(10), *range(SPLITS["test"], SPLITS["test"] + 10)]:
        for array in scene(seed, "shapes"):
            digest.update(array.tobytes())
    assert digest.hexdigest() == "6a48f30029406587f1da93d3c99377bfb6c797c16d0a6b8f5865434da7bf5afa"


def test_a_scene_is_a_function_of_its_seed():
    image, segments = scene(7, "shapes")
    again, _ = scene(7, "shapes")
    other, _ = scene(8, "shapes")
    assert image.shape == (128, 128, 3) and segments.shape == (128, 128)
    assert image.dtype == segments.dtype == np.uint8
    assert (image == again).all() and not (image == other).all()


@pytest.mark.parametrize("difficulty", [Difficulty(), Difficulty(5, 9, 0.5, 0.2, 0.1), Difficulty(1, 1)])
def test_every_object_is_there_and_shows(difficulty):
    for seed in range(40):
        _, segments = scene(seed, difficulty)
        areas = np.bincount(segments.ravel())
        assert difficulty.min_objects <= len(areas) - 1 <= difficulty.max_objects
        assert (areas >= 20).all()


def test_k_means_on_colours_does_not_solve_the_test_scenes():
    slots = Config.preset("shapes").num_slots
    predicted, true = [], []
    for seed in range(SPLITS["test"], SPLITS["test"] + 200):
        image, segments = scene(seed, "shapes")
        colours = image.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)).reshape(-1, 3)
        labels = KMeans(slots, n_init=3, random_state=0).fit_predict(colours).reshape(16, 16)
        predicted.append(np.kron(labels, np.ones((8, 8), int)))
        true.append(segments)
    scores = segmentation_scores(torch.tensor(np.stack(predicted)), torch.tensor(np.stack(true)))
    assert 0.15 < scores["ari"].nanmean() < 0.35
    assert 0.40 < scores["fg_ari"].nanmean() < 0.70


@pytest.mark.parametrize("seed, difficulty", [(-1, {}), (0, dict(min_objects=3, max_objects=2)), (0, dict(contrast=2))])
def test_impossible_scenes_are_refused(seed, difficulty):
    with pytest.raises(ValueError, match=str(seed) if seed < 0 else "objects|contrast"):
        scene(seed, Difficulty(**difficulty))


def test_converted_splits_are_disjoint_and_hold_the_scenes(tmp_path):
    from dias_lab.data import store

    paths = converter.convert(tmp_path, train=3, validation=2, test=2, difficulty="shapes")
    sources = [record.info["source"] for path in paths.values() for record in store.open(path)]
    assert len(set(sources)) == 7
    assert store.verify(paths["train"])["segments"] == sum(int(scene(seed, "shapes")[1].max()) for seed in range(3))
    with pytest.raises(ValueError, match="train=0"):
        converter.convert(tmp_path, train=0)
