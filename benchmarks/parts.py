"""Each part of a training step and of what surrounds it: time, operations, bytes, and what share of the machine that is.

    python -m benchmarks parts

Workload: the preset coco (ViT-S/14 with random weights at 224 pixels, 7 slots), batches of 8 photos of 640x480, float32, two
threads. Comparators: the data path with no workers for those with some; for the crop of a large photo, the same from all of
its pixels; for the decoder, the same with its last layer's attention weights; for the loss, slots matched image by image; for
the evaluation, the model's forward pass alone. `of_product` and `of_copy` are shares of what a large matrix product and a large
copy reach on this machine. Bytes are those of weights, inputs and outputs, each moved once: the least.
"""

import io
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from benchmarks._measure import row
from benchmarks._straightforward import scipy_match
from benchmarks.cache import photo, photo_stores
from dias_lab.analysis.discovery import open_stores
from dias_lab.analysis.evaluate import evaluate
from dias_lab.data import store as store_file
from dias_lab.data.dataset import as_image, batches, crop, read, resize
from dias_lab.data.features import make
from dias_lab.methods import build
from dias_lab.training.cost import operations, take_turns

BATCH, REPETITIONS = 8, 5


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = photo_stores(Path(folder), 4 * BATCH, batch_size=BATCH)
            return [*data_path(config), *model_parts(config), *whole(config)]
    finally:
        torch.set_num_threads(threads)


def data_path(config) -> list[dict]:
    """Read, decode, crop and resize; seconds a batch, once the workers run; then its parts, and a photo of 12 million pixels."""
    store, found, alone = open_stores(config)[0], [], None
    for workers in (0, 1, 2):
        source = batches(store, config.replace(workers=workers, steps=24), segments=False)
        seconds = []
        for _ in range(24):
            start = time.perf_counter()
            next(source)
            seconds.append(time.perf_counter() - start)
        if workers:
            found.append(row(f"data path, first batch of {workers} workers", seconds[:1]))
            print(f"data path, first batch of {workers} workers: {seconds[0]:.1f} s")
        mean = [sum(seconds[first : first + 4]) / 4 for first in range(8, 24, 4)]  # workers hand batches over in bursts
        alone = alone or mean
        found.append(row(f"data path, {workers} workers", mean, alone, bytes=BATCH * 3 * config.image_size**2))
        print(f"data path, {workers} workers: {BATCH / found[-1]['seconds']:.1f} images/s")
    image = read(store, 0)[0]
    parts = {
        "read": lambda: store[0],
        "decode": lambda: as_image(Image.open(io.BytesIO(store[0].image))),
        "crop and resize": lambda: resize(image[None, :, 20:460, 90:530], None, config.image_size),
    }
    seconds = take_turns(parts, repetitions=50)
    seconds["decode"] = [decode - read for decode, read in zip(seconds["decode"], seconds["read"])]
    whole = sum(map(statistics.median, seconds.values()))
    for name in parts:
        found.append(row(f"data path, {name} one image", seconds[name]))
        print(f"data path, {name}: {100 * found[-1]['seconds'] / whole:.0f} % of an image's time")
    return [*found, large_photo(config)]


def large_photo(config) -> dict:
    """Decoded at the scale that its crop needs."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo(np.random.default_rng(0)))).resize((4000, 3000)).save(buffer, "JPEG", quality=90)
    with tempfile.TemporaryDirectory() as folder:
        record = store_file.Record(buffer.getvalue(), None, {"source": "made"})
        store = store_file.open(store_file.write(f"{folder}/x.lmdb", [record], {"dataset": "made", "split": "x"}))

        def ours():
            return crop(store, 0, config, np.random.default_rng(0), segments=False)

        def theirs():
            with mock.patch.object(JpegImageFile, "draft"):
                return ours()

        seconds = take_turns({"ours": ours, "theirs": theirs}, REPETITIONS)
    return row("crop of a photo of 4000x3000", seconds["ours"], seconds["theirs"])


def model_parts(config) -> list[dict]:
    model = build(config).train()
    images = torch.randint(256, (BATCH, 3, config.image_size, config.image_size), dtype=torch.uint8)
    draws, pictures = model.draw(range(BATCH), 0), model.normalise(images)
    with torch.no_grad():
        features = model.backbone(pictures)
        tokens = features.flatten(2).transpose(1, 2)
        projected, slots = model.project(tokens), model.initializer(BATCH, noise=draws["slots"])
    hide = model.decoder.drawn(draws)
    output = model(None, features=features, draws=draws)
    maps = output.attention.flatten(3).detach()

    def backward(*outputs):
        torch.autograd.grad(sum(out.float().sum() for out in outputs if out is not None), trained, allow_unused=True)

    def loss():
        return model.losses(output, 0.5)[0]

    def plain_loss():
        with mock.patch("dias_lab.losses.match_segments", scipy_match):
            return model.losses(output, 0.5)[0]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = {
        "backbone": (lambda: model.backbone(pictures), None, model.backbone, (pictures, features)),
        "aggregator": (lambda: backward(*model.aggregator(projected, slots)), None, model.aggregator, (projected, slots, maps)),
        "decoder": (
            lambda: backward(*model.decoder(tokens, slots, None, need_attention=False, **hide)),
            lambda: backward(*model.decoder(tokens, slots, None, need_attention=True, **hide)),
            model.decoder, (tokens, slots, tokens),
        ),
        "loss": (loss, plain_loss, None, (features, features, maps)),
    }  # fmt: skip
    found = []
    for name, (ours, theirs, module, tensors) in parts.items():
        seconds = take_turns({"ours": ours, "theirs": theirs} if theirs else {"ours": ours}, REPETITIONS)
        weights = sum(parameter.nbytes for parameter in module.parameters()) if module else 0
        moved = weights + sum(tensor.nbytes for tensor in tensors)
        found.append(row(name, seconds["ours"], seconds.get("theirs"), flops=operations(ours), bytes=moved))
    return found


def whole(config) -> list[dict]:
    """Evaluation, metrics included, beside the forward passes alone; and building the cache of one view and its flip."""
    model, (train, validation) = build(config).eval(), open_stores(config)
    images = torch.randint(256, (BATCH, 3, config.image_size, config.image_size), dtype=torch.uint8)

    @torch.no_grad()
    def forward():
        model(model.normalise(images), draws=model.draw(range(BATCH), 0))

    def scored():
        evaluate(model, validation, limit=BATCH)

    def cached():
        make(train, config.replace(cache_views=1, seed=next(seeds)), model.backbone)

    seeds = iter(range(1000))
    seconds = take_turns({"forward": forward, "evaluation": scored}, REPETITIONS)
    built = take_turns({"cache": cached}, repetitions=3)["cache"]
    per_batch = [one / (2 * len(train) / BATCH) for one in built]
    made = BATCH * model.num_locations * model.backbone.feature_dim * 2
    return [
        row("evaluation", seconds["evaluation"], seconds["forward"], flops=operations(forward)),
        row("cache build, a batch of views", per_batch, bytes=made),
    ]
