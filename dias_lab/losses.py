"""The losses: reconstruction of the feature map or its codes, self-distillation between maps, a teacher's segments, contrast,
time similarity.

Sources: DIAS, Zhao et al. 2025, arXiv:2507.23755, and its release (Genera1Z/DIAS); a teacher's segments: SPOT,
Kakogeorgiou et al. 2024, arXiv:2312.00648; contrast: SlotContrast, Manasyan et al. 2025, arXiv:2412.14295, and its code
martius-lab/slotcontrast; time similarity: VideoSAUR, Zadaianchuk et al. 2023, arXiv:2306.04829, and its code
martius-lab/videosaur. The release of DIAS hands attention maps,
which are already a softmax over slots, to a cross-entropy that takes the softmax again. Its value is squeezed: with n
slots it lies between ln((e + n - 1) / e) and ln n for perfect and uniform maps (1.165 and 1.946 at 7 slots). That is
form "release"; form "cross_entropy" takes the logarithm of the map itself.

Axes: T iterations, B images (or clips), F frames, N slots, D slot width, L = h * w locations, K codes or sampled
locations, C feature channels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dias_lab.modules.matching import match_segments


def reconstruction_loss(
    reconstruction: Float[Tensor, "B C h w"],
    features: Float[Tensor, "B C h w"],
    sampled: Int[Tensor, "B K"] | None = None,
    counted: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over all values; in squared units of the feature map. The target gets no gradient.

    `sampled`: the locations that were reconstructed, which alone count (`Output.sampled`). `counted`: the images that do.
    """
    if sampled is not None:
        index = sampled[:, None].expand(-1, features.shape[1], -1)  # [B C K]
        reconstruction, features = (values.flatten(2).gather(2, index) for values in (reconstruction, features))
    if counted is None:
        return F.mse_loss(reconstruction, features.detach())
    return mean_over(F.mse_loss(reconstruction, features.detach(), reduction="none"), counted)


def mean_over(values: Float[Tensor, "B ..."], counted: Bool[Tensor, "B"] | None) -> Float[Tensor, ""]:
    """The mean over the images that count, or over all; 0 where none does."""
    if counted is None:
        return values.mean()
    return (values.flatten(1).mean(dim=1) * counted).sum() / counted.sum().clamp_min(1)


def distillation_loss(
    attention: Float[Tensor, "T B N L"], form: str = "cross_entropy", match: str = "hungarian", teacher: int = -1,
    counted: Bool[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Cross-entropy from the last map (teacher, detached) to the first (student); nats per location.

    `form`: "release" or "cross_entropy", see the file head. `match`: "identity", or "hungarian", which permutes the
    teacher's slots so that arg-max segments overlap best; needed where merging gave the slots new identities.
    `teacher`: index of the teaching iteration. `counted`: the images that count. Raises ValueError for another form or match.
    """
    student, target = attention[0], attention[teacher].detach()
    if match == "hungarian":
        target = target.gather(1, match_segments(student, target)[..., None].expand_as(target))
    elif match != "identity":
        raise ValueError(f"match is 'identity' or 'hungarian', got {match!r}")
    if form == "release":
        return -mean_over((target * student.log_softmax(dim=1)).sum(dim=1), counted)
    if form == "cross_entropy":
        return -mean_over((target * student.clamp_min(1e-8).log()).sum(dim=1), counted)
    raise ValueError(f"form is 'release' or 'cross_entropy', got {form!r}")


def matched_segments_loss(logits: Float[Tensor, "B N L"], teacher: Float[Tensor, "B N L"]) -> Float[Tensor, ""]:
    """Cross-entropy of the student's logits to the teacher's arg-max segments; nats per location.

    The teacher's slots are first matched to the student's, so that segments overlap best. The teacher gets no gradient.
    """
    teacher = teacher.detach()
    matched = teacher.gather(1, match_segments(logits, teacher)[..., None].expand_as(teacher))  # in the student's order
    return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), matched.argmax(dim=1).flatten())


def code_loss(
    logits: Float[Tensor, "B K h w"], index: Int[Tensor, "B h w"], counted: Bool[Tensor, "B"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of each location's logits to the number of its code; nats per location. `counted`: images that count."""
    loss = F.cross_entropy(logits.movedim(1, -1).flatten(0, -2), index.flatten(), reduction="none")
    return mean_over(loss.view_as(index), counted)


def contrast_loss(
    slots: Float[Tensor, "B F N D"], present: Bool[Tensor, "B F N"] | None = None, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy by which each slot tells which slot it was in the frame before, among those of all clips; nats a slot.

    Cosine similarity over `temperature`; the softmax is over the frame before, as in the sources. Slots that are not
    `present` are no choice, and who is not there in both frames does not count. Gradients go both ways. 0 for one frame.
    """
    present = torch.ones_like(slots[..., 0], dtype=torch.bool) if present is None else present
    there = present.transpose(0, 1).flatten(1)  # [F B*N]
    with torch.autocast(slots.device.type, enabled=False):
        direction = F.normalize(slots.float(), dim=-1).transpose(0, 1).flatten(1, 2)  # [F B*N D]
        similarity = direction[:-1] @ direction[1:].transpose(1, 2) / temperature  # [F-1 before after]
    similarity = similarity.masked_fill(~there[:-1, :, None], torch.finfo(similarity.dtype).min)
    own = similarity.log_softmax(dim=1).diagonal(dim1=1, dim2=2)  # [F-1 B*N]
    both = there[:-1] & there[1:]
    return -own.where(both, 0).sum() / both.sum().clamp_min(1)


def time_similarity(
    features: Float[Tensor, "B F C h w"], temperature: float = 1.0, threshold: float = -1.0
) -> Float[Tensor, "B F-1 L L"]:
    """For each location (row) the distribution over the next frame's locations (columns) that its features point to.

    A softmax over them of the cosine similarity over `temperature`; similarities below `threshold` get 0 (-1: none does), a
    row without any above is uniform. It gets no gradient.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        values = features if features.dtype == torch.float64 else features.float()
        direction = F.normalize(values.flatten(3), dim=2)  # [B F C L]
        similarity = direction[:, :-1].transpose(2, 3) @ direction[:, 1:]
        logits = similarity / temperature
        if threshold > -1:
            low = similarity < threshold
            logits = logits.masked_fill(low & ~low.all(dim=3, keepdim=True), -torch.inf)
            logits = logits.masked_fill(low.all(dim=3, keepdim=True), 0)
        return logits.softmax(dim=3)


def time_similarity_loss(
    logits: Float[Tensor, "B F L h w"], features: Float[Tensor, "B F C h w"], temperature: float = 1.0, threshold: float = -1.0,
    frames: Bool[Tensor, "B F"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Cross-entropy of each location's logits over the next frame's locations to `time_similarity`; nats per location.

    The last frame's logits do not count, nor do pairs with a frame outside `frames`. 0 for one frame.
    """
    target = time_similarity(features, temperature, threshold)
    told = logits[:, :-1].flatten(3).log_softmax(dim=2)  # [B F-1 next L]
    loss = -(target.transpose(2, 3) * told).sum(dim=2).mean(dim=2)  # [B F-1]
    both = torch.ones_like(loss) if frames is None else (frames[:, :-1] & frames[:, 1:]).to(loss)
    return (loss * both).sum() / both.sum().clamp_min(1)


def schedule(kind: str, progress: float, start: float = 0.0) -> float:
    """The weight of self-distillation, 0 to 1, at `progress` (0 to 1) through the training; 0 before `start`.

    "cosine" rises from 0 to 1, "constant" stays 1, "square" is 1 in the middle half of what follows `start`.
    """
    if progress < start:
        return 0.0
    position = (progress - start) / (1 - start) if start < 1 else 0.0
    if kind == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(position, 1.0)))
    if kind == "square":
        return float(0.25 <= position < 0.75)
    if kind == "constant":
        return 1.0
    raise ValueError(f"schedule is 'cosine', 'constant' or 'square', got {kind!r}")
