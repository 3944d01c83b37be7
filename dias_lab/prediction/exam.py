"""The questions of a store as a model takes them: as numbers, with the slots of the frames that they look at.

All questions look at the same frames of their clips: some of those that are seen, and some of a rollout.

Axes: B questions (each with one of its choices, where it has some), C clips, F frames, N slots, D slot width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.slots import Slots, slots_for
from dias_lab.config import Config
from dias_lab.data import asked, questions
from dias_lab.data.clips import Clips
from dias_lab.prediction import predictor
from dias_lab.prediction.predictor import true_states
from dias_lab.prediction.words import Vocabulary, encoded

BATCH = 256  # clips that are rolled out at a time


class Exam:
    """The questions of a store, and the slots of the frames that they look at."""

    def __init__(self, config: Config, store, vocabulary: Vocabulary | None = None, limit: int = 0):
        """`vocabulary`: that of training; None makes it. `limit`: only questions about the first clips.

        Raises ValueError, with the file, where there are no questions, or they cannot be asked; StoreError for images.
        """
        self.config, self.store, self.clips = config, store, Clips(store)
        self.path = questions.beside(store)
        if not self.path.exists():
            raise ValueError(f"there are no questions about {store.path}: {self.path} is missing. Convert data that has some")
        self.questions = [one for one in questions.read(self.path, store) if not limit or one.clip < limit]
        if not self.questions:
            raise ValueError(f"{self.path} has no questions" + (f" about the first {limit} clips" if limit else ""))
        if store.meta["dataset"] == "physics":
            self._check_toys()
            if (last := config.clip_stride * (config.observed - 1)) > asked.LAST:
                fewer = f"take observed={asked.LAST // config.clip_stride + 1} or fewer"
                raise ValueError(f"questions are about what follows frame {asked.LAST}, and frame {last} would be seen: {fewer}")
        self.vocabulary = vocabulary or Vocabulary.of(self.questions)
        self.encoded = encoded(self.questions, self.vocabulary, config.refer, self.path)
        self.rows = [(number, choice) for number, one in enumerate(self.questions) for choice in range(len(one.options) or 1)]

    def _check_toys(self):
        """ValueError for a question about a toy that its clip does not show."""
        names, shown = self.store.meta["classes"], {}
        for one in self.questions:
            if one.clip not in shown:
                shown[one.clip] = [names[kind] for kind in self.store[self.clips[one.clip].start].info["classes"].values()]
            try:
                asked.check(one, shown[one.clip])
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from None

    def look(self) -> "Exam":
        """Open the slots, extracted where they are missing, and roll them out where there is a predictor. ValueError for a
        predictor that cannot go on from these."""
        config, stride, oracle = self.config, self.config.clip_stride, self.config.slots_of == "oracle"
        self.slots = true_states(self.store) if oracle else slots_for(config, self.store)
        first = np.array([items.start for items in self.clips.ranges])
        seen = np.array([min(config.observed, len(items[::stride])) for items in self.clips.ranges])  # [C]
        last, ahead = first + stride * (seen - 1), config.rollout if config.predictor else 0
        frames = np.linspace(0, seen - 1, config.reasoning_frames).round().astype(int).T  # [C F]
        if ahead:
            steps = np.linspace(0, ahead, 1 + config.foreseen_frames)[1:].round().astype(int)
            frames = np.concatenate([frames, seen[:, None] - 1 + steps], axis=1)
        self.items = np.minimum(first[:, None] + stride * frames, last[:, None])  # what is rolled out is of the last one seen
        self.ahead = frames - seen[:, None]  # [C F], from 0 where a frame is rolled out
        self.rolled = rolled_out(config, self.slots, last, seen) if ahead else None  # [C ahead N D]
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
        of = self.encoded
        words = {"words": of.words[questions], "boxes": of.boxes[questions], "choice": of.choices[questions, choices]}
        return {"slots": slots, "keep": keep, **words, "answer": of.answers[questions, choices]}

    def measures(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] of the slots of all its clips."""
        count, total, square = 0, 0.0, 0.0
        for clip in range(len(self.clips)):
            slots, keep = self.seen([clip])
            found = slots[keep].double()  # [M D]
            count, total, square = count + len(found), total + found.sum(0), square + found.square().sum(0)
        mean = total / count
        return mean.float(), (square / count - mean.square()).clamp_min(1e-12).sqrt().float()


def check_predictor(config: Config):
    """ValueError unless `config.predictor` is there, and can go on from the slots that this config looks at."""
    runs.weights_hash(config.predictor)
    theirs, told = Config.load(runs.resolve(config.predictor)), f"the predictor {config.predictor}"
    if theirs.task != "prediction":
        raise ValueError(f"{told} is a run of the task {theirs.task}: name one of the task prediction")
    if config.observed < theirs.burn_in:
        raise ValueError(f"{told} starts from {theirs.burn_in} frames, and observed = {config.observed}: take more")
    for name, of in (("parent", runs.weights_hash), ("slots_of", str), ("clip_stride", int)):
        if of(getattr(theirs, name)) != of(getattr(config, name)):
            other = f"{name} is {getattr(theirs, name)!r} there, {getattr(config, name)!r} here"
            raise ValueError(f"{told} has learnt to go on from other slots: {other}")


def rolled_out(config: Config, slots: Slots, last: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The slots of `config.rollout` frames after the items `last` [C], of clips of which so many frames are seen [C]: from
    the last ones of these, by `config.predictor`: [C frames N D]."""
    model = predictor.load(config.predictor, device="cpu" if config.device == "cpu" else None)
    T, found = model.config.burn_in, []
    if seen.min() < T:
        raise ValueError(f"the predictor {config.predictor} starts from {T} frames, and clip {seen.argmin()} has {seen.min()}")
    for start in range(0, len(last), BATCH):
        items = last[start : start + BATCH, None] - config.clip_stride * np.arange(T)[::-1]  # [B T]
        past, keep = torch.from_numpy(slots.slots[items]), torch.from_numpy(slots.keep[items]).all(dim=1)
        found.append(predictor.rollout(model, past, keep, config.rollout).cpu().numpy())
    return np.concatenate(found)
