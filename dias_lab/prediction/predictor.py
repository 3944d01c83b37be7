"""A predictor: SlotFormer, and the frozen model whose slots it continues, which shows what predicted slots look like.

Nothing of a frame that is predicted is shown to the decoder: it decodes from slots alone. A decoder with slot frames wants
the place of each slot, and a predicted slot has no attention map; so places are read off the slots, by a linear map that is
fitted on the frozen model's own slots and maps (on the built-in clips it explains 97 % and more of their variance).

Axes: B clips, F frames, T of them seen (the burn-in), N slots, D slot width, C h w feature maps, R pixels of the square.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dias_lab import runs
from dias_lab.analysis.slots import Slots, slots_for
from dias_lab.config import Config
from dias_lab.data import dataset
from dias_lab.data import store as stores
from dias_lab.data.clips import Clips, clip_squares
from dias_lab.methods import checkpoint
from dias_lab.methods.task import Head
from dias_lab.prediction.slotformer import SlotFormer
from dias_lab.trace import CLIP_AXES, AttentionTrace

FITTED = 256  # frames on which places are fitted
SMALLEST = 0.02**0.5  # width of a slot's frame
BODY = 5  # numbers of a body's state: x, y, vx, vy, radius


class Rolled(NamedTuple):
    """What a training pass gives, of K predicted frames and S of them that are decoded."""

    predicted: Float[Tensor, "B K N D"]
    true: Float[Tensor, "B K N D"]
    keep: Bool[Tensor, "B N"]
    decoded: Float[Tensor, "B S C h w"] | None
    features: Float[Tensor, "B S C h w"] | None


class Predictor(Head):
    def __init__(self, config: Config, slot_dim: int):
        super().__init__()
        self.config = config
        self.frozen = (None if config.slots_of == "oracle" else frozen_model(config),)  # in a tuple: no part of what is trained
        sizes = config.prediction_dim, config.prediction_layers, config.prediction_heads, config.prediction_mlp_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.rollouter = SlotFormer(slot_dim, config.burn_in, *sizes, config.prediction_dropout, config.prediction_residual)
        self.register_buffer("places", torch.zeros(slot_dim + 1, 3))  # reads centre (y, x) and width off a slot
        self.shows = self.frozen[0] is not None and not needs_features(self.frozen[0])  # whether predicted slots can be decoded

    @property
    def slot_model(self):
        """The frozen model, on this one's device; None for true states."""
        return self.frozen[0] if self.frozen[0] is None else self.frozen[0].to(self.places.device)

    def forward(self, slots: Float[Tensor, "B F N D"], keep: Bool[Tensor, "B N"], features=None, draws=None) -> Rolled:
        """From the first T frames to the others; `draws`: the dropout's numbers [B], and which frames are decoded [B S]."""
        T = self.config.burn_in
        seen, true = slots[:, :T], slots[:, T:]
        with torch.random.fork_rng(devices=[slots.device] if slots.is_cuda else [], enabled=draws is not None):
            if draws is not None:  # dropout is a function of (seed, step), too
                torch.manual_seed(int(draws["dropout"][0]))
            predicted = self.rollouter(seen, true.shape[1], keep)
        decoded = None
        if features is not None:
            which = draws["decoded"].to(slots.device)  # [B S]
            shown = predicted[torch.arange(len(slots), device=slots.device)[:, None], which]  # [B S N D]
            whole = keep[:, None].expand(shown.shape[:3])
            decoded = self.decode(shown.flatten(0, 1), whole.flatten(0, 1))[0].unflatten(0, which.shape)
        return Rolled(predicted, true, keep, decoded, features)

    def decode(self, slots: Float[Tensor, "B N D"], keep: Bool[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Features [B C h w] and the decoder's map [B N h w] of slots; gradients go through it."""
        model, places = self.slot_model, None
        if model.decoder.framed:
            normal = self.rollouter.standardised(slots)
            places = torch.cat([normal, torch.ones_like(normal[..., :1])], dim=-1) @ self.places  # [B N 3]
            places = torch.cat([places[..., :2], places[..., 2:].clamp_min(SMALLEST)], dim=-1)[..., None]
        hidden = slots.new_zeros(len(slots), model.backbone.feature_dim, *model.backbone.grid)
        return model.reconstruct(hidden, slots, keep, {}, True, places)[:2]

    @torch.no_grad()
    def fit(self, slots: Slots, store):
        """Standardise slots, and learn to read places off them; `slots` are those of this store, the training split's."""
        frames = np.linspace(0, len(slots.slots) - 1, min(len(slots.slots), 2**16)).astype(int)
        kept = slots.slots[frames][slots.keep[frames]]
        self.rollouter.fit(torch.from_numpy(kept.astype(np.float32)))
        model = self.slot_model
        if model is None or not model.decoder.framed:
            return
        rows, places, seen = [], [], 0
        for clip, batch in enumerate(clip_squares(store, model.config.replace(workers=0))):
            draws = model.draw([clip], model.config.seed, frames=1)
            for piece in model.pieces(batch["image"], draws=draws, boxes=batch.get("boxes")):
                one = piece.as_images()
                rows.append(self.rollouter.standardised(one.slots)[one.keep])
                places.append(model.decoder.frames_of(one.attention[-1].flatten(2), one.keep)[one.keep])
            if (seen := seen + batch["frames"].shape[1]) >= FITTED:
                break
        rows, places = torch.cat(rows).double(), torch.cat(places).double()
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        square = rows.T @ rows + 1e-3 * len(rows) * torch.eye(rows.shape[1], device=rows.device)  # ridge regression
        self.places.copy_(torch.linalg.solve(square, rows.T @ places))


def frozen_model(config: Config):
    """The model whose slots are continued, the parent or its untrained twin, in evaluation mode. Its decoder sees no features.

    Raises ValueError where the parent is no run of a model for clips.
    """
    model = checkpoint.load_model(config.parent, device="cpu")
    if not model.config.clip_frames:
        way_out = "Take the run of a model for clips: dias_lab/shipped/clips, or one trained with clip_frames"
        raise ValueError(f"{config.parent} is a model of images: its slots are not the same objects in the next frame. {way_out}")
    model = model.untrained() if config.slots_of == "untrained" else model
    if hasattr(model.decoder, "evaluation_visible"):
        model.decoder.evaluation_visible = "none"
    return model.requires_grad_(False).eval()


def needs_features(model) -> bool:
    """Whether slots alone cannot be decoded: what the decoder gives depends on features that it sees, or is of codes."""
    if hasattr(model, "quantizer"):
        return True
    slots, places = (torch.ones(1, model.config.num_slots, *sizes) for sizes in ((model.config.slot_dim,), (3, 1)))
    shown = torch.zeros(1, model.backbone.feature_dim, *model.backbone.grid)
    one, other = (model.reconstruct(shown + x, slots, slots[..., 0] > 0, {}, True, places)[0] for x in (0, 1))
    return not torch.equal(one, other)


def slots_seen(config: Config, store) -> Slots:
    """The slots of all frames of a store, as the config asks for them: of its parent, or the bodies' true states."""
    slots = true_states(store) if config.slots_of == "oracle" else slots_for(config, store)
    found, wanted = slots.slots.shape[1:], (config.num_slots, config.slot_dim)
    if config.slots_of != "oracle" and found != wanted:
        raise ValueError(f"the slots of {store.path} are [N D] = {list(found)}, not {list(wanted)}: take the parent's fields")
    return slots


def true_states(store) -> Slots:
    """Bodies as slots: body k is slot k - 1; x, y, vx, vy and radius, in pixels and pixels a frame, and its kind, one-hot."""
    kinds, infos = sorted(store.meta["classes"] or {}), [store[item].info for item in range(len(store))]
    if any("bodies" not in info for info in infos):
        raise ValueError(f"{store.path} knows no bodies: convert the world with physics (python -m dias_lab convert physics)")
    slots = np.zeros((len(infos), max(max(info["bodies"]) for info in infos), BODY + len(kinds)), np.float32)
    keep = np.zeros(slots.shape[:2], bool)
    for item, info in enumerate(infos):
        for body, state in info["bodies"].items():
            one_hot = [str(kind) == str(info["classes"][body]) for kind in kinds]
            slots[item, body - 1], keep[item, body - 1] = [*state, *one_hot], True
    return Slots(slots, keep, np.empty((len(infos), 0, 0), np.uint8), {"source": "oracle"})


def load(run_dir, which: str | int = "best", device: str | None = None) -> Predictor:
    """The predictor of a run, in evaluation mode. ValueError for a run of another task, and where its parent has changed."""
    run_dir = runs.resolve(run_dir)
    config = Config.load(run_dir)
    if config.task != "prediction":
        raise ValueError(f"{run_dir} is a run of the task {config.task!r}: name one of the task prediction")
    step = runs.best_step(run_dir) if which == "best" else runs.steps(run_dir)[-1] if which == "last" else which
    known, now = checkpoint.progress(run_dir, step).get("data", {}).get("parent"), runs.weights_hash(config.parent)
    if known not in (None, now):
        raise ValueError(f"{run_dir} has learnt from the slots of other weights ({known}) than {config.parent} has now ({now})")
    folder = run_dir / "checkpoints" / str(step)
    state = checkpoint.load_file(folder / checkpoint.WEIGHTS)
    model = Predictor(config, len(state["rollouter.mean"]))
    checkpoint.load_weights(model, folder)
    return checkpoint.place(model, device).eval()


@torch.no_grad()
def rollout(
    model: Predictor | SlotFormer, slots: Float[Tensor, "B T N D"], keep: Bool[Tensor, "B N"] | None = None, steps: int = 10
) -> Float[Tensor, "B steps N D"]:  # fmt: skip
    """The slots of the next frames, in the units of those given, the last T ones; slots outside `keep` stay as they are."""
    device = next(model.parameters()).device
    return getattr(model, "rollouter", model)(slots.to(device).float(), steps, None if keep is None else keep.to(device))


def clip_window(config: Config, clips: Clips, clip: int, steps: int) -> list[int]:
    """The first frames of a clip: the burn-in, and `steps` more. ValueError where it is too short, with what would fit."""
    wanted, items = config.burn_in + steps, list(clips[clip][:: config.clip_stride])
    if len(items) < wanted:
        what = f"clip {clip} of {clips.store.path} has {len(items)} frames (every {config.clip_stride}th is taken)"
        way_out = f"at most {max(len(items) - config.burn_in, 0)} fit"
        raise ValueError(f"{what}; burn_in = {config.burn_in} and {steps} predicted ones need {wanted}: {way_out}")
    return items[:wanted]


@torch.no_grad()
def predicted_trace(model, store, clip: int, steps: int, without: int | None = None) -> AttentionTrace:
    """A clip as it was, with the maps that its slots decode to: those seen in the burn-in, then the predicted ones.

    `model`: a predictor, or its run. `without`: a slot that is taken away before the rollout, a counterfactual by hand.
    Raises ValueError for a slot that is not there, a clip that is too short, and slots that nothing decodes.
    """
    model = model if isinstance(model, Predictor) else load(model)
    store = store if isinstance(store, stores.Store) else stores.open(runs.resolve(store))
    config, T = model.config, model.config.burn_in
    if not model.shows:
        raise ValueError("nothing decodes these slots alone (true states, or a decoder that sees features): there are no maps")
    items = clip_window(config, clips := Clips(store), clip, steps)
    found = slots_seen(config, store)
    slots, keep = (torch.from_numpy(array[items[:T]]) for array in (found.slots, found.keep))
    slots, keep = slots.float()[None], keep.all(dim=0)[None]
    if without is not None:
        if not 0 <= without < keep.shape[1] or not keep[0, without]:
            raise ValueError(f"without={without}: the slots of clip {clip} are {keep[0].nonzero().flatten().tolist()}")
        keep[0, without] = False
    device = model.places.device
    whole = torch.cat([slots.to(device), rollout(model, slots, keep, steps)], dim=1)[0]  # [F N D]
    keep = keep.expand(len(whole), -1)
    maps = model.decode(whole, keep.to(device))[1].cpu()
    images, true = frames_at(store, items, config.image_size)
    names = [f"{clips.name(clip)}, frame {f}, {'seen' if f < T else 'predicted'}" for f in range(len(items))]
    about = {"frames": len(items), "axes": CLIP_AXES, "method": "slotformer", "burn_in": T, "without": without}
    return AttentionTrace(images.permute(0, 2, 3, 1), maps[None], maps, keep, true.to(torch.uint8), names, about)


def frames_at(store, items: list[int], size: int) -> tuple[Tensor, Tensor]:
    """The squares of frames: uint8 [F 3 R R], and their true segments [F R R]."""
    parts = [dataset.square(*(part[None] for part in dataset.read(store, item)), size) for item in items]
    return tuple(torch.cat(part) for part in zip(*parts))
