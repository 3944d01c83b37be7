"""Physion's readout: does it happen? From the slots of a clip, without words.

Sources: Bear et al. 2021, arXiv:2106.08261; the readout for slots, SlotFormer, Wu et al. 2023, arXiv:2210.05861
(pairlab/SlotFormer). There a pair is taken in one order, the slots' own; here in both, so that no order of slots matters.

Axes: B questions, F frames, N slots, D slot width, K channels.
"""

from collections.abc import Sequence

import torch
from torch import nn

from dias_lab.config import Config
from dias_lab.data.questions import Question
from dias_lab.prediction.aloe import Answers, Reader
from dias_lab.prediction.words import NO_WORD, Vocabulary

ANSWERS = ["no", "yes"]


def check(questions: Sequence[Question]):
    """Raises ValueError unless all are one and the same question, with the answers yes and no."""
    texts, answers = {" ".join(one.words) for one in questions}, sorted({str(one.answer) for one in questions})
    if len(texts) > 1 or answers != ANSWERS:
        told = f"these are {len(texts)}, such as {min(texts)!r}, with the answers {', '.join(answers):.100}"
        raise ValueError(f"the readout reads no words: it needs one question that is answered by yes and by no; {told}")


class Readout(Reader):
    """A Linear over each pair of slots, the largest of all pairs, a Linear to one number, the largest of all frames."""

    def __init__(self, config: Config, slot_dim: int, vocabulary: Vocabulary):
        super().__init__(slot_dim, vocabulary)
        self.one = nn.Linear(slot_dim, config.reasoning_dim)  # both are one Linear of the two slots side by side
        self.other = nn.Linear(slot_dim, config.reasoning_dim, bias=False)
        self.score = nn.Linear(config.reasoning_dim, 1)

    def forward(self, slots, keep, words, boxes, choice, answer=None, draws=None) -> Answers:
        """As `Aloe.forward`. The logits of no and yes are 0 and the readout's number: their cross entropy is its BCE."""
        slots = self.standardised(slots)
        pairs = self.one(slots)[:, :, :, None] + self.other(slots)[:, :, None]  # [B F N N K]
        both = keep[:, :, :, None] & keep[:, :, None] & ~torch.eye(keep.shape[2], dtype=torch.bool, device=keep.device)
        strongest = pairs.masked_fill(~both[..., None], -torch.inf).flatten(2, 3).amax(dim=2)  # [B F K]
        strongest = strongest.masked_fill(~both.flatten(2).any(dim=2)[..., None], 0.0)  # a frame without a pair
        happens = self.score(strongest).amax(dim=1)  # [B 1]
        logits = torch.cat([torch.zeros_like(happens), happens], dim=1)
        return Answers(logits, happens[:, 0] * 0, (choice != NO_WORD).any(dim=1), answer)
