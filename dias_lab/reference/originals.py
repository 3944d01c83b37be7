"""VideoSAUR and SlotContrast as their authors' own code has them, for the weights that they publish.

Sources: martius-lab/videosaur (Zadaianchuk et al. 2023, arXiv:2306.04829) and martius-lab/slotcontrast (Manasyan et al. 2025,
arXiv:2412.14295), which share their parts. Otherwise than in their re-implementation (methods/): the GRU goes on from the
*normalised* slot; one pre-norm layer predicts; two iterations on later frames; nothing is truncated; ReLU throughout. And the
attention of predictor and allocator multiplies its logits by sqrt(width of a head) where all others divide by it: the code
divides the query by the usual factor. Published weights need that.

Whoever trains these gets VideoSAUR's similarity of the features themselves, and not of the last block's keys.

Axes: B clips (in decoders: frames of all clips), N slots, L = h * w locations, M what is looked at, D slot width.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dias_lab.methods.plain_clips import PlainClips
from dias_lab.methods.slotcontrast import SlotContrast
from dias_lab.methods.spot import LearnedSlots
from dias_lab.methods.videosaur import SlotMixer, VideoSAUR
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.projector import build_projector
from dias_lab.modules.transition import Identity, Past

HIDDEN = 1024  # of the decoders


class Original(PlainClips):
    """The parts that both share."""

    has_mlp = False  # whether an iteration of Slot Attention ends with an MLP

    def __init__(self, config):
        super().__init__(config)
        dim, sizes = self.backbone.feature_dim, (config.slot_dim, config.slot_mlp_dim, config.num_iterations)
        self.project = build_projector(config, dim, nn.ReLU, self.backbone.grid)
        more = self.has_mlp, config.evaluation_iterations
        self.aggregator = OriginalSlotAttention(config.project_dim or dim, *sizes, *more)
        self.transition = Predictor(config.slot_dim, config.transition_heads, config.slot_mlp_dim)


class VideoSAUROriginal(Original, VideoSAUR):
    def build_decoder(self) -> nn.Module:
        config, layers = self.config, 4 if self.config.similarity_alone else 3
        sizes = config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim or HIDDEN
        return OriginalMixer(self.out_dim, config.slot_dim, self.num_locations, *sizes, layers)


class SlotContrastOriginal(Original, SlotContrast):
    has_mlp = True

    def __init__(self, config):
        super().__init__(config)
        self.initializer = LearnedSlots(config.num_slots, config.slot_dim)

    def start(self, features, initial_slots=None, *given):
        slots = self.initializer(len(features)) if initial_slots is None else initial_slots
        return super().start(features, slots, *given)

    def build_decoder(self) -> nn.Module:
        decoder = super().build_decoder()
        for place in range(1, len(decoder.mlp), 2):
            decoder.mlp[place] = nn.ReLU()
        return decoder


class OriginalSlotAttention(SlotAttention):
    """Slot Attention that forgets a slot's length and mean before each iteration's update."""

    def __init__(self, feature_dim, slot_dim, mlp_dim, num_iterations=3, has_mlp=True, evaluation_iterations=0):
        super().__init__(feature_dim, slot_dim, mlp_dim, num_iterations, nn.ReLU, 1e-8, evaluation_iterations)
        if not has_mlp:
            self.norm_mlp, self.mlp = nn.Identity(), Nothing()

    def update(self, slots, logits, value) -> tuple[Tensor, Tensor]:
        return super().update(self.norm_slots(slots), logits, value)


class Nothing(nn.Module):
    """In an MLP's place, which adds nothing."""

    def forward(self, slots):
        return slots * 0


class Predictor(Identity):
    """The slots of the frame before look at each other."""

    def __init__(self, slot_dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.layer = SharpLayer(slot_dim, num_heads, mlp_dim)

    def forward(self, past: Past, keep=None, draws=None) -> Float[Tensor, "B N D"]:
        return self.layer(past.slots[-1], None, keep)[0]


class SharpLayer(nn.Module):
    """A pre-norm layer over slots that look at each other, or over locations that look at a memory of slots.

    Its logits are multiplied by sqrt(width of a head): with 16 channels a head they are 16 times the usual ones.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the slots' width {dim}: transition_heads, decoder_heads")
        self.num_heads = num_heads
        self.norm_self, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))

    def forward(
        self, values: Float[Tensor, "B L D"], memory: Float[Tensor, "B M D"] | None = None,
        keep: Bool[Tensor, "B M"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], None]:  # fmt: skip
        """The second result is no map, as of layers that have one."""
        query = self.norm_self(values)
        seen = query if memory is None else memory
        matrices = zip((query, seen, seen), self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        heads = [F.linear(*one).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for one in matrices]
        mask = None if keep is None else keep[:, None, None]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=heads[0].shape[-1] ** 0.5)
        values = values + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return values + self.mlp(self.norm_mlp(values)), None


class OriginalMixer(SlotMixer):
    """The mixer with these layers, one head in the last attention, and an MLP of its own depth without a norm."""

    def __init__(self, out_dim, slot_dim, num_locations, num_layers, num_heads, mlp_dim, num_hidden: int = 3):
        super().__init__(out_dim, slot_dim, num_locations, num_layers, 1, mlp_dim)
        self.layers = nn.ModuleList(SharpLayer(slot_dim, num_heads, 4 * slot_dim) for _ in range(num_layers))
        widths = [slot_dim] + [mlp_dim] * num_hidden
        hidden = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.ReLU())]
        self.render = nn.Sequential()
        self.render.add_module("layers", nn.Sequential(*hidden))
        self.render.add_module("out", nn.Linear(mlp_dim, out_dim))


# Which published file it is, by its tensors' sizes

BACKBONES = {  # channels, pixels of a patch
    (768, 14): "vit_base_patch14_dinov2.lvd142m", (384, 14): "vit_small_patch14_dinov2.lvd142m",
    (768, 16): "vit_base_patch16_224.dino", (768, 8): "vit_base_patch8_224.dino",
}  # fmt: skip


def sizes(state: dict) -> dict:
    """The fields of the config that a published state dict speaks of. ValueError for a backbone that is not known."""
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    vit = "encoder.module.backbone.model."
    C, _, patch, _ = shapes.get(vit + "patch_embed.proj.weight") or (0,) * 4
    if (C, patch) not in BACKBONES:
        raise ValueError(f"no backbone is known here that has {C} channels and patches of {patch} pixels")
    *_, L, D = shapes["decoder.module.pos_emb"]
    side, table = round(L**0.5), round((shapes[vit + "pos_embed"][1] - 1) ** 0.5)
    # a table of another size is resampled in every pass, as there: so it is loaded as it is
    arguments = '{"final_norm": false%s}' % (f', "img_size": {table * patch}, "dynamic_img_size": true' if table != side else "")
    fields = dict(backbone=BACKBONES[C, patch], backbone_arguments=arguments, decoder_mlp_dim=HIDDEN)
    fields |= dict.fromkeys(("image_size", "backbone_size"), side * patch)
    fields |= dict(slot_dim=D, slot_mlp_dim=4 * D, project_dim=D, project_hidden_dim=2 * C)
    if "initializer.slots" in shapes:
        return fields | {"num_slots": shapes["initializer.slots"][1]}
    layers = {name.split(".")[4] for name in shapes if name.startswith("decoder.module.allocator.blocks.")}
    return fields | dict(decoder_layers=len(layers), similarity_alone=shapes["decoder.module.output_transform.weight"][0] == L)
