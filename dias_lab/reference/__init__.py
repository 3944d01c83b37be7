"""Published checkpoints -> our modules: strictly, by name, and without the network (the backbone is in the file).

    model = reference.load("archive-dias/dias_r-coco/42-0027.pth", preset="coco")
    model = reference.load("checkpoint.pt.tar", method="spot", preset="coco")  # smoothsa, spot, dinosaur likewise
    model = reference.load("42-0040.pth", method="smoothsa", preset="ytvis")  # for videos; movi_c, movi_d, movi_e likewise,
    # and so are those of method="randsfq", "slotcontrast", "videosaur"
    reference.save(model, "runs/dias-coco")  # from here on a run directory like any other

Which names belong to what is in names.py.
"""

import contextlib
import fnmatch
import itertools
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dias_lab import runs
from dias_lab.config import Config, nearest
from dias_lab.methods import Method, build, checkpoint
from dias_lab.modules.decoder import resize_position
from dias_lab.reference import originals
from dias_lab.reference.names import FIELDS, IGNORED, NAMES, OLDER, SIGNS, TABLES, TIME, WITHOUT

# Plain numbers of numpy, which stand beside the weights in SPOT's files; the older name is that of numpy 1
NUMBERS = [np.dtype, *(np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)]
NUMBERS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
SHOWN = 4  # names in an error, of each kind of problem


def load(path_or_state_dict, method: str = "dias", preset: str = "coco", **fields) -> Method:
    """The model whose published weights are in a file (.pth or .safetensors) or a state dict, in evaluation mode.

    Its config is `Config.preset(preset, form="released", method=method, **fields)`, with what the published model has
    otherwise (FIELDS in names.py). Authors' own code and re-implementations (of SPOT, VideoSAUR, SlotContrast) are told apart by
    their names; where the number of slots is not in the file, it is the preset's, or `num_slots`. Half
    precision becomes float32; position tables of another size are resized bilinearly, with a warning. The file is read
    as tensors only: nothing in it is executed.

    Raises ValueError for an unknown method, preset or field, for a file that cannot be read, and, in one message, for
    all tensors that are missing, unknown, misshapen, no dense floats, or not finite.
    """
    known = {name.partition(" ")[0].partition("_")[0] for name in FIELDS}  # authors' own are told apart by the names in the file
    if method not in known:
        raise ValueError(f"no published weights of a method {method!r} can be loaded{nearest(method, known)}")
    if "backbone_weights" in fields:
        raise ValueError("the backbone's weights are in the published file: backbone_weights cannot be given")
    own = {"method": method, "backbone_weights": "checkpoint"}
    asked = Config.preset(preset, **{**fields, "method": method})  # refused before anything is read
    layout, stage = f"{method} clips" if asked.clip_frames else method, {}
    if f"{method}_published clips" in NAMES:  # of these there is no other
        own["method"], layout = f"{method}_published", f"{method}_published clips"
    if layout not in NAMES:
        there = ", ".join(dict.fromkeys(name.split("_")[0].removesuffix(" clips") for name in NAMES if name.endswith(" clips")))
        raise ValueError(f"preset {preset!r} is for clips, and of {method} no such weights are known here; there are: {there}")
    state, source = state_of(path_or_state_dict)
    for wrapper in ("model", "state_dict")[: 1 + asked.clip_frames]:  # SPOT's files hold more; so do Lightning's, for clips
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if asked.clip_frames and kind_of(state) == f"{method}_original clips":
        own["method"], layout = f"{method}_original", f"{method}_original clips"
        stage = originals.sizes(state)
    if layout == "spot" and kind_of(state) == "spot original":
        layout = "spot original"
        if any(name.startswith("second_encoder.") for name in state):  # a second backbone
            stage = {"stage": 2}
    if layout == "randsfq clips" and isinstance(state, Mapping) and any("decode.readout." in str(name) for name in state):
        stage = TIME
    config = Config.preset(preset, **{"form": "released", **FIELDS[layout], **stage, **fields, **own})
    model = build(config)
    model.load_trained_state(translate(state, model.trained_state(), layout, source))
    model.source = str(source)
    return checkpoint.place(model).eval()


def save(model: Method, run_dir) -> Path:
    """Write a loaded model as a run directory, with its backbone if the file has it: load_model, evaluate and notebooks take it.
    A second stage that is to be trained (stages.py) is only a start, for `train --from`.

    Raises ValueError where the directory holds a run already, and for a model that was not loaded here.
    """
    run_dir = runs.resolve(run_dir)
    if not model.source:
        raise ValueError("only published models are saved here: this one was not loaded from a published file")
    with whole(run_dir) as folder:
        write_run(folder, model, model.config, model.source)
    return run_dir


@contextlib.contextmanager
def whole(run_dir: Path):
    """A folder beside `run_dir` that becomes it when all is written; one that was stopped is begun again.

    Raises ValueError where `run_dir` holds anything already."""
    if run_dir.exists() and any(run_dir.iterdir()):
        what = "a run" if (run_dir / "config.json").exists() else "other files"
        raise ValueError(f"{run_dir} holds {what} already: choose another run directory")
    partial = run_dir.with_name(f".partial-{run_dir.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, run_dir)


def write_run(folder: Path, model, config: Config, source: str, facts: dict | None = None):
    """A run that begins and ends with these weights; `facts` are the checkpoint's."""
    steps = getattr(model, "trained_steps", 0)
    checkpoint.save(folder, steps, model, state={}, progress={"reference": source} | (facts or {}))
    runs.write_json(folder / "metrics.json", {"steps": steps, "reference": source, "about": runs.about()})
    runs.write_json(folder / "config.json", config.to_dict())


def state_of(path_or_state_dict) -> tuple:
    """A state dict, or what a file holds in its place, and what to call it."""
    if isinstance(path_or_state_dict, Mapping):
        return path_or_state_dict, "the state dict"
    path = runs.resolve(path_or_state_dict)
    return read(path), path


def read(path: Path):
    """What a file holds, on the CPU: .safetensors, or what torch.save wrote, tensors only."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; unpack the release's archive and give one of its .pth files")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or hostile file makes torch, pickle or safetensors raise
        reason = str(error).partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to switch the safety off
            reason = "it is damaged, or holds other things than tensors; nothing in it was executed"
        raise ValueError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}: {reason}). Download it again, or take "
            "another file of the release: a .pth or .safetensors with a state dict."
        ) from None


def kind_of(state) -> str | None:
    """The key of SIGNS that a state dict's names speak for; None for what nobody knows."""
    if not isinstance(state, Mapping):
        return None
    axes = {str(name).removeprefix("m."): getattr(value, "ndim", 0) for name, value in state.items()}
    for kind, (signs, ndim, _) in SIGNS.items():
        if all(any(ndim in (None, axes[name]) for name in fnmatch.filter(axes, sign)) for sign in signs.split()):
            return kind
    return None


def published_names(name: str, table: dict) -> tuple[str, ...]:
    """The published name of our `name`; several where our tensor is theirs one below the other; ValueError if none."""
    for ours, theirs in table.items():
        if match := re.match(re.escape(ours).replace(r"\*", r"(\d+)") + r"(?=\.|$)", name):
            number = match[1] if match.groups() else ""
            parts = (theirs,) if isinstance(theirs, str) else theirs
            return tuple(part.replace("*", number) + name[match.end() :] for part in parts)
    asks = "a field of the config asks for another architecture"
    raise ValueError(f"the published model has nothing like {name}: {asks}")


def translate(state, own: dict[str, Tensor], layout: str, source) -> dict[str, Tensor]:
    """The published `state` as float32 under the names of `own`; a ValueError lists all that does not fit."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{source} is no state dict (names and tensors), but a {type(state).__name__}")
    prefix = "m." if any(name.startswith("m.") for name in state) else ""
    state = dict(state)
    for name in list(state):
        newer = next((name.replace(old, new) for old, new in OLDER.items() if name.startswith(prefix + old)), name)
        if newer not in state:
            state[newer] = state.pop(name)
    for pattern in WITHOUT.get(layout, ()):  # no weights: what they say is in the config, or in the code
        for name in fnmatch.filter(state, prefix + pattern):
            del state[name]
    ignored = [prefix + name for name in IGNORED if state.pop(prefix + name, None) is not None]
    if ignored:
        warnings.warn(f"{', '.join(ignored)} ignored: merging is set by the config's fields", stacklevel=3)
    names = {ours: [prefix + theirs for theirs in published_names(ours, NAMES[layout])] for ours in own}
    wanted = dict.fromkeys(theirs for parts in names.values() for theirs in parts)
    found, wrong = {ours: [] for ours in own}, []
    for ours, parts in names.items():
        shape = own[ours].shape if len(parts) == 1 else (len(own[ours]) // len(parts), *own[ours].shape[1:])
        for theirs in (theirs for theirs in parts if theirs in state):
            try:
                found[ours].append(fitted(state[theirs], shape, resize=ours in TABLES))
            except ValueError as error:
                wrong.append(f"{theirs} {error}")
    unknown = [name for name in state if name not in wanted]
    problems = {"missing": [name for name in wanted if name not in state], "unknown": unknown, "wrong": wrong}
    listed = [f"{len(items)} {problem}: {_some(items)}" for problem, items in problems.items() if items]
    if listed:
        kind = kind_of(state)
        listed += [] if kind in (None, layout) else [SIGNS[kind][2]]
        method, _, part = layout.replace("_published", "").replace("_original", "").partition(" ")
        parts = {"clips": f"{method} model for clips", "first stage": f"first stage of {method}", "head": layout}
        what = parts.get(part, f"{layout} model")
        raise ValueError(f"{source} does not hold a published {what} of this config: {'; '.join(listed)}")
    return {ours: values[0] if len(values) == 1 else torch.cat(values) for ours, values in found.items()}


def fitted(value: Tensor, shape: tuple, resize: bool = False) -> Tensor:
    """`value` as finite float32 of that shape. Raises ValueError for anything else, with the end of a sentence."""
    if not isinstance(value, Tensor):
        raise ValueError(f"is a {type(value).__name__}, no tensor")
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise ValueError(f"holds no dense floats, but {value.dtype} ({value.layout}, {value.device})")
    value = value.detach().to("cpu", torch.float32)
    if without_ones(value.shape) == without_ones(shape):  # some tables have more of them in front
        value = value.reshape(shape)
    if resize and value.ndim == len(shape) == 3 and value.shape[::2] == shape[::2] and 0 not in value.shape:
        with contextlib.suppress(ValueError):  # not a square: misshapen
            value = resize_position(value, shape[1])
    if value.shape != shape:
        raise ValueError(f"is {tuple(value.shape)}, not {tuple(shape)}")
    if not value.isfinite().all():
        raise ValueError("holds NaN or infinities")
    return value


def without_ones(shape) -> tuple[int, ...]:
    """A shape without the axes of 1 in front."""
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")
