import io

import numpy as np
import pytest
import torch
from PIL import Image

from dias_lab.config import Config
from dias_lab.data import dataset, draws, store
from dias_lab.data.dataset import Batches, Squares, batches, crop_box, permutation, read, read_photos, square, squares


@pytest.fixture
def train_store(small_scenes):
    return store.open(small_scenes / "train.lmdb")


def same(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["segments"], b["segments"])


def test_a_batch_is_a_function_of_seed_and_step(train_store, small_config):
    data = Batches(train_store, small_config)
    assert same(data[7], Batches(train_store, small_config)[7])
    assert not same(data[7], data[8]) and not same(data[7], Batches(train_store, small_config, seed=1)[7])
    batch = data[0]
    assert batch["image"].shape == (4, 3, 128, 128) and batch["segments"].shape == (4, 128, 128)
    assert batch["image"].dtype == batch["segments"].dtype == torch.uint8


def test_an_epoch_shows_every_item_once(train_store, small_config):
    data = Batches(train_store, small_config.replace(batch_size=5))
    epochs = [torch.cat([data[step]["info"]["item"] for step in (first, first + 1)]).tolist() for first in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_the_same_image_looks_different_in_another_epoch(train_store, small_config):
    data = Batches(train_store, small_config.replace(batch_size=10))
    first, second = data[0], data[1]
    item = first["info"]["item"][0]
    place = (second["info"]["item"] == item).nonzero()[0, 0]
    assert not torch.equal(first["image"][0], second["image"][place])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resume_change_nothing(train_store, small_config, workers):
    config = small_config.replace(workers=workers, steps=6)
    train_store[0]  # touched before the workers start, as every notebook does
    whole = list(batches(train_store, config))
    resumed = list(batches(train_store, config, step=4))
    assert [batch["info"]["step"] for batch in whole] == list(range(6))
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert same(whole[3], Batches(train_store, config)[3])


def test_images_and_segments_move_together(tmp_path):
    """Where the picture is white its segment must be 1, after any crop, resize and flip."""
    image = np.zeros((90, 140, 3), np.uint8)
    image[20:60, 50:120] = 255
    segments = (image[..., 0] > 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    record = store.Record(buffer.getvalue(), segments, {"source": "one", "things": {1: True}})
    store.write(tmp_path / "train.lmdb", [record], {"dataset": "test", "split": "train"})
    config = Config.preset("shapes", image_size=64, backbone_size=64, batch_size=30)
    batch = Batches(store.open(tmp_path / "train.lmdb"), config)[0]
    white = batch["image"].float().mean(dim=1) > 127
    assert (white == (batch["segments"] == 1)).float().mean() > 0.98
    assert 0.1 < white.float().mean() < 0.9


@pytest.mark.parametrize("least, size", [(32, (63, 50)), (128, (250, 200)), (400, (500, 400)), (700, (500, 400))])
def test_a_large_jpeg_is_decoded_at_the_scale_that_its_crop_needs(tmp_path, monkeypatch, least, size):
    """500x400: at an eighth where 32 pixels are needed, at a half for 128; the crop shows what it shows at full size."""
    rows, columns = np.mgrid[:400, :500] / 500
    image = np.stack([rows, columns, np.hypot(rows - 0.4, columns - 0.5)], axis=2)
    photo = Image.fromarray((255 * image).astype(np.uint8))
    decoded, true = [], dataset.as_image
    monkeypatch.setattr(dataset, "as_image", lambda picture: decoded.append(picture.size) or true(picture))
    views = {}
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        photo.save(buffer, kind, **({"quality": 98} if kind == "JPEG" else {}))
        store.write(tmp_path / f"{kind}.lmdb", [store.Record(buffer.getvalue(), None, {"source": "one"})], {"dataset": "test", "split": "x"})
        config = Config.preset("shapes", image_size=least, backbone_size=least, crop_scale=0.9)
        views[kind] = dataset.crop(store.open(tmp_path / f"{kind}.lmdb"), 0, config, np.random.default_rng(1))[0]
    assert decoded == [size, (500, 400)]
    difference = (views["JPEG"].float() - views["PNG"].float()).abs()
    assert views["JPEG"].shape == (3, least, least) and difference.mean() < 3 and difference.max() < 12


def test_segments_may_be_left_out(train_store, small_config):
    for config in (small_config, small_config.replace(cache_views=2)):
        whole, bare = Batches(train_store, config)[3], Batches(train_store, config, segments=False)[3]
        assert "segments" not in bare and torch.equal(whole["image"], bare["image"])


def test_stuff_becomes_background_and_no_masks_become_void(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(buffer, "PNG")
    segments = np.array([[1] * 6, [2] * 6, [255] * 6, [254] * 6], np.uint8)
    records = [
        store.Record(buffer.getvalue(), segments, {"source": "a", "things": {1: False, 2: True}}),
        store.Record(buffer.getvalue(), None, {"source": "b"}),
    ]
    store.write(tmp_path / "x.lmdb", records, {"dataset": "test", "split": "x"})
    opened = store.open(tmp_path / "x.lmdb")
    assert read(opened, 0)[1][:, 0].tolist() == [0, 2, 255, 254]
    assert (read(opened, 1)[1] == 255).all()


def test_crops_follow_torchvisions_rule():
    boxes = np.array([crop_box(200, 300, 0.75, draws.generator(0, 0, place, "view")) for place in range(500)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 200).all() and (left + width <= 300).all()
    share = height * width / 200**2  # of the largest square
    assert share.min() > 0.74 and share.max() < 1.01 and 0.8 < share.mean() < 0.93
    aspect = width / height
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert crop_box(200, 300, 1.0, draws.generator(0, 0, 0, "view")) == (0, 50, 200, 200)


def test_squares_cover_all_items_in_order(small_scenes, small_config):
    opened = store.open(small_scenes / "test.lmdb")
    config = small_config.replace(batch_size=2)
    got = list(squares(opened, config))
    assert [batch["info"]["item"].tolist() for batch in got] == [[0, 1], [2]]
    assert len(Squares(opened, 128, 2, limit=1)) == 1
    image, segments = read(opened, 2)
    expected = square(image[None], segments[None], 128)
    assert torch.equal(got[1]["image"], expected[0]) and torch.equal(got[1]["segments"], expected[1])


def test_permutation_is_one():
    assert sorted(permutation(3, 2, 50)) == list(range(50))
    assert list(permutation(3, 2, 50)) != list(permutation(3, 3, 50))


def test_photos_are_read_from_files_and_folders(tmp_path):
    for name, size in (("b.jpg", (50, 40)), ("a.png", (30, 60))):
        Image.fromarray(np.full((*size, 3), 99, np.uint8)).save(tmp_path / name)
    images, names = read_photos([tmp_path], 32)
    assert images.shape == (2, 3, 32, 32) and names == ["a.png", "b.jpg"]
    (tmp_path / "c.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match="c.jpg cannot be decoded"):
        read_photos([tmp_path], 32)
    with pytest.raises(ValueError, match="no file or folder"):
        read_photos([tmp_path / "nothing.jpg"], 32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no photos"):
        read_photos([tmp_path / "empty"], 32)
