"""Published checkpoints -> our modules: strictly, by name, and without the network (the backbone is in the file).

    model = reference.load("archive-dias/dias_r-coco/42-0027.pth", preset="coco")
    reference.save(model, "runs/dias-coco")  # from here on a run directory like any other

Sources: the state dicts of Genera1Z/DIAS (v1 to v4 have the same names: 242 tensors, the prefix `m.` before each); the
older name `pe` of the position table is that of Genera1Z/VQ-VFM-OCL. A method joins by a table in NAMES.
"""

import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dias_lab import checkpoint, runs
from dias_lab.config import Config, nearest
from dias_lab.methods import Method, build
from dias_lab.modules.decoder import resize_position

# How our names begin, and how the published ones do; * is a layer's number. What follows is the same in both.
NAMES = {
    "dias": {
        "backbone.model": "encode_backbone.1",
        "project": "encode_project",
        "initializer.mean": "initializ.mean",
        "initializer.log_std": "initializ.logstd",
        "aggregator.norm_slots": "aggregat.norm1q",
        "aggregator.to_query": "aggregat.proj_q",
        "aggregator.norm_features": "aggregat.norm1kv",
        "aggregator.to_key": "aggregat.proj_k",
        "aggregator.to_value": "aggregat.proj_v",
        "aggregator.gru": "aggregat.rnn",
        "aggregator.norm_mlp": "aggregat.norm2",
        "aggregator.mlp": "aggregat.ffn",
        "decoder.mask_token": "decode.mask_token",
        "decoder.position": "decode.posit_embed._pe",
        "decoder.project_features": "decode.project1",
        "decoder.project_slots": "decode.project2",
        "decoder.norm_input": "decode.norm0",
        "decoder.layers.*.norm_self": "decode.backbone.layers.*.norm1",
        "decoder.layers.*.self_attention": "decode.backbone.layers.*.self_attn",
        "decoder.layers.*.norm_cross": "decode.backbone.layers.*.norm2",
        "decoder.layers.*.cross_attention": "decode.backbone.layers.*.multihead_attn",
        "decoder.layers.*.norm_mlp": "decode.backbone.layers.*.norm3",
        "decoder.layers.*.mlp.0": "decode.backbone.layers.*.linear1",
        "decoder.layers.*.mlp.2": "decode.backbone.layers.*.linear2",
    },
}
OLDER = {"decode.posit_embed.pe": "decode.posit_embed._pe"}
IGNORED = ("clust_prob", "thresh")  # an early experiment's schedules of merging; here they are Config fields
TABLES = ("backbone.model.pos_embed", "decoder.position")  # [1 L C], resized where the map's size differs
SIGNS = {  # a name that only somebody else's weights have
    "initializ.logstd2": "these are the weights of SmoothSA",
    "aggregator.to_query.weight": "this file is from a run of dias_lab: give its run directory to load_model, or as --run-dir",
}
SHOWN = 4  # names in an error, of each kind of problem


def load(path_or_state_dict, method: str = "dias", preset: str = "coco", **fields) -> Method:
    """The model whose published weights are in a file (.pth or .safetensors) or a state dict, in evaluation mode.

    Its config is `Config.preset(preset, form="released", **fields)`. Half precision becomes float32; position tables of
    another size are resized bilinearly, with a warning. The file is read as tensors only: nothing in it is executed.

    Raises ValueError for an unknown method, preset or field, for a file that cannot be read, and, in one message, for
    all tensors that are missing, unknown, misshapen, no dense floats, or not finite.
    """
    if method not in NAMES:
        raise ValueError(f"no published weights of a method {method!r} can be loaded{nearest(method, NAMES)}")
    if "backbone_weights" in fields:
        raise ValueError("the backbone's weights are in the published file: backbone_weights cannot be given")
    own = {"method": method, "backbone_weights": "checkpoint"}
    defaults = {"form": "released", "backbone_arguments": '{"final_norm": false}'}  # published without the final norm
    config = Config.preset(preset, **{**defaults, **fields, **own})
    given = isinstance(path_or_state_dict, Mapping)
    path = None if given else runs.resolve(path_or_state_dict)
    state = path_or_state_dict if given else read(path)
    model = build(config)
    model.load_trained_state(translate(state, model.trained_state(), method, path or "the state dict"))
    model.source = "state dict" if given else str(path)
    return checkpoint.place(model).eval()


def save(model: Method, run_dir) -> Path:
    """Write a loaded model as a run directory, backbone included: load_model, evaluate and the notebooks take it.

    Raises ValueError where the directory holds a run already, and for a model that `load` did not make.
    """
    run_dir = runs.resolve(run_dir)
    if model.config.backbone_weights != "checkpoint":
        raise ValueError('only published models are saved here: this one\'s backbone_weights are not "checkpoint"')
    if (run_dir / "config.json").exists():
        raise ValueError(f"{run_dir} holds a run already: choose another run directory")
    checkpoint.save(run_dir, model.step, model, state={}, progress={"reference": model.source})
    runs.write_json(run_dir / "metrics.json", {"steps": model.step, "reference": model.source, "about": runs.about()})
    runs.write_json(run_dir / "config.json", model.config.to_dict())  # last: without it, this is no run
    return run_dir


def read(path: Path):
    """What a file holds, on the CPU: .safetensors, or what torch.save wrote, tensors only."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; unpack the release's archive and give one of its .pth files")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or hostile file makes torch, pickle or safetensors raise
        reason = str(error).partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to switch the safety off
            reason = "it is damaged, or holds other things than tensors; nothing in it was executed"
        raise ValueError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}: {reason}). Download it again, or take "
            "another file of the release: a .pth or .safetensors with a state dict."
        ) from None


def published_name(name: str, table: dict[str, str]) -> str:
    """The published name of our `name`, without prefix. Raises ValueError where there is none."""
    for ours, theirs in table.items():
        if match := re.match(re.escape(ours).replace(r"\*", r"(\d+)") + r"(?=\.|$)", name):
            number = match[1] if match.groups() else ""
            return theirs.replace("*", number) + name[match.end() :]
    raise ValueError(
        f"the published model has nothing like {name}: a field of the config asks for another architecture"
    )


def translate(state, own: dict[str, Tensor], method: str, source) -> dict[str, Tensor]:
    """The published `state` as float32 under the names of `own`; a ValueError lists all that does not fit."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{source} is no state dict (names and tensors), but a {type(state).__name__}")
    prefix = "m." if any(name.startswith("m.") for name in state) else ""
    state = dict(state)
    for older, newer in OLDER.items():
        if prefix + older in state and prefix + newer not in state:
            state[prefix + newer] = state.pop(prefix + older)
    ignored = [prefix + name for name in IGNORED if state.pop(prefix + name, None) is not None]
    if ignored:
        warnings.warn(f"{', '.join(ignored)} ignored: merging is set by the config's fields", stacklevel=3)
    names = {prefix + published_name(name, NAMES[method]): name for name in own}
    found, wrong = {}, []
    for theirs, ours in names.items():
        if theirs in state:
            try:
                found[ours] = fitted(state[theirs], own[ours].shape, resize=ours in TABLES)
            except ValueError as error:
                wrong.append(f"{theirs} {error}")
    unknown = [name for name in state if name not in names]
    problems = {"missing": [name for name in names if name not in state], "unknown": unknown, "wrong": wrong}
    if any(problems.values()):
        hints = [hint for sign, hint in SIGNS.items() if prefix + sign in state]
        listed = [f"{len(items)} {kind}: {_some(items)}" for kind, items in problems.items() if items]
        raise ValueError(
            f"{source} does not hold a published {method} model of this config: {'; '.join(listed + hints)}"
        )
    return found


def fitted(value: Tensor, shape: torch.Size, resize: bool = False) -> Tensor:
    """`value` as finite float32 of that shape. Raises ValueError for anything else, with the end of a sentence."""
    if not isinstance(value, Tensor):
        raise ValueError(f"is a {type(value).__name__}, no tensor")
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise ValueError(f"holds no dense floats, but {value.dtype} ({value.layout}, {value.device})")
    value = value.detach().to("cpu", torch.float32)
    if resize and value.ndim == len(shape) == 3 and value.shape[::2] == shape[::2] and 0 not in value.shape:
        with contextlib.suppress(ValueError):  # not a square: misshapen
            value = resize_position(value, shape[1])
    if value.shape != shape:
        raise ValueError(f"is {tuple(value.shape)}, not {tuple(shape)}")
    if not value.isfinite().all():
        raise ValueError("holds NaN or infinities")
    return value


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")
