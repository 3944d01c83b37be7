"""SlotFormer: a Transformer that looks at the slots of the last frames and says those of the next one, again and again.

Source: Wu et al. 2023, arXiv:2210.05861, and its release pairlab/SlotFormer. Every slot of every frame is a token. A token is
told how long ago its frame was, and not which slot it is: permuting the slots permutes what is predicted. Each step takes the
outputs at the newest frame as the slots of the next one, adds that frame, and drops the oldest; gradients go through all of it.

Added here: slots are standardised, slots that are left out are seen by nobody and stay as they are, and with `residual` a
step is added to the newest slots, which a short training needs.

Axes: B clips, T frames that are looked at (the burn-in), N slots, D slot width, H width of a token.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SlotFormer(nn.Module):
    """Takes slots, and gives them, in their own units."""

    def __init__(
        self, slot_dim, burn_in: int = 6, dim: int = 128, num_layers=4, num_heads=8, mlp_dim: int = 512, dropout=0.1,
        residual: bool = False,
    ):  # fmt: skip
        super().__init__()
        if dim % num_heads or dim % 2:
            raise ValueError(f"prediction_dim is {dim}: it must be even, and a multiple of prediction_heads = {num_heads}")
        self.burn_in, self.dropout, self.residual = burn_in, dropout, residual
        self.to_token = nn.Linear(slot_dim, dim)
        self.register_buffer("time", time_positions(burn_in, dim), persistent=False)  # [T H]
        layer = nn.TransformerEncoderLayer(dim, num_heads, mlp_dim, dropout, norm_first=True, batch_first=True)  # ReLU, biases
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.to_slot = nn.Linear(dim, slot_dim)
        if residual:  # it starts as a copy of the newest slots
            nn.init.zeros_(self.to_slot.weight), nn.init.zeros_(self.to_slot.bias)
        self.register_buffer("mean", torch.zeros(slot_dim))  # of the training split's slots
        self.register_buffer("deviation", torch.ones(slot_dim))

    def forward(
        self, slots: Float[Tensor, "B T N D"], steps: int, keep: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B steps N D"]:  # fmt: skip
        """The slots of the next `steps` frames. Raises ValueError for slots of another width, or of too few or many frames."""
        T, D = self.burn_in, len(self.mean)
        if slots.ndim != 4 or slots.shape[1] != T or slots.shape[3] != D:
            raise ValueError(f"slots must be [B {T} N {D}], of the {T} frames of the burn-in; got {list(slots.shape)}")
        if keep is not None and keep.shape != slots.shape[::2]:
            raise ValueError(f"keep must be bool [B N], here {list(slots.shape[::2])}, got {list(keep.shape)}")
        frames = list(self.standardised(slots).unbind(1))
        for _ in range(steps):
            frames.append(self.next(torch.stack(frames[-T:], dim=1), keep))
        return torch.stack(frames[T:], dim=1) * self.deviation + self.mean

    def next(self, past: Float[Tensor, "B T N D"], keep: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N D"]:
        """One step, of standardised slots."""
        T, N = past.shape[1:3]
        tokens = (self.to_token(past) + self.time[:, None]).flatten(1, 2)  # [B T*N H], oldest frame first
        alone = None if keep is None else ~keep.any(dim=1, keepdim=True)  # who has no slot at all sees all: softmax needs one
        unseen = None if keep is None else ~(keep | alone).repeat(1, T)
        slots = self.to_slot(self.encoder(tokens, src_key_padding_mask=unseen)[:, -N:]).to(past.dtype)
        slots = slots + past[:, -1] if self.residual else slots
        return slots if keep is None else torch.where(keep[..., None], slots, past[:, -1])

    def standardised(self, slots: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return (slots - self.mean) / self.deviation

    @torch.no_grad()
    def fit(self, slots: Float[Tensor, "M D"]):
        """Standardise by these slots from now on. A number that is the same in all of them is not scaled."""
        deviation, mean = torch.std_mean(slots.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))


def time_positions(T: int, H: int) -> Float[Tensor, "T H"]:
    """How long ago each frame was, as sines and then cosines of H / 2 frequencies; the newest, 0 steps ago, comes last."""
    ago = torch.arange(T - 1, -1, -1, dtype=torch.float64)[:, None]
    angle = ago * 10000 ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)  # [T H/2]
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(torch.get_default_dtype())


NAMES = {"rollouter.in_proj.": "to_token.", "rollouter.transformer_encoder.": "encoder.", "rollouter.out_proj.": "to_slot."}
PIXEL_DECODER = ("decoder.", "decoder_pos_embedding.")  # the frozen decoder of its slot model: left out, ours decode features


def from_published(state: dict[str, Tensor], num_heads: int = 8) -> SlotFormer:
    """The rollouter of a published SlotFormer (the CLEVRER file's `state_dict`), in evaluation mode; slots are not standardised.

    The weights of the frozen pixel decoder that the file also holds are left out. Raises ValueError for any other name, for
    missing ones, and for positions that do not count backwards.
    """
    state = {name: value for name, value in state.items() if not name.startswith(PIXEL_DECODER)}
    time, ours = state.pop("rollouter.enc_t_pe", None), {}
    if time is None or "rollouter.in_proj.weight" not in state:
        raise ValueError("rollouter.enc_t_pe or rollouter.in_proj.weight is missing: these are no weights of a SlotFormer")
    for name, value in state.items():
        start = next((start for start in NAMES if name.startswith(start)), name)
        ours[NAMES.get(start, start) + name.removeprefix(start)] = value
    (dim, slot_dim), T = state["rollouter.in_proj.weight"].shape, time.shape[1]
    layers = len({name.split(".")[2] for name in ours if name.startswith("encoder.layers.")})
    mlp_dim = len(ours.get("encoder.layers.0.linear1.bias", [0]))
    model = SlotFormer(slot_dim, T, dim, max(layers, 1), num_heads, mlp_dim).to(time.dtype)
    model.time = time_positions(T, dim).to(time)
    if not torch.allclose(model.time, time[0], atol=1e-5):
        raise ValueError("rollouter.enc_t_pe is not the table of sines and cosines that counts backwards from the newest frame")
    try:
        model.load_state_dict(ours | {"mean": model.mean, "deviation": model.deviation})
    except RuntimeError as error:
        raise ValueError(f"these weights are not those of a SlotFormer: {error}") from None
    return model.eval()
