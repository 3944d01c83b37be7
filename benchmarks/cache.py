"""Training steps from the feature cache, beside the same steps from pixels.

    python -m benchmarks cache

Workload: the preset coco with DINOv2's ViT-S/14 and ViT-B/14 (four registers) of random weights, batches of 8 JPEG photos of
640x480 pixels. From pixels a step decodes, crops, runs the frozen backbone and trains; from the cache it reads the
features and trains. The steps are `Training.update`'s own. `allowed` is the speed-up that counted operations allow:
those of backbone and training step over those of the training step alone.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import _measure
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.data.dataset import batches
from dias_lab.data.features import feature_batches
from dias_lab.training.cost import operations, take_turns
from dias_lab.training.loop import Training

BACKBONES = {"ViT-S/14": "vit_small_patch14_reg4_dinov2.lvd142m", "ViT-B/14": "vit_base_patch14_reg4_dinov2.lvd142m"}
BATCH, STEPS = 8, 5


def photo(random: np.random.Generator) -> bytes:
    """A JPEG about as hard to decode as a photo: smooth shapes and some noise."""
    small = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    noisy = np.asarray(small, np.int16) + random.integers(-12, 13, (480, 640, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photo_stores(folder: Path, images: int, **fields) -> Config:
    """A training and a validation split of photos in the folder, and the preset coco for them on the CPU."""
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        records = (store.Record(photo(random), None, {"source": f"photo {number}"}) for number in range(images))
        store.write(folder / f"{split}.lmdb", records, {"dataset": "photos", "split": split})
    fields = {"device": "cpu", "precision": "32-true", "backbone_weights": "random", **fields}
    return Config.preset("coco", data=str(folder), **fields)


def rows() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        config = photo_stores(Path(folder), 2 * BATCH, batch_size=BATCH, cache_views=1)
        return [row(config, Path(folder), label, name) for label, name in BACKBONES.items()]


def row(config: Config, folder: Path, label: str, backbone: str) -> dict:
    config = config.replace(backbone=backbone)
    training = Training(config, folder / "run")
    training.model.train()
    scenes = training.train_store
    sources = {"pixels": batches(scenes, config), "cache": feature_batches(scenes, config, training.model.backbone)}
    steps = {name: lambda source=source: training.update(next(source)) for name, source in sources.items()}
    counted = {name: operations(step) for name, step in steps.items()}  # and a first step of each
    seconds = take_turns(steps, STEPS, warm_up=False)
    allowed, read = counted["pixels"] / counted["cache"], training.model.num_locations * training.model.backbone.feature_dim * 2
    facts = {"allowed": allowed, "flops": counted["cache"], "bytes": BATCH * read}
    found = _measure.row(f"cached step, {label}", seconds["cache"], seconds["pixels"], **facts)
    cached, pixels, ratio = (found[name] for name in ("seconds", "comparator_seconds", "ratio"))
    print(
        f"{label}: from pixels {BATCH / pixels:.2f} images/s, from the cache {BATCH / cached:.2f}; {ratio:.2f} times, "
        f"counted operations allow {allowed:.2f}: {100 * ratio / allowed:.0f} %"
    )
    return found
