"""Two claims of DIAS's neighbours, measured on the finished runs of methods: docs/methods-iterations.csv and -orders.csv.

    python docs/methods_claims.py [FOLDER]     # runs/methods by default; minutes. 07 draws both tables, and judges by them

SmoothSA's: preheated slots need fewer iterations. The same weights with 1, 2, 3 iterations and so on; *without* preheating
is Slot Attention. SPOT's argument for permuted orders: in raster order the first locations must be told by the slots, the
later ones can be guessed from their neighbours; so the loss sends its gradient to the slots from the first alone. For the
error e_l of location l the table has |d e_l / d slots|, estimated from random directions v of all slots together: the mean
of (d e_l / d slots . v)^2 is its square.

Axes: B images, L = h w locations.
"""

import sys
import warnings

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dias_lab import load_model, runs
from dias_lab.analysis import compare
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import with_fields
from dias_lab.data import store
from dias_lab.data.dataset import Squares
from dias_lab.methods.base import to_device

IMAGES, GRADIENT_IMAGES, DIRECTIONS = 50, 6, 24
METRICS = ("ari", "fg_ari", "mbo")


def iterations(found: pd.DataFrame, test) -> pd.DataFrame:
    """Scores of the decoder's map by number of iterations, of all seeds of both methods."""
    rows = []
    for name in ("SmoothSA", "Slot Attention"):
        for model in map(load_model, found[found["setting"] == name]["run"]):
            for number in range(1, model.config.num_iterations + 1):
                other = with_fields(model, num_iterations=number, distillation="none")
                scores = evaluate(other, test, limit=IMAGES).scores["decoder"]
                rows.append({"method": name, "seed": model.config.seed, "iterations": number} | {m: scores[m] for m in METRICS})
    return pd.DataFrame(rows)


def squared_slopes(model, tokens, out, way: dict, number: int) -> list[torch.Tensor]:
    """Of the error at each location along random directions of the slots, `number` times [B L]."""

    def error(slots):
        rebuilt = model.decoder(tokens, slots, out.keep, need_attention=False, **way)[0]
        return (rebuilt - tokens).square().mean(dim=2)  # [B L]

    random = torch.Generator(tokens.device).manual_seed(0)
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)  # torch's own
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), quiet:
        directions = (torch.randn(out.slots.shape, generator=random, device=tokens.device) for _ in range(number))
        return [torch.func.jvp(error, (out.slots,), (v,))[1].square() for v in directions]


def share_of_rows(model, images: torch.Tensor, ways) -> torch.Tensor:
    """The share of the gradient that each row of locations sends [h]: the mean over images and ways to decode."""
    with torch.no_grad():
        out = model.eval()(model.normalise(images), draws=model.draw(range(len(images)), model.config.seed))
    tokens, squares, found = out.features.flatten(2).transpose(1, 2), [], ways(model, out)
    for way in found:
        squares += squared_slopes(model, tokens, out, way, max(2, DIRECTIONS // len(found)))
    by_row = torch.stack(squares).mean(0).sqrt().mean(0).unflatten(0, out.features.shape[2:]).mean(1)
    return by_row / by_row.sum()


def orders(numbers):
    return lambda model, out: [{"permutation": model.decoder.number(k, len(out.slots))} for k in numbers]


def hidden(model, out) -> list[dict]:
    """The first draws of a training: each image another visible part."""
    draws = [model.draw(range(len(out.slots)), seed) for seed in range(8)]
    frames = {"frames": out.attention[-1].flatten(2)} if model.decoder.framed else {}
    return [to_device(model.decoder.drawn(draw), out.slots.device) | frames for draw in draws]


def main(folder: str):
    found = compare.finished(folder, "dias").runs
    if found.empty:
        sys.exit(f"no finished run in {folder}")
    test = store.open(runs.resolve(found["data"].iloc[0]) / "test.lmdb")
    iterations(found, test).to_csv(runs.resolve("docs/methods-iterations.csv"), index=False, float_format="%.5g")
    models = {name: load_model(own["run"].iloc[0]) for name, own in found.groupby("setting", sort=False)}
    images = Squares(test, next(iter(models.values())).config.image_size, GRADIENT_IMAGES, limit=GRADIENT_IMAGES)[0]["image"]
    shares = {}
    for name, numbers in (("raster order", [0]), ("reverse raster", [5]), ("all nine orders", range(9))):
        if compare.STAGE_1 in models:
            shares[f"SPOT, {name}"] = share_of_rows(models[compare.STAGE_1], images, orders(numbers))
    if "DIAS" in models:
        shares[f"DIAS, {models['DIAS'].config.decoder.replace('_', ' ')}"] = share_of_rows(models["DIAS"], images, hidden)
    table = pd.DataFrame({name: values.tolist() for name, values in shares.items()}).rename_axis("row")
    table.to_csv(runs.resolve("docs/methods-orders.csv"), float_format="%.5g")
    print("wrote docs/methods-iterations.csv and docs/methods-orders.csv")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/methods")
