"""One trained model under many settings of merging.

Everything before the merge is computed once an image; each setting then merges, runs the last iterations and decodes.

Axes: B images, N slots.
"""

import numpy as np
import pandas as pd
import torch

from dias_lab.analysis.evaluate import METRICS, score
from dias_lab.analysis.interventions import with_fields
from dias_lab.methods import segments_from
from dias_lab.methods.base import to_device
from dias_lab.metrics import OVERLAP
from dias_lab.modules.redundancy import dendrogram, otsu_threshold

FLOOR = 0.003  # heights below it are alike; docs/reinitialization.md says what other floors give
BEFORE = {"num_slots", "num_iterations", "evaluation_iterations", "reinitialized_iterations", "initializer", "linkage"}


def merge_sweep(
    model, store, settings: dict[str, dict], protocol: str = "dias", limit: int = 0, seed: int | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each setting and image, and the heights [B N-1] of the images' dendrograms.

    `settings`: by name, the Config fields to change: merging, merge_threshold, merge_rule, guard, min_kept,
    merge_probability, reinitialize_from, mask_reinitialized. Columns: setting, item, objects (true segments), kept (slots),
    reconstruction (its error), and ari, fg_ari, mbo, miou of the decoder's map. Raises ValueError for a field that acts
    before the merge, and for another method than DIAS.
    """
    if model.config.method != "dias":
        raise ValueError(f"merging is part of DIAS; this model's method is {model.config.method!r}, which never merges slots")
    if early := sorted(BEFORE & {name for fields in settings.values() for name in fields}):
        raise ValueError(f"{', '.join(early)} acts before the merge; change it in the model: with_fields(model, ...)")
    seed, config = model.config.seed if seed is None else seed, model.config
    variants = [with_fields(model, **fields) for fields in settings.values()]
    heights = []

    def predict(batch):
        true, items = batch["segments"], batch["info"]["item"].tolist()
        features = model.backbone(model.normalise(batch["image"]))  # [B C h w]
        draws = {name: draw for one in (model, *variants) for name, draw in one.draw(items, seed).items()}
        draws = to_device(draws, model.device)
        projected = model.project(features.flatten(2).transpose(1, 2))
        initial = model.initializer(len(items), noise=draws["slots"])
        iterations = model.aggregator.iterations - config.reinitialized_iterations
        slots, attention = model.aggregator(projected, initial, num_iterations=iterations)
        heights.append(dendrogram(slots, config.linkage).heights.cpu())
        target = model.target(features)[0]  # [B C h w]
        found = {"objects": torch.tensor([len(one[(one > 0) & (one < OVERLAP)].unique()) for one in true])}
        for number, variant in enumerate(variants):
            final, maps, keep, _ = variant.finish(projected, slots, attention, draws)
            place = maps[-1].unflatten(2, model.backbone.grid)
            rebuilt, decoded = model.reconstruct(target, final, keep, attention=place)
            error = (rebuilt - target).square().mean(dim=(1, 2, 3))
            found |= {f"{number}.kept": keep.sum(1), f"{number}.reconstruction": error}
            found[str(number)] = segments_from(decoded, true.shape[-1])
        return found

    images, columns, parts = score(predict, store, config, protocol, limit), ("kept", "reconstruction", *METRICS), {}
    for number, name in enumerate(settings):
        own = images[["item", "objects", *(f"{number}.{column}" for column in columns)]]
        parts[name] = own.set_axis(["item", "objects", *columns], axis=1)
    return pd.concat(parts, names=["setting"]).reset_index("setting").reset_index(drop=True), torch.cat(heights).numpy()


def calibrated_threshold(heights: np.ndarray) -> float:
    """A merge threshold that needs no hand and no label: from the heights of some pictures' dendrograms, all together.

    It lies between the two groups into which their logarithms fall (Otsu 1979): redundant slots are nearer than others by
    an order of magnitude, and a few far ones would draw a threshold of the heights themselves upwards.
    """
    return float(np.exp(otsu_threshold(torch.from_numpy(heights).clamp_min(FLOOR).log())))
