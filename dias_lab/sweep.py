"""One trained model under many settings of merging, and whether two settings differ.

Everything before the merge is computed once an image; each setting then merges, runs the last iterations and decodes.

Axes: B images, N slots, S seeds.
"""

import numpy as np
import pandas as pd
import torch

from dias_lab.data.dataset import squares
from dias_lab.evaluate import METRICS
from dias_lab.intervals import paired_interval  # noqa: F401 - for whoever compares the settings
from dias_lab.intervene import with_fields
from dias_lab.methods import segments_from
from dias_lab.methods.base import to_device
from dias_lab.metrics import segmentation_scores
from dias_lab.modules.redundancy import dendrogram


@torch.no_grad()
def merge_sweep(
    model, store, settings: dict[str, dict], protocol: str = "dias", limit: int = 0, seed: int | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each setting and image, and the heights [B N-1] of the images' dendrograms.

    `settings`: by name, the Config fields to change: merging, merge_threshold, merge_rule, guard, min_kept,
    merge_probability, reinitialize_from, mask_reinitialized. Columns: setting, item, objects (true segments), kept (slots),
    and ari, fg_ari, mbo, miou of the decoder's map. Raises ValueError for a field that acts before the merge, and for
    another method than DIAS.
    """
    if model.config.method != "dias":
        raise ValueError(f"merging is part of DIAS; this model's method is {model.config.method!r}, which never merges slots")
    before = {"num_slots", "num_iterations", "reinitialized_iterations", "initializer", "linkage"}
    if early := sorted(before & {name for fields in settings.values() for name in fields}):
        raise ValueError(f"{', '.join(early)} acts before the merge; change it in the model: with_fields(model, ...)")
    seed, config = model.config.seed if seed is None else seed, model.config
    variants = {name: with_fields(model, **fields) for name, fields in settings.items()}
    rows, heights = [], []
    for batch in squares(store, config, limit):
        true, items = batch["segments"].to(model.device), batch["info"]["item"].tolist()
        features = model.backbone(model.normalise(batch["image"]))  # [B C h w]
        tokens = features.flatten(2).transpose(1, 2)
        draws = {name: draw for one in (model, *variants.values()) for name, draw in one.draw(items, seed).items()}
        draws = to_device(draws, model.device)
        projected, target = model.project(tokens), model.target(features)[0].flatten(2).transpose(1, 2)
        initial = model.initializer(len(items), noise=draws["slots"])
        iterations = config.num_iterations - config.reinitialized_iterations
        slots, attention = model.aggregator(projected, initial, num_iterations=iterations)
        heights.append(dendrogram(slots, config.linkage).heights.cpu())
        objects = [len(segments[(segments > 0) & (segments < 254)].unique()) for segments in true]
        for name, variant in variants.items():
            final, _, keep = variant.finish(projected, slots, attention, draws)
            decoded = model.decoder(target, final, keep, need_attention=True)[1].unflatten(2, model.backbone.grid)
            scores = segmentation_scores(segments_from(decoded, true.shape[-1]), true, protocol)
            columns = {"setting": name, "item": items, "objects": objects, "kept": keep.sum(1).cpu()}
            rows.append(pd.DataFrame(columns | {metric: scores[metric].cpu() for metric in METRICS}))
    return pd.concat(rows, ignore_index=True), torch.cat(heights).numpy()
