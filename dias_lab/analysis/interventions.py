"""Interventions: the same weights under other settings, and slots that are dropped, merged or swapped by hand.

A forward pass ends with slots; the decoder turns them into a reconstruction and a map. Changing the slots in between, and
nothing else, shows what each of them is worth to the decoder.

Axes: B images, C channels, h w locations (L of them), N slots, D slot width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dias_lab.methods import Method, build

ACTIONS = ("keep", "drop", "merge", "swap")


def with_fields(model: Method, **fields) -> Method:
    """The same weights under a config with other `fields`, for example merge_threshold, num_slots or num_iterations.

    Other num_iterations hold in evaluation as well, unless `evaluation_iterations` says otherwise. In evaluation mode, on
    the model's device. Raises ValueError for an unknown field, and where the weights do not fit (num_slots with the separate
    initializer, or any width).
    """
    fields = {"evaluation_iterations": 0} | fields if "num_iterations" in fields else fields
    other = build(model.config.replace(**fields))
    other.load_trained_state(model.trained_state())
    other.trained_steps, other.source = model.trained_steps, model.source
    return other.to(model.device).eval()


def edit(
    slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"], action: str, slot: int, partner: int = 0,
    donor: Float[Tensor, "B N D"] | None = None,
) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:  # fmt: skip
    """Slots and keep mask after an action on `slot`; the arguments stay as they are.

    "keep": nothing. "drop": the slot is left out. "merge": it takes the mean of itself and `partner`, and `partner` is left
    out. "swap": it takes the place of slot `partner` of `donor` (another picture's slots; without one, the two slots of
    this picture change places). Raises ValueError for another action, and where no slot would be left.
    """
    if action not in ACTIONS:
        raise ValueError(f"action is one of {', '.join(ACTIONS)}, got {action!r}")
    before, slots, keep = slots, slots.clone(), keep.clone()
    if action == "drop":
        keep[:, slot] = False
    elif action == "merge" and slot != partner:
        slots[:, slot] = (slots[:, slot] + slots[:, partner]) / 2
        keep[:, partner] = False
    elif action == "swap" and donor is None:
        slots[:, [slot, partner]] = before[:, [partner, slot]]
        keep[:, [slot, partner]] = keep[:, [partner, slot]]
    elif action == "swap":
        slots[:, slot], keep[:, slot] = donor[:, partner], True
    if not keep.any(dim=1).all():
        raise ValueError("no slot would be left: the decoder needs at least one")
    return slots, keep


class Decoded(NamedTuple):
    attention: Float[Tensor, "B N h w"]
    error: Float[Tensor, "B"]  # of the reconstruction, mean squared


@torch.no_grad()
def decode(model: Method, features: Float[Tensor, "B C h w"], slots, keep, attention=None) -> Decoded:
    """What the decoder makes of these slots in evaluation mode.

    A decoder with slot frames needs the map [B N h w] that each slot brings along: `attention`.
    """
    rebuilt, attention, *_ = model.reconstruct(features, slots, keep, decoder_attention=True, attention=attention)
    return Decoded(attention, (rebuilt - features).square().mean(dim=(1, 2, 3)))


@torch.no_grad()
def decode_edited(model: Method, out, action: str, slot: int, partner: int = 0, donor=None) -> Decoded:
    """What the decoder makes of an output's slots after `edit`; with slot frames each brings its last map along.

    `donor`: the output of one other picture, whose kept slots are the donors, counted by `partner`.
    """
    others = (None, None) if donor is None else [x[donor.keep][None] for x in (donor.slots, donor.attention[-1].flatten(2))]
    slots, keep = edit(out.slots, out.keep, action, slot, partner, others[0])
    maps, _ = edit(out.attention[-1].flatten(2), out.keep, action, slot, partner, others[1])
    return decode(model, out.features, slots, keep, maps.view_as(out.attention[-1]))
