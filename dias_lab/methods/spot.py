"""SPOT: permuted autoregressive decoding, and a second stage that learns from the first one's segments.

Sources: Kakogeorgiou et al. 2024, arXiv:2312.00648, and its code gkakogeorgiou/spot (`spot_parts="original"`); the
re-implementation with the parts of DIAS is that of Genera1Z/SmoothSA (`"unified"`). In stage 2 the frozen teacher is a
run of stage 1; its decoder's segments are matched to the student's slots, whose logits learn to tell them, and the
student fine-tunes the last blocks of its backbone. What it reconstructs stays the frozen backbone's features.

Axes: T iterations, B images, N slots, L = h * w locations, C feature channels, D slot width.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dias_lab import losses, runs
from dias_lab.config import Backbone, Config
from dias_lab.data.draws import Request, integer, normal
from dias_lab.methods import checkpoint
from dias_lab.methods.base import Given, Method, Output, build, everyone, locations
from dias_lab.modules.aggregator import SlotAttention
from dias_lab.modules.conditioning import build_backbone
from dias_lab.modules.initializer import SeparateGaussian, SharedGaussian
from dias_lab.modules.permuted import PermutedDecoder
from dias_lab.modules.projector import build_projector, start, zero_biases

ALIKE = ("num_slots", "slot_dim")  # besides the backbone's fields: what teacher and student must have alike
COPIED = ("spot_parts", "slot_mlp_dim", "project_dim", "project_hidden_dim", "decoder_layers", "decoder_dim", "decoder_mlp_dim")


@dataclass
class SPOTOutput(Output):
    """In stage 2 `features`, the reconstruction's target, are not what the slots look at."""

    attention_logits: Float[Tensor, "B N h w"] | None  # of the last iteration, in training of stage 2
    teacher_attention: Float[Tensor, "B N h w"] | None  # the teacher's decoder map, there too


class LearnedSlots(nn.Module):
    """The same learned slots for every image, in training, too: nothing is drawn."""

    def __init__(self, num_slots: int, slot_dim: int):
        super().__init__()
        self.slots = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_slots, slot_dim)))

    def requests(self) -> list[Request]:
        return []

    def forward(self, batch_size: int, noise: Tensor | None = None) -> Float[Tensor, "B N D"]:
        return self.slots.expand(batch_size, -1, -1)


class SPOT(Method):
    def __init__(self, config):
        backbone = build_backbone(config)
        super().__init__(config, backbone)
        original, dim = config.spot_parts == "original", backbone.feature_dim
        activation, floor = (nn.ReLU, 1e-8) if original else (nn.GELU, 0.0)
        if config.stage == 2 and config.fine_tuned_blocks:
            self.target_backbone = copy.deepcopy(backbone)  # stays frozen: targets must not move
            backbone.fine_tune(config.fine_tuned_blocks)
        self.project = build_projector(config, dim, activation, backbone.grid)
        initializer = SharedGaussian if config.stage == 1 else LearnedSlots if original else SeparateGaussian
        self.initializer = initializer(config.num_slots, config.slot_dim)
        width, sizes = config.project_dim or dim, (config.slot_dim, config.slot_mlp_dim, config.num_iterations)
        self.aggregator = SlotAttention(width, *sizes, activation, floor, config.evaluation_iterations)
        self.decoder = PermutedDecoder(
            dim, config.slot_dim, backbone.grid, config.decoder_layers, config.decoder_heads, config.decoder_mlp_dim,
            evaluation=config.evaluation_permutations, biases=original, activation=activation, final_norm=original,
            dim=config.decoder_dim,
        )  # fmt: skip
        if original:
            start_as_original(self)
        start(self.project, self.aggregator, config)
        zero_biases(self.decoder)
        if config.decoder_start == "lookup":
            self.decoder.start_as_lookup()

    def requests(self, num_locations: int | None = None) -> list[Request]:
        own = [normal("restart", self.config.num_slots, self.config.slot_dim), integer("teaching", below=9)]
        return super().requests(num_locations) + (own if self.config.stage == 2 else [])

    def encode(self, images, features=None) -> Float[Tensor, "B C h w"]:
        """Raises ValueError for `features` where the backbone is fine-tuned: those of a cache would be out of date."""
        if self.backbone.trained and features is not None:
            raise ValueError(
                "features cannot be given: stage 2 fine-tunes the backbone that makes them (fine_tuned_blocks)"
            )
        return super().encode(images, features)

    def run(self, features: Float[Tensor, "B C h w"], given: Given) -> SPOTOutput:
        target = self.target_backbone(given.images) if self.backbone.trained else features
        teacher, logits, taught = self.teacher if self.training else (), None, None
        truncate = self.config.stage == 2 and self.config.truncation == "bi_level"
        projected = self.project(locations(features))  # [B L width]
        asked = dict(truncate=truncate, need_logits=bool(teacher))
        slots, attention, *last = self.aggregator(projected, given.slots, given.keep, **asked)
        keep = everyone(slots) if given.keep is None else given.keep
        reconstruction, decoded = self.reconstruct(target, slots, keep, given.draws, given.decoder_attention)
        grid = features.shape[2:]
        if teacher:
            logits, taught = last[0].unflatten(2, grid), teacher[0].teach(target, given.draws)
        return SPOTOutput(target, slots, attention.unflatten(3, grid), keep, reconstruction, decoded, logits, taught)

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

    @classmethod
    def check(cls, config: Config):
        """Whether there is a teacher to learn from, and nothing that its student would make out of date."""
        if config.stage == 1:
            return
        if not config.teacher_run:
            raise ValueError("stage 2 learns from a run of stage 1: give it as teacher_run, in the shell --from RUN")
        run_dir = runs.resolve(config.teacher_run)
        check_teacher(config, Config.load(run_dir))
        if not checkpoint.steps(run_dir):
            raise ValueError(f"the teacher {run_dir} has no checkpoint yet: train it first")
        if config.cache_views and config.fine_tuned_blocks:
            raise ValueError(
                "cache_views keeps the features of a frozen backbone, and stage 2 fine-tunes the last blocks of its own: they "
                "would be out of date after a step. Take cache_views=0, or fine_tuned_blocks=0"
            )

    def begin(self, untaught: bool = False) -> dict:
        if self.config.stage == 1:
            return {}
        student = self.config.replace(stage=1, teacher_run="")
        teacher = build(student) if untaught else checkpoint.load_model(self.config.teacher_run, device="cpu")
        self.learn_from(teacher)
        known = {} if untaught else {"teacher": runs.weights_hash(self.config.teacher_run, teacher.trained_steps)}
        return {"teacher_step": teacher.trained_steps} | known

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
        self.teacher = (teacher.to(self.device).eval(),)  # neither trained nor saved with this one

    @torch.no_grad()
    def teach(self, features: Float[Tensor, "B C h w"], draws: dict[str, Tensor]) -> Float[Tensor, "B N h w"]:
        """This model's decoder map in evaluation mode, from a random order."""
        initial_slots = self.initializer(len(features), noise=draws["restart"])
        slots, _ = self.aggregator(self.project(locations(features)), initial_slots)
        _, attention = self.decoder(locations(features), slots, permutation=draws["teaching"], need_attention=True)
        return attention.unflatten(2, features.shape[2:])


def check_teacher(student, teacher):
    """Whether the config `student` can learn from a run of the config `teacher`: ValueError says why not."""
    if teacher.method != "spot" or teacher.stage != 1:
        kind = teacher.method if teacher.method != "spot" else f"{teacher.method} stage {teacher.stage}"
        raise ValueError(f"stage 2 learns from a run of SPOT's stage 1, and the teacher is {kind}")
    for name in (*ALIKE, *teacher.of(Backbone)):
        if name == "backbone_weights":
            continue  # the weights themselves are compared
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(f"the teacher cannot teach this student: its {name} is {theirs!r}, the student's {ours!r}")
    if student.student_start == "teacher":
        if changed := [name for name in COPIED if getattr(student, name) != getattr(teacher, name)]:
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
