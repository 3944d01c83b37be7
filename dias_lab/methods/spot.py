"""SPOT: permuted autoregressive decoding, and a second stage that learns from the first one's segments.

Sources: Kakogeorgiou et al. 2024, arXiv:2312.00648, and its code gkakogeorgiou/spot (`spot_parts="original"`); the
re-implementation with the parts of DIAS is that of Genera1Z/SmoothSA (`"unified"`). In stage 2 the frozen teacher is a
run of stage 1; its decoder's segments are matched to the student's slots, whose logits learn to tell them, and the
student fine-tunes the last blocks of its backbone. What it reconstructs stays the frozen backbone's features.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dias_lab import losses
from dias_lab.draws import Draws
from dias_lab.methods import Method
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.backbone import build_backbone
from dias_lab.modules.initializer import LearnedSlots, SeparateGaussian, SharedGaussian
from dias_lab.modules.permuted import PermutedDecoder
from dias_lab.modules.projector import build_projector, start, zero_biases

OF_TEACHER = ("num_slots", "slot_dim")  # besides the backbone's: what both must have alike


class SPOTOutput(NamedTuple):
    features: Float[Tensor, "B C h w"]  # the reconstruction's target; in stage 2 not what the slots look at
    slots: Float[Tensor, "B N D"]
    attention: Float[Tensor, "T B N h w"]
    keep: Bool[Tensor, "B N"]
    reconstruction: Float[Tensor, "B C h w"]
    decoder_attention: Float[Tensor, "B N h w"] | None
    attention_logits: Float[Tensor, "B N h w"] | None  # of the last iteration, in training of stage 2
    teacher_attention: Float[Tensor, "B N h w"] | None  # the teacher's decoder map, there too


class SPOT(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        original, dim = config.spot_parts == "original", backbone.feature_dim
        activation, floor = (nn.ReLU, 1e-8) if original else (nn.GELU, 0.0)
        if config.stage == 2 and config.fine_tuned_blocks:
            self.target_backbone = copy.deepcopy(backbone)  # stays frozen: targets must not move
            backbone.fine_tune(config.fine_tuned_blocks)
        self.project = build_projector(config, dim, activation)
        initializer = SharedGaussian if config.stage == 1 else LearnedSlots if original else SeparateGaussian
        self.initializer = initializer(config.num_slots, config.slot_dim)
        width, sizes = config.project_dim or dim, (config.slot_dim, config.slot_mlp_dim, config.num_iterations)
        self.aggregator = SlotAttention(width, *sizes, activation, floor)
        self.decoder = PermutedDecoder(
            dim, config.slot_dim, backbone.grid, config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim,
            evaluation=config.evaluation_permutations, biases=original, activation=activation, final_norm=original,
        )  # fmt: skip
        if original:
            start_as_original(self)
        start(self.project, self.aggregator, config)
        zero_biases(self.decoder)
        if config.decoder_start == "lookup":
            self.decoder.start_as_lookup()
        self.teacher = ()  # in a tuple, so that it is no part of this model: neither trained nor saved with it

    def forward(
        self,
        images: Float[Tensor, "B 3 R R"] | None,
        initial_slots: Float[Tensor, "B N D"] | None = None,
        decoder_attention: bool | None = None,
        keep: Bool[Tensor, "B N"] | None = None,
        draws: Draws | None = None,
        features: Float[Tensor, "B C h w"] | None = None,
    ) -> SPOTOutput:
        """One pass over prepared images; the arguments are those of DIAS.

        Raises ValueError for `features` where the backbone is fine-tuned: those of a cache would be out of date.
        """
        if self.backbone.trained and features is not None:
            raise ValueError(
                "features cannot be given: stage 2 fine-tunes the backbone that makes them (fine_tuned_blocks)"
            )
        seen = self.encode(images, features)  # [B C h w]
        features = self.target_backbone(images) if self.backbone.trained else seen
        draws, grid = self.ready(draws, features), features.shape[2:]
        if initial_slots is None:
            initial_slots = self.initializer(seen, len(seen), noise=draws.slots)
        teacher, logits, taught = self.teacher if self.training else (), None, None
        truncate = self.config.stage == 2 and self.config.truncation == "bi_level"
        projected = self.project(seen.flatten(2).transpose(1, 2))  # [B L width]
        asked = dict(truncate=truncate, need_logits=bool(teacher))
        slots, attention, *last = self.aggregator(projected, initial_slots, keep, **asked)
        keep = torch.ones_like(slots[..., 0], dtype=torch.bool) if keep is None else keep
        reconstruction, decoded = self.reconstruct(features, slots, keep, draws, decoder_attention)
        if teacher:
            logits, taught = last[0].unflatten(2, grid), teacher[0].teach(features, draws)
        attention = attention.unflatten(3, grid)
        return SPOTOutput(features, slots, attention, keep, reconstruction, decoded, logits, taught)

    def losses(self, output: SPOTOutput, progress: float) -> tuple[dict, dict]:
        """Unweighted losses, and their weights. Raises ValueError in stage 2 where no teacher was there."""
        terms = {"reconstruction": losses.reconstruction_loss(output.reconstruction, output.features)}
        if self.config.stage == 1:
            return terms, {"reconstruction": 1.0}
        if output.teacher_attention is None:
            raise ValueError("stage 2 learns from a teacher in training mode: give it one by model.learn_from(teacher)")
        pair = output.attention_logits.flatten(2), output.teacher_attention.flatten(2)
        terms["teacher"] = losses.matched_segments_loss(*pair)
        return terms, {"reconstruction": 1.0, "teacher": self.config.teacher_weight}

    @torch.no_grad()
    def learn_from(self, teacher: Method):
        """Take a model of stage 1 as the frozen teacher, which shares this model's frozen backbone.

        With `student_start="teacher"` its weights are copied, those of the initializer excepted. Raises ValueError for
        a teacher that cannot teach this model (`check_teacher`), or has another backbone's weights.
        """
        check_teacher(self.config, teacher.config)
        frozen = self.target_backbone if self.backbone.trained else self.backbone
        own, other = frozen.state_dict(), teacher.backbone.state_dict()
        if own.keys() != other.keys() or not all(torch.equal(own[name].cpu(), other[name].cpu()) for name in own):
            raise ValueError("the teacher's backbone has other weights than the student's: what both see would differ")
        if self.config.student_start == "teacher":
            for part in ("project", "aggregator", "decoder"):
                getattr(self, part).load_state_dict(getattr(teacher, part).state_dict())
        teacher.backbone = frozen
        self.teacher = (teacher.to(self.device).eval(),)

    @torch.no_grad()
    def teach(self, features: Float[Tensor, "B C h w"], draws: Draws) -> Float[Tensor, "B N h w"]:
        """This model's decoder map in evaluation mode, from a random order."""
        tokens = features.flatten(2).transpose(1, 2)  # [B L C]
        initial_slots = self.initializer(features, len(features), noise=draws.restart)
        slots, _ = self.aggregator(self.project(tokens), initial_slots)
        _, attention = self.decoder(tokens, slots, permutation=draws.teaching, need_attention=True)
        return attention.unflatten(2, features.shape[2:])


def check_teacher(student, teacher):
    """Whether the config `student` can learn from a run of the config `teacher`: ValueError says why not."""
    if teacher.method != "spot" or teacher.stage != 1:
        kind = teacher.method if teacher.method != "spot" else f"{teacher.method} stage {teacher.stage}"
        raise ValueError(f"stage 2 learns from a run of SPOT's stage 1, and the teacher is {kind}")
    names = [name for name in teacher.to_dict() if name.startswith(("backbone", "fourier", "image_"))]
    free = ("backbone_weights", "image_size")  # the weights themselves are compared; the square's size is resized away
    for name in (*OF_TEACHER, *(name for name in names if name not in free)):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(f"the teacher cannot teach this student: its {name} is {theirs!r}, the student's {ours!r}")
    if student.student_start == "teacher":
        shape = ("spot_parts", "slot_mlp_dim", "project_dim", "project_hidden_dim", "decoder_layers", "decoder_mlp_dim")
        if changed := [name for name in shape if getattr(student, name) != getattr(teacher, name)]:
            raise ValueError(f'student_start="teacher" needs the teacher\'s sizes; {", ".join(changed)} differ')


@torch.no_grad()
def start_as_original(model: SPOT):
    """Initial values of the authors' code: uniform by Xavier, by Kaiming before a ReLU, smaller ones into the residual."""
    gain = (3 * len(model.decoder.layers)) ** -0.5
    nn.init.normal_(model.decoder.start, std=0.02)
    aggregator, decoder = model.aggregator, model.decoder
    linear = [model.project[3], aggregator.to_query, aggregator.to_key, aggregator.to_value, aggregator.mlp[2]]
    for part in (*linear, decoder.project_features[0], decoder.project_slots[0]):
        nn.init.xavier_uniform_(part.weight)
    for part in (model.project[1], aggregator.mlp[0], *(layer.mlp[0] for layer in decoder.layers)):
        nn.init.kaiming_uniform_(part.weight, nonlinearity="relu")
    nn.init.xavier_uniform_(aggregator.gru.weight_ih)
    nn.init.orthogonal_(aggregator.gru.weight_hh)
    for layer in decoder.layers:
        nn.init.xavier_uniform_(layer.mlp[2].weight, gain=gain)
        for attention in (layer.self_attention, layer.cross_attention):
            for matrix in attention.in_proj_weight.chunk(3):
                nn.init.xavier_uniform_(matrix)
            nn.init.xavier_uniform_(attention.out_proj.weight, gain=gain)
