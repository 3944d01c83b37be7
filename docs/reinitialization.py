"""The study behind docs/reinitialization.md: thresholds and automatic rules of merging, on models that learned.

    python docs/reinitialization.py [RUN ...]    # by default runs/scenes-42, -43, -44; writes docs/reinitialization*.csv

Evaluation only. A picture's slots form one tree, so all that a rule decides is how many merges are carried out: every
number is scored once, and a rule looks its own up. The best fixed threshold is chosen by hindsight, for each difficulty and
number of slots on the test scenes themselves, by the mean of ARI, FG-ARI and mBO. Calibrated rules see training scenes of
the same difficulty, without labels. Numbers in the rules (5 %, a fourth root) were chosen on validation scenes.
"""

import sys
import tempfile
import time

import numpy as np
import pandas as pd
import torch

from dias_lab import load_model, runs
from dias_lab.analysis.intervals import paired_interval, widened_interval
from dias_lab.analysis.interventions import with_fields
from dias_lab.analysis.sweep import calibrated_threshold, merge_sweep
from dias_lab.data import store as stores
from dias_lab.data.convert import scenes
from dias_lab.modules.redundancy import otsu_threshold

DIFFICULTIES, SLOTS, IMAGES, LEFT = ("scenes", "regions", "crowded", "recoloured"), (5, 7, 11), 100, 2
THRESHOLDS = (0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
FIXED = [f"{threshold:g}" for threshold in THRESHOLDS]
FEW = {"0.03": 0.03, "0.05": 0.05, "0.1": 0.1, "0.2": 0.2}  # for the variants
BY_ITSELF = {"gap": {"merge_rule": "gap"}, "otsu": {"merge_rule": "otsu"}, "no merging": {"merging": "none"}}
VARIANTS = {  # fields that act before the merge, and those that act at it
    "2 iterations from the merged slots": ({"reinitialized_iterations": 2}, {}),
    "merging alone": ({}, {"merging": "merge"}),
    "complete linkage": ({"linkage": "complete"}, {}),
}
SCORES = ["ari", "fg_ari", "mbo"]
TABLE = runs.resolve("docs/reinitialization.csv")


class Swept:
    """A model's pictures with every number of merges."""

    def __init__(self, model, store):
        self.slots = model.config.num_slots
        every = {str(kept): {"merge_threshold": 2.0, "min_kept": kept} for kept in range(1, self.slots + 1)}
        table, self.heights = merge_sweep(model, store, every | BY_ITSELF, limit=IMAGES)
        self.table, self.items = with_score(table), table["item"].unique()

    def wide(self, column: str) -> np.ndarray:
        """[B N]: after 0, 1, .. N - 1 merges."""
        names = [str(kept) for kept in range(self.slots, 0, -1)]
        return self.table.pivot(index="item", columns="setting", values=column).loc[self.items, names].to_numpy()

    def below(self, threshold, left: int = LEFT) -> np.ndarray:
        """The merges below a threshold, or below each picture's own, of those that leave so many slots."""
        return np.minimum((self.heights < threshold).sum(axis=1), self.slots - left)

    def after(self, merges: np.ndarray) -> pd.DataFrame:
        wanted = pd.DataFrame({"item": self.items, "setting": (self.slots - merges).astype(str)})
        return wanted.merge(self.table, on=["item", "setting"]).drop(columns="setting")


def rules(test: Swept, training_heights: np.ndarray) -> dict[str, np.ndarray]:
    """The number of merges of each test picture, by rule."""
    most, largest = test.slots - LEFT, test.heights[:, -1:]
    from_zero = np.pad(test.heights, ((0, 0), (1, 0))) / largest  # [B N]
    errors = test.wide("reconstruction")
    cheap = np.where(errors <= 1.05 * errors[:, :1], np.arange(test.slots), 0)[:, : most + 1]
    logarithms = torch.from_numpy(test.heights).clamp_min(1e-3).log()
    own = np.exp([otsu_threshold(picture) for picture in logarithms])[:, None]
    return {
        **{name: test.below(threshold) for name, threshold in zip(FIXED, THRESHOLDS)},
        "calibrated": test.below(otsu_threshold(torch.from_numpy(training_heights))),
        "calibrated, logarithms": test.below(calibrated_threshold(training_heights)),
        "calibrated, fourth roots": test.below(otsu_threshold(torch.from_numpy(training_heights) ** 0.25) ** 4),
        "share of the largest, 5 %": test.below(0.05 * largest),
        "otsu, logarithms": test.below(own),
        "knee": np.minimum((np.linspace(0, 1, test.slots) - from_zero).argmax(axis=1), most),
        "each picture's error + 5 %": cheap.max(axis=1),
        "best for each picture": test.wide("score")[:, : most + 1].argmax(axis=1),
    }


def guards(test: Swept) -> dict[str, np.ndarray]:
    """The same at each fixed threshold, by how many slots are left at least; "cancel" merges nothing rather than too much."""
    found = {}
    for name, threshold in FEW.items():
        found |= {f"at least {left} left @{name}": test.below(threshold, left) for left in (1, 2, 3, 4)}
        free = test.below(threshold, 1)
        for left in (2, 3):
            found[f"at least {left} left, cancel @{name}"] = np.where(test.slots - free < left, 0, free)
    return found


def swept(trained, slots: int, train, test) -> pd.DataFrame:
    """A row for each rule and test picture; of 7 slots, for each variant at each fixed threshold as well ("name @.1")."""
    model = with_fields(trained, num_slots=slots)
    scored, (_, heights) = Swept(model, test), merge_sweep(model, train, {"none": BY_ITSELF["no merging"]}, limit=IMAGES)
    picked = rules(scored, heights) | (guards(scored) if slots == trained.config.num_slots else {})
    parts = [scored.after(merges).assign(rule=name) for name, merges in picked.items()]
    parts.append(scored.table[scored.table["setting"].isin(BY_ITSELF)].rename(columns={"setting": "rule"}))
    for name, (before, fields) in VARIANTS.items() if slots == trained.config.num_slots else ():
        settings = {f"{name} @{at}": {"merge_threshold": threshold} | fields for at, threshold in FEW.items()}
        table, _ = merge_sweep(with_fields(model, **before), test, settings, limit=IMAGES)
        parts.append(table.rename(columns={"setting": "rule"}))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(calibrated=calibrated_threshold(heights))


def study(places) -> pd.DataFrame:
    tables, models = [], [load_model(place) for place in places]
    for name in DIFFICULTIES:
        with tempfile.TemporaryDirectory() as folder:
            made = scenes.convert(folder, IMAGES, 1, IMAGES, name)
            train, test = (stores.open(made[split]) for split in ("train", "test"))
            for model in models:
                for slots in SLOTS:
                    table = swept(model, slots, train, test)
                    tables.append(table.assign(data=name, seed=model.config.seed, slots=slots))
                print(name, model.config.seed, flush=True)
    return pd.concat(tables, ignore_index=True)


def against(part: pd.DataFrame, pairs: dict[str, str]) -> pd.DataFrame:
    """A row for each rule: its difference to another's score, paired over seeds and pictures; two intervals of 95 %."""
    wide, rows = part.pivot(index="seed", columns=["rule", "item"], values="score"), []
    means = part.groupby("rule")[["score", "kept", *SCORES]].mean()
    for rule, other in pairs.items():
        differences = wide[rule].to_numpy() - wide[other].to_numpy()
        mean, low, high = paired_interval(differences)
        wider_low, wider_high = widened_interval(differences)[1:]
        found = {"difference": mean, "low": low, "high": high, "wider_low": wider_low, "wider_high": wider_high}
        rows.append({"rule": rule, **means.loc[rule], "against": other, **found, "within_noise": low <= 0 <= high})
    return pd.DataFrame(rows)


def best_threshold(part: pd.DataFrame, variant: str = "") -> str:
    """The name of the best of the fixed thresholds, of a variant at them."""
    names = [f"{variant} @{name}" for name in FEW] if variant else FIXED
    return part.groupby("rule")["score"].mean()[names].idxmax()


def compared(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rules against the best fixed threshold; and variants at their own best one against the default at its best."""
    by_rule, by_variant, plain = {}, {}, ~results["rule"].str.contains("@")
    for (name, slots), part in results[plain].groupby(["data", "slots"], sort=False):
        best = best_threshold(part)
        by_rule[name, slots] = against(part, {rule: best for rule in part["rule"].unique()})
    for name, part in results[results["slots"] == 7].groupby("data", sort=False):
        variants = dict.fromkeys(rule.partition(" @")[0] for rule in part["rule"].unique() if "@" in rule)
        plainly = part.groupby("rule")["score"].mean()[list(FEW)].idxmax()
        chosen = [best_threshold(part, variant) for variant in variants]
        by_variant[name, 7] = against(part, {rule: plainly for rule in (*chosen, "no merging")})
    return tuple(pd.concat(one, names=["data", "slots"]).reset_index([0, 1]) for one in (by_rule, by_variant))


def with_score(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(score=table[SCORES].mean(axis=1, skipna=False))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    started = time.perf_counter()
    results = with_score(study(sys.argv[1:] or [f"runs/scenes-{seed}" for seed in (42, 43, 44)]))
    grouped = results[~results["rule"].str.contains("@")].groupby(["data", "slots", "rule", "seed"], sort=False)
    means = grouped[[*SCORES, "miou", "score", "kept", "objects", "reconstruction", "calibrated"]].mean()
    means["correlation"] = grouped.apply(lambda one: one["kept"].corr(one["objects"]) if one["kept"].std() else np.nan)
    means.round(4).to_csv(TABLE)
    for name, table in zip(("rules", "variants"), compared(results)):
        table.round(4).to_csv(TABLE.with_name(f"reinitialization-{name}.csv"), index=False)
        shown = 100 * table.pivot_table(index="rule", columns=["data", "slots"], values="difference", sort=False)
        print(shown.assign(mean=shown.mean(axis=1), worst=shown.min(axis=1)).round(2).to_string(), "\n")
    print(f"{time.perf_counter() - started:.0f} s")
