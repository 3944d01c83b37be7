"""Clips: the loop over frames that methods for clips share, and the same loop one frame at a time, for streams.

On each later frame a predictor (a transition) makes slots from those of past frames, and the corrector (Slot Attention)
fits them to what is there: SAVi's words, Kipf et al. 2022, arXiv:2111.12594. A slot's number is its identity: nothing ever
matches slots between frames. Backbone, projector and decoder take all frames at once.

A method for clips is a `ClipMethod` and the image method that it extends, in this order: class ClipX(ClipMethod, X). It
writes `first`, what that method does on the first frame; a clip of one frame is what X makes of an image. All of X's
weights have the names they have there.

Axes: T iterations on the first frame, B clips, F frames, N slots, S boxes, L = h * w locations, C feature channels, K channels
of projected features, D slot width, R pixels of the square.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dias_lab import losses
from dias_lab.data.draws import Request, draw
from dias_lab.methods.base import Given, Method, Output, locations, to_device
from dias_lab.methods.clip_output import ClipOutput, Corrected, State
from dias_lab.methods.parts import build_transition
from dias_lab.methods.tracing import traced
from dias_lab.modules.initializer import BoxSlots
from dias_lab.modules.transition import Past
from dias_lab.trace import CLIP_AXES, AttentionTrace

AT_ONCE = 32  # frames, of all clips together, that an evaluation encodes and decodes at once


class ClipMethod(Method):
    fresh = ("transition.", "boxes.")  # what an image model lacks, whose weights a clip model starts from
    output = ClipOutput
    decoded = ()  # what `reconstruct` gives besides, as fields of the output
    truncate = False  # whether gradients go through a frame's last iteration only

    def __init__(self, config):
        super().__init__(config)
        self.transition = build_transition(config, self.aggregator.to_key.in_features)
        if config.condition == "boxes":
            self.boxes = BoxSlots(config.slot_dim)

    def prepare(self, images: UInt8[Tensor, "B F 3 H W"], segments: Int[Tensor, "B F H W"] | None = None):
        """As for images, of clips, or of single frames [B 3 H W] for `step`."""
        if images.ndim != 5:
            return super().prepare(images, segments)
        found = super().prepare(images.flatten(0, 1), None if segments is None else segments.flatten(0, 1))
        whole = [part.unflatten(0, images.shape[:2]) for part in (found if segments is not None else (found,))]
        return whole[0] if segments is None else tuple(whole)

    def forward(
        self, images: Float[Tensor, "B F 3 R R"] | None, initial_slots=None, decoder_attention=None, keep=None, draws=None,
        features: Float[Tensor, "B F C h w"] | None = None, boxes: Float[Tensor, "B S 4"] | None = None,
        frames: Bool[Tensor, "B F"] | None = None,
    ) -> ClipOutput:  # fmt: skip
        """One pass over clips. `initial_slots` are the first frame's, `keep` holds throughout; the rest is as for images.

        `boxes`: of the objects in the first frame, (left, top, right, bottom) as shares of the side, -1 where a row has
        none. `frames`: False where a frame is padding. Raises ValueError for wrong shapes, for boxes that are missing, and
        for boxes that the model was not made for.
        """
        options = initial_slots, decoder_attention, keep, draws, features, boxes
        parts = list(self.pieces(images, *options))
        whole = parts[0]
        if len(parts) > 1:
            joined = {
                name: None if getattr(whole, name) is None else torch.cat([getattr(part, name) for part in parts], dim=axis)
                for name, axis in whole.axes.items()
            }
            whole = replace(whole, **joined, iterations=sum((part.iterations for part in parts), ()))
        if frames is not None and frames.shape != whole.slots.shape[:2]:
            raise ValueError(f"frames must be bool [B F], here {list(whole.slots.shape[:2])}, got {list(frames.shape)}")
        return replace(whole, frames=frames)

    def pieces(
        self, images, initial_slots=None, decoder_attention=None, keep=None, draws=None, features=None, boxes=None
    ) -> Iterator[ClipOutput]:
        """The same in pieces of a few frames, one after the other, so that a long clip needs no more memory than a short one.

        The images may be uint8 squares, too, which are normalised on the way. In training there is one piece.
        """
        whole, state = _checked(images, features), None
        size = whole.shape[1] if self.training else max(AT_ONCE // len(whole), 1)
        for f in range(0, whole.shape[1], size):
            shown, known = (None if one is None else one[:, f : f + size] for one in (images, features))
            shown = self.normalise(shown) if shown is not None and shown.dtype == torch.uint8 else shown
            found = self.encode(shown, known)  # [B f C h w]
            if state is None:
                given = self.start(found, initial_slots, decoder_attention, keep, draws, boxes)
            output, state = self.run(found, given._replace(images=shown), state)
            yield output

    @torch.no_grad()
    def step(
        self, frame: Float[Tensor, "B 3 R R"], state: State | None = None, initial_slots=None, decoder_attention=None,
        keep=None, draws=None, boxes=None,
    ) -> tuple[Output, State]:  # fmt: skip
        """The output of the next frame of a stream, and the state that the frame after it takes: as in a whole clip.

        Without a state a stream begins; what is given besides belongs to its first frame. Nothing is learnt from streams.
        Raises ValueError for anything else, and where the number of streams changes.
        """
        begins = state is None
        if not begins and any(one is not None for one in (initial_slots, keep, boxes)):
            raise ValueError("initial_slots, keep and boxes are of a stream's first frame: give them with state=None")
        if frame.ndim != 4 or not frame.is_floating_point():
            told = f"{str(frame.dtype).removeprefix('torch.')} {list(frame.shape)}"
            raise ValueError(f"step takes one frame of each stream, float [B 3 R R] as model.prepare gives it, got {told}")
        if not begins and len(frame) != len(state.keep):
            raise ValueError(f"the state is of {len(state.keep)} streams, and the frames are {len(frame)}")
        features = self.encode(frame[:, None])
        given = self.start(features, initial_slots if begins else state.initial, decoder_attention, keep, draws, boxes)
        output, state = self.run(features, given._replace(images=frame[:, None]), state)
        return output.frame(0), state

    def start(self, features, initial_slots, decoder_attention, keep, draws, boxes) -> Given:
        """What a clip starts from, on the features' device."""
        B, F, _, h, w = features.shape
        draws = self.draw(range(B), num_locations=h * w, frames=F if self.training else 1) if draws is None else draws
        draws = to_device(draws, features.device)
        slots = self.sample(draws, self._boxes(boxes, features)) if initial_slots is None else initial_slots
        if keep is not None and keep.shape != slots.shape[:2]:
            raise ValueError(f"keep must be bool [B N], here {list(slots.shape[:2])}, got {list(keep.shape)}")
        return Given(None, slots, keep, draws, decoder_attention)

    def sample(self, draws: dict, boxes: Float[Tensor, "B S 4"] | None = None) -> Float[Tensor, "B N D"]:
        """Initial slots: of the boxes that there are, then of the initializer, for the background and what comes later."""
        slots = self.initializer(len(draws["slots"]), noise=draws["slots"])
        if boxes is None:
            return slots
        S = boxes.shape[1]
        if S >= slots.shape[1]:
            N = slots.shape[1]
            raise ValueError(f"{S} rows of boxes for num_slots = {N}: at most {N - 1}, since a slot is left for the background")
        there = (boxes >= 0).all(dim=2, keepdim=True)
        return torch.cat([torch.where(there, self.boxes(boxes), slots[:, :S]), slots[:, S:]], dim=1)

    def _boxes(self, boxes, features) -> Float[Tensor, "B S 4"] | None:
        """The boxes, where the features are. ValueError where they are missing, of wrong shape, or not wanted."""
        wanted = self.config.condition == "boxes"
        if boxes is None and wanted:
            raise ValueError('condition is "boxes": give those of the first frame, [B S 4] as shares, or initial_slots')
        if boxes is None:
            return None
        if not wanted:
            raise ValueError('boxes were given, and this model starts without (condition="none")')
        if boxes.ndim != 3 or boxes.shape[::2] != (len(features), 4):
            raise ValueError(f"boxes must be [B S 4], here [{len(features)} S 4], got {list(boxes.shape)}")
        return boxes.to(features)

    def encode(self, images, features=None) -> Float[Tensor, "B F C h w"]:
        """The backbone's features of all frames, unless they are known already."""
        whole = _checked(images, features)
        return whole if features is not None else self.backbone(whole.flatten(0, 1)).unflatten(0, whole.shape[:2])

    def run(
        self, features: Float[Tensor, "B F C h w"], given: Given, state: State | None = None
    ) -> tuple[ClipOutput, State]:
        """The loop over frames, from where `state` left it; then the decoder, for all frames at once."""
        (B, F), flat, found = features.shape[:2], features.flatten(0, 1), []
        projected = self.project(locations(flat)).unflatten(0, (B, F))  # [B F L K]
        numbers = given.draws.get("transition") if self.training else None  # [B F 3]
        for f in range(F):
            if state is None:
                one = self.first(projected[:, f], given)
            else:
                one = self.later(projected[:, f], state, given, None if numbers is None else numbers[:, f])
            state = self.after(one, projected[:, f], given, state)
            found.append(one)

        slots, keep = (torch.stack([getattr(one, name) for one in found], dim=1) for name in ("slots", "keep"))
        maps = [_filled(one.attention, self.aggregator.iterations) for one in found]
        attention = torch.stack(maps, dim=2).unflatten(4, features.shape[3:])  # [T B F N h w]
        leader = None if found[0].leader is None else torch.stack([one.leader for one in found], dim=2)
        draws = {name: given.draws[name].flatten(0, 1) for name in self.decoder.drawn(given.draws)} if self.training else {}
        target, own = self.target(flat, given)
        parts = target, slots.flatten(0, 1), keep.flatten(0, 1), draws, given.decoder_attention, attention[-1].flatten(0, 1)
        decoded = self.sampled(draws), *self.reconstruct(*parts)
        sampled, reconstruction, seen, *more = (None if part is None else part.unflatten(0, (B, F)) for part in decoded)
        own |= dict(iterations=tuple(len(one.attention) for one in found), leader=leader, sampled=sampled)
        own |= dict(zip(self.decoded, more, strict=True)) | found[0].more
        return self.output(target.unflatten(0, (B, F)), slots, attention, keep, reconstruction, seen, **own), state

    def target(self, features: Float[Tensor, "B*F C h w"], given: Given) -> tuple[Tensor, dict]:
        """What the slots reconstruct, [B*F C h w], and what else the output has of it. `given.images` are [B F 3 R R]."""
        return features, {}

    def first(self, projected: Float[Tensor, "B L K"], given: Given) -> Corrected:
        """The first frame: what the image method does."""
        raise NotImplementedError

    def later(self, projected: Float[Tensor, "B L K"], state: State, given: Given, numbers=None) -> Corrected:
        """A frame with one before it: what is predicted, corrected. Slots that are left out stay as they are."""
        predicted, iterations = self.predict(projected, state, numbers), self.config.next_iterations
        slots, attention = self.aggregator(projected, predicted, state.keep, iterations, truncate=self.truncate)
        slots = torch.where(state.keep[..., None], slots, state.slots)
        leader = None if state.leader is None else state.leader.expand(self.aggregator.iterations, -1, -1)
        return Corrected(slots, attention, state.keep, leader)

    def predict(self, projected: Float[Tensor, "B L K"], state: State, numbers=None) -> Float[Tensor, "B N D"]:
        """What the frame's slots start from."""
        past = state.past._replace(projected=(*state.past.projected, projected))
        return self.transition(past, state.keep, numbers)

    def after(self, one: Corrected, projected: Float[Tensor, "B L K"], given: Given, state: State | None) -> State:
        """The state after a frame."""
        window, leader = self.transition.window, None if one.leader is None else one.leader[-1]
        if state is None:
            return State(Past((one.slots,), (projected,)), one.keep, leader, 1, given.slots, given.keep is not None)
        past = (*state.past.slots, one.slots)[-window:], (*state.past.projected, projected)[-window:]
        return replace(state, past=Past(*past), keep=one.keep, leader=leader, frame=state.frame + 1)

    def losses(self, output: ClipOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses over the frames that are none of padding, and their weights."""
        flat, frames = output.as_images(), output.frames
        counted = None if frames is None else frames.flatten()
        terms = {"reconstruction": losses.reconstruction_loss(flat.reconstruction, flat.features, flat.sampled, counted)}
        weights = {"reconstruction": 1.0}
        if self.config.contrast_weight and output.slots.shape[1] > 1:
            present = output.keep if frames is None else output.keep & frames[..., None]
            terms["contrast"], weights["contrast"] = losses.contrast_loss(output.slots, present), self.config.contrast_weight
        return terms, weights

    def requests(self, num_locations: int | None = None) -> list[Request]:
        """As for images; the decoder and the transition draw anew on each frame."""
        each = [*self.decoder.requests(num_locations or self.num_locations), *self.transition.requests()]
        once = [one for one in super().requests(num_locations) if one.stream not in {request.stream for request in each}]
        return once + [request._replace(per="frame") for request in each]

    def draw(self, places, seed=None, step: int = 0, num_locations=None, frames: int | None = None) -> dict[str, Tensor]:
        """The random numbers of the clips at `places`: of the first slots [B ...], of decoder and transition [B F ...].

        `frames`: F, unless it is that of a training clip.
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        return draw(seed, step, places, self.requests(num_locations), frames or self.config.clip_frames)

    def trace(
        self, images: UInt8[Tensor, "B F 3 H W"], segments: Int[Tensor, "B F H W"] | None = None, seed: int = 0, names=None,
        about=None, boxes: Float[Tensor, "B S 4"] | None = None,
    ) -> AttentionTrace:  # fmt: skip
        """The AttentionTrace of clips, their frames as images, clip after clip. Clip i draws from (seed, i).

        `names`: of the clips, or of all frames. Pictures are kept as for images.
        """
        if images.ndim != 5:
            raise ValueError(f"a model for clips traces uint8 [B F 3 H W], got {list(images.shape)}; pictures: images[:, None]")
        B, F = images.shape[:2]
        names = [f"clip {clip}" for clip in range(B)] if names is None else list(names)
        if len(names) == B:
            names = [f"{name}, frame {f}" for name in names for f in range(F)]

        def passes(seen: UInt8[Tensor, "B*F 3 R R"]) -> Iterator[Output]:
            for clip, frames in enumerate(seen.split(F)):
                given = dict(draws=self.draw([clip], seed, frames=1), boxes=None if boxes is None else boxes[clip : clip + 1])
                yield from (piece.as_images() for piece in self.pieces(frames[None], **given))

        flat = None if segments is None else segments.flatten(0, 1)
        told = {"frames": F, "axes": CLIP_AXES, **(about or {})}
        return traced(self, images.flatten(0, 1), flat, seed, names, told, passes)


def _checked(images, features=None) -> Tensor:
    """The images, or the features in their place. ValueError unless they are of clips."""
    whole = images if features is None else features
    if whole.ndim != 5 or not whole.shape[1]:
        raise ValueError(f"clips are [B F 3 R R], their features [B F C h w], F at least 1; got {list(whole.shape)}")
    return whole


def _filled(attention: Float[Tensor, "t B N L"], T: int) -> Float[Tensor, "T B N L"]:
    return torch.cat([attention[:1].expand(T - len(attention), -1, -1, -1), attention])
