"""Reasoning as a Task: questions about clips, answered from the slots of what is seen of them, or of what a rollout foresees.

Source: SlotFormer's questions, Wu et al. 2023, arXiv:2210.05861 (pairlab/SlotFormer). There a question's type says whether it
looks at the rollout; here all questions of a run look at the same frames.

Axes: B questions (each with one of its choices, where it has some).
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.discovery import open_stores
from dias_lab.analysis.intervals import mean_text
from dias_lab.config import Config
from dias_lab.data import questions
from dias_lab.data.dataset import permutation
from dias_lab.data.draws import Request, draw, generator
from dias_lab.files import file_checksum, text_of
from dias_lab.methods import checkpoint
from dias_lab.methods.base import to_device
from dias_lab.prediction import answers, readout
from dias_lab.prediction.aloe import Aloe, Answers, Reader
from dias_lab.prediction.exam import Exam, check_predictor
from dias_lab.prediction.words import Vocabulary

BATCH = 256  # questions at a time in an evaluation


class Reasoning:
    """What each function gives, methods/task.py says."""

    through_parent = True

    def __init__(self, config: Config):
        self.config = config
        self.train, self.validation = (one.look() for one in questions_of(config))
        self.model = build(config, self.train.slots.slots.shape[-1], self.train.vocabulary)

    @staticmethod
    def check(config: Config):
        train, _ = questions_of(config)
        for name, most in {"reasoning_frames": config.observed, "foreseen_frames": config.rollout}.items():
            if getattr(config, name) > most and (config.predictor or name == "reasoning_frames"):
                told = "seen" if name == "reasoning_frames" else "rolled out"
                raise ValueError(f"{name} = {getattr(config, name)}, and only {most} frames are {told}: take fewer")
        if config.predictor:
            check_predictor(config)
        if config.reader == "readout":
            readout.check(train.questions)

    @staticmethod
    def records(config: Config) -> dict[str, str]:
        stores = open_stores(config)
        asked = {f"questions of {store.path.stem}": file_checksum(questions.beside(store))[:16] for store in stores}
        return {store.path.stem: store.fingerprint()[:16] for store in stores} | asked

    def begin(self, fabric: Fabric) -> dict:
        for buffer, value in zip((self.model.mean, self.model.deviation), self.train.measures()):
            buffer.copy_(value)
        seen = {name: self.train.slots.about.get(name) for name in ("identity", "source")}
        ahead = {"predictor": runs.weights_hash(self.config.predictor)} if self.config.predictor else {}
        return {"records": self.records(self.config), "slots": seen, **ahead}

    def batches(self, places: range, step: int, progress: bool = False) -> Iterator[dict]:
        """Questions in the order of the epoch's permutation; of one with choices, any of them."""
        config, count = self.config, len(self.train.questions)
        for number in range(step, config.steps):
            rows = []
            for place in places:
                epoch, position = divmod(number * config.batch_size + place, count)
                question = int(permutation(config.seed, epoch, count)[position])
                choices = len(self.train.questions[question].options) or 1
                rows.append((question, int(generator(config.seed, number, place, "choice").integers(choices))))
            yield {"rows": self.train.batch(rows), "info": {"step": number}}

    def prepare(self, batch: dict, places: range) -> tuple[dict, dict]:
        device = self.model.mean.device
        drawn = draw(self.config.seed, batch["info"]["step"], places, [Request("reasoning", dropout_key)])
        return to_device(batch["rows"], device), to_device(drawn, device)

    def losses(self, output: Answers, progress: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Cross entropy of one-word answers, and of choices' being right, in nats; both are shares of the whole batch."""
        words = F.cross_entropy(output.logits, output.answer.masked_fill(output.choices, -100), reduction="none")
        choices = F.binary_cross_entropy_with_logits(output.right, output.answer.to(output.right.dtype), reduction="none")
        return {"words": words.mean(), "choices": (choices * output.choices).mean()}, {"words": 1.0, "choices": 1.0}

    def measured(self, output: Answers) -> dict[str, Tensor]:
        return {"correct": (given(output) == output.answer).float().mean()}

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.model.parameters()), "share": 1.0}]

    def compiled(self) -> list[torch.nn.Module]:
        return []

    def evaluate(self, fabric: Fabric) -> dict:
        return answers.scores(self.validation.questions, answered(self.model, self.validation), draws=0)

    def selection(self, found: dict) -> float:
        return found["balanced_accuracy"]

    @staticmethod
    def text(found: dict) -> str:
        return answers.text(found)

    @staticmethod
    def report(run_dir, store, limit: int = 0) -> tuple[dict, str]:
        """Scores of the best checkpoint on a store's questions, with intervals over clips, and baselines; and their text."""
        asked, said = sat(run_dir, store, limit)
        config = asked.config
        told = {"rolled out": bool(config.predictor), "boxes": config.refer == "boxes", "blind": config.blind}
        name = ", ".join([config.method, config.slots_of, *(word for word, holds in told.items() if holds)])
        frames = {"observed": config.observed, "rolled out": config.rollout if config.predictor else 0}
        found = {"name": name, **frames, **answers.scores(asked.questions, said)}
        given = answers.baselines(asked.questions, asked.vocabulary.common, store)
        found["baselines"] = {name: answers.scores(asked.questions, one) for name, one in given.items()}
        return found, answers.text(found)


def questions_of(config: Config) -> tuple[Exam, Exam]:
    """Those of the training and the validation split."""
    train, validation = open_stores(config)
    asked = Exam(config, train)
    return asked, Exam(config, validation, asked.vocabulary)


def build(config: Config, slot_dim: int, vocabulary: Vocabulary) -> Reader:
    """With its initial weights drawn from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.reader == "readout":
            return readout.Readout(config, slot_dim, vocabulary)
        return Aloe(config, slot_dim, vocabulary, config.blind)


def sat(run_dir, store, limit: int = 0) -> tuple[Exam, list]:
    """A store's questions, with what a run's best checkpoint looks at, and its answers: see `answered`."""
    run_dir = runs.resolve(run_dir)
    config, state = Config.load(run_dir), {}
    folder = run_dir / "checkpoints" / str(runs.best_step(run_dir))
    checkpoint.load_weights(SimpleNamespace(load_trained_state=state.update), folder)  # compared with their checksum
    vocabulary = Vocabulary(**text_of("vocabulary", state["vocabulary"].numpy()))
    model = build(config, len(state["mean"]), vocabulary)
    model.load_trained_state(state)
    asked = Exam(config, store, vocabulary, limit).look()
    return asked, answered(model, asked)


def dropout_key(random: np.random.Generator) -> dict:
    return {"dropout": random.integers(2**62)}


def given(output: Answers) -> Tensor:
    """The number of the answer to each row [B]; of a choice whether it is taken to be right."""
    return torch.where(output.choices, (output.right > 0).long(), output.logits.argmax(dim=1))


@torch.no_grad()
def answered(model: Reader, asked: Exam) -> list:
    """The answers to all questions, as `Question.answer`: a word, or for each choice whether it is right."""
    found = [[] for _ in asked.questions]
    for start in range(0, len(asked.rows), BATCH):
        rows = asked.rows[start : start + BATCH]
        for (question, _), answer in zip(rows, given(model(**to_device(asked.batch(rows), model.mean.device))).tolist()):
            found[question].append(answer)
    pairs = zip(asked.questions, found)
    return [[*map(bool, ones)] if one.options else asked.vocabulary.answers[ones[0]] for one, ones in pairs]



def table(run_dirs: Sequence, store, limit: int = 0) -> pd.DataFrame:
    """Runs on a store's questions, a row for those of the same name: n, mean ± std over their seeds; and the baselines."""
    reports, rows = [Reasoning.report(run_dir, store, limit)[0] for run_dir in run_dirs], {}
    for name in dict.fromkeys(one["name"] for one in reports):
        values = pd.DataFrame([answers.numbers(one) for one in reports if one["name"] == name])
        means = {column: mean_text(values[column].mean(), values[column].std()) for column in values}
        rows[name] = {"n": str(len(values))} | means
    return pd.DataFrame(rows | {name: {"n": ""} | answers.cells(one) for name, one in reports[0]["baselines"].items()}).T
