"""Recognition: what a slot says of its object. A head for each slot, alone, tells class and box; the model stays frozen.

Sources: DIAS, Zhao et al. 2025, arXiv:2507.23755, reports class top-1 and box R2 of such a head; the head and its schedule are
those of Genera1Z/RandSF.Q and SmoothSA: one hidden layer, trained on the slots that have found an object (matching.py).

Axes: B images (or frames), N slots, D their width, C classes, M items of a store, K objects that were found.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor, nn

from dias_lab import runs
from dias_lab.analysis.discovery import Discovery, open_stores
from dias_lab.analysis.slots import slots_for
from dias_lab.config import Config
from dias_lab.data import store as stores
from dias_lab.data.dataset import permutation
from dias_lab.data.draws import Request, draw, dropped
from dias_lab.heads import scores as scoring
from dias_lab.heads.matching import BOX, objects, targets
from dias_lab.methods import Method, checkpoint, task
from dias_lab.methods.base import to_device

PRIOR = "majority class, mean box"
KINDS = {"model": "{}", "untrained": "{}, untrained", "true": "true segments", "k_means": "k-means"}  # of slots, in tables
DROPOUT = Request("dropout", lambda random: {"dropout": np.asarray(random.integers(2**62))})  # a key for each image


@dataclass
class Recognised:
    """What a head says of slots, and, in training, what it should have said (`matching.targets`)."""

    logits: Float[Tensor, "B N C"]
    boxes: Float[Tensor, "B N 4"]  # left, top, right, bottom in shares of the square
    label: Int[Tensor, "B N"] | None = None
    true_boxes: Float[Tensor, "B N 4"] | None = None


class Head(task.Head):
    """Class and box from a slot: Linear, GELU, dropout, Linear."""

    def __init__(self, config: Config, slot_dim: int, classes: dict[int, str]):
        super().__init__()
        self.config, self.classes = config, dict(sorted(classes.items()))  # name by id, in the order of the logits
        self.names = [*self.classes.values()] + ["background"] * config.background_class  # of slots that have found nothing
        self.hidden = nn.Linear(slot_dim, config.head_dim)
        self.out = nn.Linear(config.head_dim, len(self.names) + 4)
        self.register_buffer("counts", torch.zeros(len(self.names)))  # of objects that were found in training
        self.register_buffer("mean_box", torch.zeros(4))  # of them

    def forward(self, slots: Float[Tensor, "B N D"], label=None, true_boxes=None, draws=None) -> Recognised:
        """`draws`, of a training step: the key of each image's dropout."""
        hidden = F.gelu(self.hidden(slots))
        if self.training:
            hidden = dropped(hidden, self.config.head_dropout, draws["dropout"])
        return Recognised(*self.out(hidden).split([len(self.names), 4], dim=-1), label, true_boxes)


def recognition_losses(found: Recognised, classes: int) -> dict[str, Float[Tensor, ""]]:
    """class: cross-entropy, nats a slot of which a class is asked; box: mean absolute error of a coordinate, in sides of the
    square, of slots that have found one of the `classes`. 0 where there is none."""
    asked, real = found.label >= 0, (found.label >= 0) & (found.label < classes)  # [B N]
    entropy = F.cross_entropy(found.logits.float().flatten(0, 1), found.label.flatten(), ignore_index=-1, reduction="sum")
    error = (found.boxes.float() - found.true_boxes).abs().mean(dim=-1)
    return {"class": entropy / asked.sum().clamp_min(1), "box": (error * real).sum() / real.sum().clamp_min(1)}


class Recognition:
    """A head on the slots of `config.parent`; what each function gives, methods/task.py says."""

    through_parent, records = True, staticmethod(Discovery.records)

    def __init__(self, config: Config):
        self.config, splits = config, open_stores(config)
        self.slots, self.seen = (slots_for(config, store) for store in splits)  # of training and validation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = Head(config, self.slots.slots.shape[2], classes_of(splits[0]))

    @staticmethod
    def check(config: Config):
        for store in open_stores(config):
            classes_of(store)
        runs.weights_hash(config.parent)  # ValueError where it is no run
        if (task := Config.load(runs.resolve(config.parent)).task) != "discovery":
            raise ValueError(f"the parent {config.parent} is a run of task {task!r}, which has no slots: take that run's parent")

    def begin(self, fabric: Fabric) -> dict:
        config, model, ids, (train, validation) = self.config, self.model, [*self.model.classes], open_stores(self.config)
        self.validation = objects(validation, self.seen, config, ids, config.evaluate_images)
        found = objects(train, self.slots, config, ids)
        self.targets = targets(found, np.asarray(self.slots.keep), len(ids) if config.background_class else None)
        self.items = np.flatnonzero((self.targets["label"] >= 0).any(axis=1))  # a step on others would learn nothing
        known = found[(found["slot"] >= 0) & (found["label"] >= 0)]
        if known.empty:
            none = f"of {(found['label'] >= 0).sum()} objects of known class in {train.path} no slot has found any"
            raise ValueError(f"{none}, with an IoU above match_iou={config.match_iou}: lower it, or train the parent longer")
        model.counts.copy_(torch.from_numpy(np.bincount(known["label"], minlength=len(model.names))))
        model.mean_box.copy_(torch.tensor(known[BOX].to_numpy().mean(axis=0)))
        facts = {name: train.meta[name] for name in ("dataset", "split", "count")} | {"slot_dim": model.hidden.in_features}
        return facts | {"records": self.records(config), "classes": {str(one): name for one, name in model.classes.items()}}

    def batches(self, places: range, step: int, progress: bool = False) -> Iterator[dict]:
        for number in range(step, self.config.steps):
            drawn = (divmod(number * self.config.batch_size + place, len(self.items)) for place in places)
            items = self.items[[permutation(self.config.seed, epoch, len(self.items))[place] for epoch, place in drawn]]
            arrays = {"slots": self.slots.slots, **self.targets}.items()
            batch = {name: torch.from_numpy(np.asarray(array[items])) for name, array in arrays}
            yield batch | {"slots": batch["slots"].float(), "info": {"item": torch.from_numpy(items), "step": number}}

    def prepare(self, batch: dict, places: range) -> tuple[dict, dict]:
        draws, device = draw(self.config.seed, batch["info"]["step"], places, [DROPOUT]), self.model.counts.device
        return to_device({name: batch[name] for name in ("slots", "label", "true_boxes")}, device), to_device(draws, device)

    def losses(self, output: Recognised, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        return recognition_losses(output, len(self.model.classes)), {"class": 1.0, "box": self.config.box_weight}

    def measured(self, output: Recognised) -> dict[str, Tensor]:
        return {"asked": (output.label >= 0).float().sum(dim=1).mean()}  # slots an image

    def parameter_groups(self) -> list[dict]:
        return [{"params": [*self.model.parameters()], "share": 1.0}]

    def compiled(self) -> list[nn.Module]:
        return []  # it is smaller than what compiling saves

    def evaluate(self, fabric: Fabric) -> dict:
        found = scoring.scores(answers(self.model.eval(), self.validation, self.seen))
        self.model.train()
        return found | {"store": "validation", "unknown": int((self.validation["label"] < 0).sum())}

    def selection(self, scores: dict) -> float:
        """top-1 + box IoU: the head is to know both."""
        return scores["top1"] + scores["box_iou"]

    @staticmethod
    def text(scores: dict) -> str:
        values = pd.Series(scores)[[*scoring.SCORES]].astype(float)  # JSON has null for NaN
        told = ", ".join(f"{scoring.SCORES[name][0]} {scoring.mean_text(value, np.nan)}" for name, value in values.items())
        return f"{scores['store']}: {scores['matched']} of {scores['true']} objects found; x100: {told}"

    @staticmethod
    def report(run_dir, store, limit: int = 0) -> tuple[dict, str]:
        """What the best head says of the first `limit` images (clips; 0: all) of a store or its path: "head" and "prior" are
        `scores.scores`, "classes" has a dict a class, "unknown" counts objects of unknown class, which are left out; and a text.
        ValueError as `load` and slots_for have it, and for a store of other classes, or of none."""
        head, found, slots, store = _looked_at(run_dir, store, limit)
        tables = {"head": answers(head, found, slots)} | ({"prior": prior(head, found)} if head.counts.any() else {})
        classes, unit = scoring.by_class(tables["head"], head.names), "clips" if store.meta["kind"] == "video" else "images"
        told = {"task": "recognition", "store": store.path.stem, unit: int(found["unit"].nunique()), "limit": limit}
        told |= {"unknown": int((found["label"] < 0).sum()), **{name: scoring.scores(one) for name, one in tables.items()}}
        rows = pd.DataFrame({name: scoring.summary([table]) for name, table in zip(("head", PRIOR), tables.values())}).T
        what = f"{told[unit]} {unit} with objects of {told['store']}; {told['unknown']} objects of unknown class are left out"
        parts = f"{what}. x100 [95 % interval]", scoring.shown(rows).T.to_string(), scoring.DEFINITIONS, classes.to_string()
        return told | {"classes": json.loads(classes.to_json(orient="index"))}, "\n\n".join(parts)


def classes_of(store) -> dict[int, str]:
    """The names of a store's classes by id. StoreError where it has none."""
    if not store.meta["classes"]:
        way_out = "take one that does (COCO, VOC, YTVIS, the built-in scenes and clips; shapes are of no kind)"
        raise stores.StoreError(f"{store.path} knows no classes, so there is nothing to recognise: {way_out}")
    return store.meta["classes"]


@torch.no_grad()
def answers(head: Head, found: pd.DataFrame, slots) -> pd.DataFrame:
    """`scores.judged` of what a head in evaluation mode says of the objects (matching.py) that slots have found."""
    there = found[(found["label"] >= 0) & (found["slot"] >= 0)]
    vectors = np.asarray(slots.slots[there["item"].to_numpy(), there["slot"].to_numpy()], np.float32)  # [K D]
    said = [head(part.to(head.counts.device)) for part in torch.from_numpy(vectors).split(2**14)]
    return scoring.judged(found, *(torch.cat(parts).float().cpu() for parts in zip(*((one.logits, one.boxes) for one in said))))


def prior(head: Head, found: pd.DataFrame) -> pd.DataFrame:
    """The same of who has seen no slot: always the most frequent class of what was found in training, and the mean box."""
    count = int(((found["label"] >= 0) & (found["slot"] >= 0)).sum())
    return scoring.judged(found, *(one.cpu().expand(count, -1) for one in ((head.counts + 1e-9).log(), head.mean_box)))


def load(run_dir) -> tuple[Head, Method]:
    """The best head of a run of this task, and its parent, both in evaluation mode on one device. ValueError for a folder that
    is no such run, and where the parent has other weights now."""
    config = Config.load(run_dir := runs.resolve(run_dir))
    if config.task != "recognition":
        raise ValueError(f"{run_dir} is a run of task {config.task!r}, not of recognition: train one with --task recognition")
    step, now = runs.best_step(run_dir), runs.weights_hash(config.parent)
    facts = checkpoint.progress(run_dir, step)["data"]
    if (before := facts["parent"]) != now:
        other = f"{config.parent}, from whose slots {run_dir} has learned, has other weights (hash {now}) than then ({before})"
        raise ValueError(f"{other}: bring them back, or train the head again")
    head = Head(config, facts["slot_dim"], {int(one): name for one, name in facts["classes"].items()})
    checkpoint.load_weights(head, run_dir / "checkpoints" / str(step))
    model = checkpoint.load_model(config.parent)
    return head.to(model.device).eval(), model


def _looked_at(run_dir, store, limit: int):
    """A run's head, the objects of a store with the slots that have found them, these slots, and the store."""
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    known, head = classes_of(store), load(run_dir)[0]
    if others := [f"{one} {known[one]!r}, was {name!r}" for one, name in head.classes.items() if known.get(one, name) != name]:
        raise ValueError(f"{store.path} has other classes than {run_dir} was trained on: {', '.join(others[:5])}")
    slots = slots_for(head.config, store)
    return head, objects(store, slots, head.config, [*head.classes], limit), slots, store


def predictions(run_dir, store, limit: int = 0) -> pd.DataFrame:
    """A row for each object of known class that a slot has found: item, unit (image or clip), segment, slot, iou (of their
    segments), true and said class, the probability of what is said, rank of the true one, true and said box, box_iou."""
    head, found, slots, _ = _looked_at(run_dir, store, limit)
    rows, names = answers(head, found, slots).query("slot >= 0").reset_index(drop=True), dict(enumerate(head.names))
    return rows.assign(true=rows["label"].map(names), said=rows["said"].map(names))


def table(run_dirs: Iterable, store, limit: int = 0) -> pd.DataFrame:
    """Runs of this task beside each other: `scores.summary` of the head and of the prior, on the objects that slots have found.
    Those of one kind of slots (KINDS, or `run_dirs` is a dict that names them) are seeds. `scores.shown` is for people.

    Mean features of true segments bound what slots can know of classes; of boxes only where the features know their place.
    """
    groups = {}
    for run_dir in run_dirs:
        head, found, slots, _ = _looked_at(run_dir, store, limit)
        kind = KINDS.get(head.config.slots_of, head.config.slots_of).format(head.config.method)
        name = run_dirs[run_dir] if isinstance(run_dirs, dict) else kind
        groups.setdefault((name, "head"), []).append(answers(head, found, slots))
        if head.counts.any():  # a published head does not know how frequent its classes were
            groups.setdefault((name, PRIOR), []).append(prior(head, found))
    return pd.DataFrame({key: scoring.summary(judged) for key, judged in groups.items()}).T.rename_axis(["slots", "predictor"])
