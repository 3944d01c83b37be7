"""The straightforward way of doing what the package does: written for comparison, as such code usually is.

Eager float32; the decoder's last layer always computes its attention weights; slots are clustered image by image with scipy,
matched with scipy; random numbers come from one generator on the CPU; the loss is read back at every step.
"""

from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist

from dias_lab.methods import Method, dias
from dias_lab.training.step import learning_rate


def scipy_cluster(slots, threshold, method="complete", min_kept=3, rule="threshold", guard="stop"):
    """`redundancy.cluster` with the guard "stop", one image after the other on the CPU."""
    leaders = []
    for image in slots.detach().float().cpu().numpy():
        tree = linkage(pdist(image, "cosine"), method)
        leader, members = np.arange(len(image)), {number: [number] for number in range(len(image))}
        merges = min(int((tree[:, 2] < threshold).sum()), max(len(image) - min_kept, 0))
        for number, (first, second, *_) in enumerate(tree[:merges]):
            joined = members[int(first)] + members[int(second)]
            members[len(image) + number] = joined
            leader[joined] = min(joined)
        leaders.append(leader)
    return torch.from_numpy(np.stack(leaders)).to(slots.device)


def scipy_match(student, teacher):
    """`matching.match_segments` by one-hot maps, then image after image."""
    N = student.shape[1]
    mine, other = (F.one_hot(maps.argmax(1), N).float() for maps in (student, teacher))  # [B L N]
    both = mine.transpose(1, 2) @ other
    union = mine.sum(1)[:, :, None] + other.sum(1)[:, None] - both
    tables = (both / union.clamp_min(1)).cpu().numpy()
    columns = [linear_sum_assignment(table, maximize=True)[1] for table in tables]
    return torch.from_numpy(np.stack(columns)).to(student.device)


class PlainTraining:
    """The same model and loss; one step as a plain loop has it."""

    def __init__(self, model: Method):
        self.model, self.config = model, model.config
        self.optimizer = torch.optim.Adam(model.parameter_groups(), lr=self.config.learning_rate)
        self.step = 0

    def update(self, batch) -> float:
        model, config = self.model, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config) * group["share"]
        images = model.normalise(batch["image"])
        with mock.patch.object(dias, "cluster", scipy_cluster), mock.patch("dias_lab.losses.match_segments", scipy_match):
            output = model(images, decoder_attention=True)
            terms, weights = model.losses(output, self.step / config.steps)
        loss = sum(weights[name] * terms[name] for name in terms)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        return loss.item()
