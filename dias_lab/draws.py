"""Every random number of a training step, as a pure function of (seed, step, place in the global batch).

Counter-based generators (Philox, Salmon et al. 2011) make this exact: the seed and the purpose are the key, step and
place the counter. So neither workers, nor the number of devices, nor a resume can change what is drawn; evaluation
draws with step 0 and the item as its place.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# purposes: their streams never meet
SHUFFLE, VIEW, SLOTS, RESTART, DECODING, MERGING, FIXED_VIEW, PERMUTATION, TEACHING = range(9)


def generator(seed: int, step: int, place: int, purpose: int) -> np.random.Generator:
    """The random numbers of one image in one step, for one purpose."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, place, step]))


class Draws(NamedTuple):
    """What a forward pass draws at random, on the device of the model."""

    slots: Float[Tensor, "B N D"]  # standard normal noise of the initial slots
    restart: Float[Tensor, "B N D"]  # the same: slots that restart (DIAS), around preheated slots (SmoothSA), a teacher's (SPOT)
    order: Int[Tensor, "B L"]  # decoding order: a permutation of the locations
    visible: Int[Tensor, "B"]  # how many locations of that order the decoder sees
    merge: Bool[Tensor, "B"]  # whether this image's redundant slots are merged in training
    permutation: Int[Tensor, "B"]  # SPOT's number of the decoding order, 0 to 8: one for the whole batch
    teaching: Int[Tensor, "B"]  # the same, for the teacher's decoder

    def to(self, device) -> "Draws":
        return Draws(*(draw.to(device, non_blocking=True) for draw in self))


def draw(seed: int, step: int, places, num_slots: int, slot_dim: int, num_locations: int, config) -> Draws:
    """The Draws of the images at `places` (a sequence of ints) of the global batch of `step`, on the CPU.

    Visible locations, as in the release: with `config.visible_probability` uniform from 0 to L - 2, else the constant
    share `config.visible_fraction` of L, less one.
    """
    shape = (num_slots, slot_dim)
    slots, restart, order, visible, merge = [], [], [], [], []
    for place in places:
        slots.append(generator(seed, step, place, SLOTS).standard_normal(shape, dtype=np.float32))
        restart.append(generator(seed, step, place, RESTART).standard_normal(shape, dtype=np.float32))
        random = generator(seed, step, place, DECODING)
        order.append(random.permutation(num_locations))
        uniform = random.random() < config.visible_probability
        constant = max(int(config.visible_fraction * num_locations) - 1, 0)
        visible.append(random.integers(max(num_locations - 1, 1)) if uniform else constant)
        first = place if config.merge_draw == "image" else 0  # one draw for the batch: that of its first image
        merge.append(generator(seed, step, first, MERGING).random() < config.merge_probability)
    orders = [np.full(len(merge), generator(seed, step, 0, purpose).integers(9)) for purpose in (PERMUTATION, TEACHING)]
    stacked = (np.stack(slots), np.stack(restart), np.stack(order), np.array(visible), np.array(merge), *orders)
    return Draws(*(torch.from_numpy(array) for array in stacked))
