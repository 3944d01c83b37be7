"""Questions as numbers: the vocabulary of the training split, and the questions of any split in it.

Axes: Q questions, W words of the longest one, O choices of the one with most, V words of the longest choice.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dias_lab.data.questions import Question

NO_WORD, OBJECT, FIRST_WORD = 0, 1, 2  # the numbers of what is no word, of a box in a word's place, and of the first word
NO_ANSWER = -1  # of an answer that no training question has: never given, so never right


class Vocabulary(NamedTuple):
    """What the training questions say; all of it is JSON."""

    words: list[str]
    answers: list[str]  # those of one word
    longest: list[int]  # words of a question, and of a choice (0: there are none)
    common: dict[str, str | bool]  # by kind the most common answer; of choices, whether they are right

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Vocabulary":
        """Of answers as common as others the first in the alphabet counts."""
        choices, by_kind = [choice for one in questions for choice in one.options], defaultdict(Counter)
        for one in questions:
            by_kind[one.kind].update(one.answer if one.options else [one.answer])
        words = {word for text in [*choices, *(one.words for one in questions)] for word in text}
        longest = [max(map(len, texts), default=0) for texts in ([one.words for one in questions], choices)]
        answers = {one.answer for one in questions if not one.options}
        common = {kind: max(sorted(found), key=found.get) for kind, found in sorted(by_kind.items())}
        return cls(sorted(words), sorted(answers), longest, common)


class Encoded(NamedTuple):
    words: Int[Tensor, "Q W"]  # NO_WORD after the last; OBJECT where a box stands for an object
    boxes: Float[Tensor, "Q W 4"]  # left, top, right, bottom as shares of the square; 0 where there is none
    choices: Int[Tensor, "Q O V"]  # NO_WORD throughout where there is none
    answers: Int[Tensor, "Q O"]  # the number of the one word, at place 0; of each choice whether it is right


def encoded(questions: Sequence[Question], vocabulary: Vocabulary, refer: Literal["words", "boxes"], where) -> Encoded:
    """`refer`: whether the words that stand for objects are read, or their boxes; `where` is the file, for errors.

    Raises ValueError for words and lengths that training has not had, and, with "boxes", where no question has one.
    """
    numbers = {word: number for number, word in enumerate(vocabulary.words, start=FIRST_WORD)}
    (W, V), most = vocabulary.longest, max((len(one.options) for one in questions), default=0)
    shape = len(questions), max(most, 1)
    found = Encoded(
        torch.zeros(len(questions), max(W, 1), dtype=torch.long), torch.zeros(len(questions), max(W, 1), 4),
        torch.zeros(*shape, max(V, 1), dtype=torch.long), torch.zeros(shape, dtype=torch.long),
    )  # fmt: skip
    if refer == "boxes" and not any(one.mentions for one in questions):
        raise ValueError(f"no question in {where} has boxes: take refer='words'")

    def put(texts: list[str], row: Tensor, number: int, boxed=()):
        if unknown := sorted({word for place, word in enumerate(texts) if word not in numbers and place not in boxed}):
            raise ValueError(
                f"{where}: question {number} ({' '.join(texts)}) has words that no training question has: {', '.join(unknown)}. "
                "Train with the questions that have them, or leave this one out"
            )
        if len(texts) > len(row):
            raise ValueError(f"{where}: question {number} ({' '.join(texts)}) is longer than the {len(row)} words of training's")
        row[: len(texts)] = torch.tensor([OBJECT if place in boxed else numbers[word] for place, word in enumerate(texts)])

    for number, one in enumerate(questions):
        mentions = one.mentions if refer == "boxes" else {}
        put(one.words, found.words[number], number, mentions)
        for place, box in mentions.items():
            found.boxes[number, place] = torch.tensor(box)
        for place, choice in enumerate(one.options):
            put(choice, found.choices[number, place], number)
        answers = [*map(int, one.answer)] if one.options else [_number(one.answer, vocabulary)]
        found.answers[number, : len(answers)] = torch.tensor(answers)
    return found


def _number(answer: str, vocabulary: Vocabulary) -> int:
    return vocabulary.answers.index(answer) if answer in vocabulary.answers else NO_ANSWER
