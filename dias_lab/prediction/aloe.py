"""A transformer over slots and words that answers questions about clips.

Sources: ALOE, Ding et al. 2021, arXiv:2012.08508, as SlotFormer uses it, Wu et al. 2023, arXiv:2210.05861 (pairlab/SlotFormer).
Other here than there: words are as wide as the layers (there 14 numbers, then a Linear); one table says what a token is, from
which its modality follows (there 2 + 2 numbers); only frames and words have positions (there all tokens, so that slots are
known by their index). With `slot_courses`, which is ours, all frames of a slot are one token: fewer tokens, among which words
find theirs sooner. Dropout takes away what a layer adds, as a key of each question says.

Axes: B questions, F frames, N slots, D slot width, W words of a question, V words of a choice, K channels, A answers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dias_lab.config import Config
from dias_lab.data.draws import dropped
from dias_lab.files import text_array
from dias_lab.methods.task import Head
from dias_lab.prediction.words import FIRST_WORD, NO_WORD, OBJECT, Vocabulary


class Answers(NamedTuple):
    logits: Float[Tensor, "B A"]  # of the answers of one word
    right: Float[Tensor, "B"]  # the logit of the choice being right
    choices: Bool[Tensor, "B"]  # which of the two is asked for: True where there is a choice
    answer: Int[Tensor, "B"] | None  # the true one: its number, of a choice 0 or 1


class Reader(Head):
    """What answers from slots: it standardises them, and keeps its vocabulary with its weights."""

    def __init__(self, slot_dim: int, vocabulary: Vocabulary):
        super().__init__()
        self.register_buffer("mean", torch.zeros(slot_dim))  # of the training split's slots
        self.register_buffer("deviation", torch.ones(slot_dim))
        self.register_buffer("vocabulary", torch.from_numpy(text_array("vocabulary", vocabulary._asdict()).copy()))

    def standardised(self, slots: Float[Tensor, "B F N D"]) -> Float[Tensor, "B F N D"]:
        return (slots - self.mean) / self.deviation


class Aloe(Reader):
    """Slots, the question's words and a choice's look at each other; a token of its own, the first, becomes the answer.

    `blind`: it gets no slots, and shows what the questions alone give away.
    """

    def __init__(self, config: Config, slot_dim: int, vocabulary: Vocabulary, blind: bool = False):
        super().__init__(slot_dim, vocabulary)
        dim, heads, self.dropout, self.blind = config.reasoning_dim, config.reasoning_heads, config.reasoning_dropout, blind
        if dim % heads:
            raise ValueError(f"reasoning_heads = {heads} does not divide reasoning_dim = {dim}")
        self.words = nn.Embedding(FIRST_WORD + len(vocabulary.words), dim)
        frames, self.courses = config.reasoning_frames + (config.foreseen_frames if config.predictor else 0), config.slot_courses
        self.project_slots, self.project_box = nn.Linear(slot_dim * (frames if self.courses else 1), dim), nn.Linear(4, dim)
        self.what = nn.Embedding(4, dim)  # first token, slot, question, choice
        self.when = nn.Embedding(1 if self.courses else frames, dim)
        for part in (self.project_slots, self.when):
            part.requires_grad_(not blind)  # several devices wait for the gradients of all that is trained
        self.where = nn.ModuleList(nn.Embedding(max(longest, 1), dim) for longest in vocabulary.longest)
        options = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        layers = range(config.reasoning_layers)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, config.reasoning_mlp_dim, **options) for _ in layers)
        self.norm = nn.LayerNorm(dim)
        self.answer, self.right = (
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out)) for out in (max(len(vocabulary.answers), 1), 1)
        )

    def forward(
        self, slots: Float[Tensor, "B F N D"], keep: Bool[Tensor, "B F N"], words: Int[Tensor, "B W"],
        boxes: Float[Tensor, "B W 4"], choice: Int[Tensor, "B V"], answer: Int[Tensor, "B"] | None = None,
        draws: dict[str, Tensor] | None = None,
    ) -> Answers:  # fmt: skip
        """Words by number (NO_WORD after the last), and the boxes of those that are OBJECT; slots outside `keep` are not seen."""
        named = torch.where((words == OBJECT)[..., None], self.project_box(boxes), self.words(words))
        texts = [named + self.where[0].weight[: words.shape[1]], self.words(choice) + self.where[1].weight[: choice.shape[1]]]
        tokens, seen = [torch.zeros_like(named[:, :1])], [torch.ones_like(keep[:, :1, 0])]
        if not self.blind:
            slots = self.standardised(slots)
            if self.courses:  # [B 1 N F*D]; 0 where a slot is left out
                slots = (slots * keep[..., None]).transpose(1, 2).flatten(2)[:, None]
                keep = keep.any(dim=1, keepdim=True)
            tokens.append((self.project_slots(slots) + self.when.weight[:, None]).flatten(1, 2))
            seen.append(keep.flatten(1))
        kinds = [0, *[1] * (not self.blind), 2, 3]
        hidden = torch.cat([part + self.what.weight[kind] for kind, part in zip(kinds, [*tokens, *texts])], dim=1)  # [B M K]
        absent = ~torch.cat([*seen, words != NO_WORD, choice != NO_WORD], dim=1)  # [B M]
        for number, layer in enumerate(self.layers):
            added = layer(hidden, src_key_padding_mask=absent) - hidden
            hidden = hidden + (dropped(added, self.dropout, draws["dropout"] + number) if draws else added)
        first = self.norm(hidden[:, 0])
        return Answers(self.answer(first), self.right(first)[:, 0], (choice != NO_WORD).any(dim=1), answer)
