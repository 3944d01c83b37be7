"""Reasoning as a Task: questions about a clip, answered from its slots, and baselines that say whether slots were needed.

Sources: the questions of CLEVRER, Yi et al. 2020, arXiv:1910.01442, and its accuracy of each choice and of each question (all
of its choices right); predictive ones from a rollout, SlotFormer, Wu et al. 2023, arXiv:2210.05861. There a question's type
says whether it gets the rollout; here all questions of a run get the same frames.

A type's balanced accuracy is the mean, over the true answers, of the share that is right: one answer for all scores 1 / A.

Axes: B questions (each with one of its choices), C clips, F frames, N slots, D slot width, A answers.
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
from dias_lab.analysis.slots import slots_for
from dias_lab.config import Config
from dias_lab.data import questions as asking
from dias_lab.data.clips import Clips
from dias_lab.data.dataset import permutation
from dias_lab.data.draws import Request, draw, generator
from dias_lab.data.questions import Question
from dias_lab.files import file_checksum, text_of
from dias_lab.methods import checkpoint
from dias_lab.methods.base import to_device
from dias_lab.prediction import readout
from dias_lab.prediction.aloe import Aloe, Answers, Reader
from dias_lab.prediction.words import Vocabulary, encoded

READER = "aloe"  # or "readout", Physion's, which reads no words
BATCH = 256  # questions at a time in an evaluation
DRAWS = 2000  # of the bootstrap


class Asked:
    """The questions of a store, and the slots of the frames that they look at."""

    def __init__(self, config: Config, store, vocabulary: Vocabulary | None = None, limit: int = 0):
        """`vocabulary`: that of training; None makes it. `limit`: only questions about the first clips.

        Raises ValueError, with the file, where there are no questions, or they cannot be asked; StoreError for images.
        """
        self.config, self.store, self.clips = config, store, Clips(store)
        self.path = asking.beside(store)
        if not self.path.exists():
            raise ValueError(f"there are no questions about {store.path}: {self.path} is missing. Convert data that has some")
        self.questions = [one for one in asking.read(self.path, store) if not limit or one.clip < limit]
        if not self.questions:
            raise ValueError(f"{self.path} has no questions" + (f" about the first {limit} clips" if limit else ""))
        self.vocabulary = vocabulary or Vocabulary.of(self.questions)
        self.encoded = encoded(self.questions, self.vocabulary, config.refer, self.path)
        self.rows = [(number, choice) for number, one in enumerate(self.questions) for choice in range(len(one.options) or 1)]

    def look(self) -> "Asked":
        """Open the slots, extracted where they are missing, and roll them out where there is a predictor."""
        config, self.slots = self.config, slots_for(self.config, self.store)
        first = np.array([items.start for items in self.clips.ranges])
        seen = np.array([min(config.observed, len(items)) for items in self.clips.ranges])
        ahead = config.rollout if config.predictor else 0
        frames = np.linspace(0, seen + ahead - 1, config.reasoning_frames).round().astype(int).T  # [C F]
        self.items = np.minimum(first + seen - 1, (first + frames.T)).T  # [C F]; what is rolled out is of the last one seen
        self.ahead = frames - seen[:, None]  # [C F], from 0 where a frame is rolled out
        self.rolled = rolled_out(config, self.slots, first, seen) if ahead else None  # [C ahead N D]
        return self

    def seen(self, clips: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Slots float32 [B F N D] and keep [B F N]; a slot that is rolled out is kept as in the last frame that is seen."""
        slots = self.slots.slots[self.items[clips]].astype(np.float32)
        if self.rolled is not None:
            later = self.ahead[clips] >= 0
            slots[later] = self.rolled[np.asarray(clips)[later.nonzero()[0]], self.ahead[clips][later]]
        return torch.from_numpy(slots), torch.from_numpy(self.slots.keep[self.items[clips]])

    def batch(self, rows: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """What a `Reader` takes, of rows (question, choice)."""
        questions, choices = torch.tensor(rows).T
        slots, keep = self.seen([self.questions[number].clip for number in questions.tolist()])
        words, boxes, texts, answers = self.encoded
        texts, answers = texts[questions, choices], answers[questions, choices]
        return {"slots": slots, "keep": keep, "words": words[questions], "boxes": boxes[questions], "choice": texts, "answer": answers}

    def measures(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] of the slots of all its clips."""
        found = [slots[keep].double() for clip in range(len(self.clips)) for slots, keep in [self.seen([clip])]]
        count = sum(map(len, found))
        mean = sum(one.sum(0) for one in found) / count
        square = sum((one - mean).square().sum(0) for one in found) / count
        return mean.float(), square.sqrt().clamp_min(1e-6).float()


def rolled_out(config: Config, slots, last: np.ndarray) -> np.ndarray:
    """The slots of `config.rollout` frames after items `last` [C], as the predictor tells them: [C frames N D]."""
    raise NotImplementedError


class Reasoning:
    """What each function gives, methods/task.py says."""

    through_parent = True

    def __init__(self, config: Config):
        self.config = config
        self.train, self.validation = (one.look() for one in questions_of(config))
        self.model = build(config, READER, self.train.slots.slots.shape[-1], self.train.vocabulary)

    @staticmethod
    def check(config: Config):
        train, _ = questions_of(config)
        most = config.observed + (config.rollout if config.predictor else 0)
        if config.reasoning_frames > most:
            raise ValueError(f"reasoning_frames = {config.reasoning_frames}, and {most} frames are seen or rolled out: take fewer")
        if READER == "readout":
            readout.check(train.questions)

    @staticmethod
    def records(config: Config) -> dict[str, str]:
        return {store.path.stem: store.fingerprint()[:16] for store in open_stores(config)}

    def begin(self, fabric: Fabric) -> dict:
        for buffer, value in zip((self.model.mean, self.model.deviation), self.train.measures()):
            buffer.copy_(value)
        asked = {one.store.path.stem: file_checksum(one.path)[:16] for one in (self.train, self.validation)}
        seen = {name: self.train.slots.about.get(name) for name in ("identity", "source")}
        return {"records": self.records(self.config), "questions": asked, "slots": seen}

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
        return scores(self.validation.questions, answered(self.model, self.validation), draws=0)

    def selection(self, found: dict) -> float:
        return found["balanced_accuracy"]

    @staticmethod
    def text(found: dict) -> str:
        rows = {found.get("name", "this run"): found} | found.get("baselines", {})
        return pd.DataFrame({name: cells(one) for name, one in rows.items()}).T.to_string()

    @staticmethod
    def report(run_dir, store, limit: int = 0) -> tuple[dict, str]:
        """Scores of the best checkpoint on a store's questions, with intervals over clips, and baselines; and their text."""
        run_dir = runs.resolve(run_dir)
        config, state = Config.load(run_dir), {}
        folder = run_dir / "checkpoints" / str(runs.best_step(run_dir))
        checkpoint.load_weights(SimpleNamespace(load_trained_state=state.update), folder)  # compared with their checksum
        vocabulary = Vocabulary(**text_of("vocabulary", state["vocabulary"].numpy()))
        model = build(config, "aloe" if "answer.0.weight" in state else "readout", len(state["mean"]), vocabulary)
        model.load_trained_state(state)
        asked = Asked(config, store, vocabulary, limit).look()
        found = {"name": name_of(config), **scores(asked.questions, answered(model, asked))}
        found["baselines"] = {name: scores(asked.questions, told) for name, told in baselines(asked).items()}
        return found, Reasoning.text(found)


def questions_of(config: Config) -> tuple[Asked, Asked]:
    """Those of the training and the validation split."""
    train, validation = open_stores(config)
    asked = Asked(config, train)
    return asked, Asked(config, validation, asked.vocabulary)


def build(config: Config, reader: str, slot_dim: int, vocabulary: Vocabulary) -> Reader:
    """With its initial weights drawn from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if reader == "readout":
            return readout.Readout(config, slot_dim, vocabulary)
        return Aloe(config, slot_dim, vocabulary, config.blind)


def dropout_key(random: np.random.Generator) -> dict:
    return {"dropout": random.integers(2**62)}


def given(output: Answers) -> Tensor:
    """The number of the answer to each row [B]; of a choice whether it is taken to be right."""
    return torch.where(output.choices, (output.right > 0).long(), output.logits.argmax(dim=1))


@torch.no_grad()
def answered(model: Reader, asked: Asked) -> list:
    """The answers to all questions, as `Question.answer`: a word, or for each choice whether it is right."""
    found = [[] for _ in asked.questions]
    for start in range(0, len(asked.rows), BATCH):
        rows = asked.rows[start : start + BATCH]
        for (question, _), answer in zip(rows, given(model(**to_device(asked.batch(rows), model.mean.device))).tolist()):
            found[question].append(answer)
    pairs = zip(asked.questions, found)
    return [[*map(bool, ones)] if one.options else asked.vocabulary.answers[ones[0]] for one, ones in pairs]


def scores(questions: Sequence[Question], told: Sequence, draws: int = DRAWS) -> dict:
    """Scores of answers: shares, for each type and for all types alike, with 95 % intervals of a bootstrap over clips.

    {"balanced_accuracy", "low", "high", "questions", "clips", "types": {kind: the same, "accuracy", and of questions with
    choices "per_option" and "per_question"}}. Without draws there are no bounds.
    """
    clips = {clip: number for number, clip in enumerate(sorted({one.clip for one in questions}))}
    C, types, drawn = len(clips), {}, []
    often = np.random.default_rng(0).multinomial(C, np.full(C, 1 / C), size=draws).astype(float)  # [draws C]
    for kind in sorted({one.kind for one in questions}):
        pairs = [(one, answer) for one, answer in zip(questions, told, strict=True) if one.kind == kind]
        items = [(clips[one.clip], *item) for one, answer in pairs for item in (zip(one.answer, answer) if one.options else [(one.answer, answer)])]
        true = {answer: number for number, answer in enumerate(sorted({item[1] for item in items}))}
        places = np.array([(clip, true[answer]) for clip, answer, _ in items]).T
        right, count = np.zeros((2, C, len(true)))
        np.add.at(count, tuple(places), 1)
        np.add.at(right, tuple(places), [answer == found for _, answer, found in items])
        own = {"balanced_accuracy": float((right.sum(0) / count.sum(0)).mean()), "accuracy": float(right.sum() / count.sum())}
        if any(one.options for one, _ in pairs):
            own |= {"per_option": own["accuracy"], "per_question": float(np.mean([list(one.answer) == answer for one, answer in pairs]))}
        drawn.append(_mean((often @ right) / np.maximum(often @ count, 1e-9), often @ count > 0))
        types[kind] = own | _bounds(drawn[-1]) | {"questions": len(pairs), "clips": int((count.sum(1) > 0).sum())}
    mean = float(np.mean([one["balanced_accuracy"] for one in types.values()]))
    whole = {"balanced_accuracy": mean, **_bounds(np.mean(drawn, axis=0)), "questions": len(questions), "clips": C}
    return whole | {"types": types}


def _mean(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Over the answers [draws A]; NaN where none is defined."""
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(1) / defined.sum(1)


def _bounds(drawn: np.ndarray) -> dict[str, float]:
    return dict(zip(("low", "high"), map(float, np.nanquantile(drawn, [0.025, 0.975])))) if len(drawn) else {}


def baselines(asked: Asked) -> dict[str, list]:
    """Answers without a model: training's most common one of each type; of the built-in physics also the simulator's."""
    common = asked.vocabulary.common
    found = {"majority": [[common.get(one.kind)] * len(one.options) if one.options else common.get(one.kind) for one in asked.questions]}
    return found


def name_of(config: Config) -> str:
    """What a run is called in a table."""
    return f"{config.method}, {config.slots_of}" + ", rolled out" * bool(config.predictor) + ", blind" * config.blind


def numbers_of(found: dict) -> dict[str, float]:
    """The columns of a table: balanced accuracy of all types and of each; of choices also the share of questions all right."""
    more = {f"{kind}, per question": one["per_question"] for kind, one in found["types"].items() if "per_question" in one}
    return {"all": found["balanced_accuracy"]} | {kind: one["balanced_accuracy"] for kind, one in found["types"].items()} | more


def cells(found: dict) -> dict[str, str]:
    """The same as text, with the intervals that there are."""
    known = {"all": found} | found["types"]
    bounds = {name: f" [{100 * one['low']:.1f} to {100 * one['high']:.1f}]" for name, one in known.items() if "low" in one}
    return {name: mean_text(value, np.nan) + bounds.get(name, "") for name, value in numbers_of(found).items()}


def table(run_dirs: Sequence, store, limit: int = 0) -> pd.DataFrame:
    """Runs on a store's questions, a row for those of the same name: mean ± std over their seeds, n; and the baselines."""
    reports, rows = [Reasoning.report(run_dir, store, limit)[0] for run_dir in run_dirs], {}
    for name in dict.fromkeys(one["name"] for one in reports):
        values = pd.DataFrame([numbers_of(one) for one in reports if one["name"] == name])
        rows[name] = {"n": str(len(values))} | {column: mean_text(values[column].mean(), values[column].std()) for column in values}
    return pd.DataFrame(rows | {name: {"n": ""} | cells(one) for name, one in reports[0]["baselines"].items()}).T
