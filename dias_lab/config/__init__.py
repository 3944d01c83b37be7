"""Config: one frozen dataclass of flat primitives, put together from the parts in this folder. Needs no torch.

A notebook's `parameters` cell, `config.json` in a run directory and the command line all hold the same flat fields.
METHODS is the table of methods: a line each. A package of its own adds one by entry points: in the group
"dias_lab.methods" its class, and in "dias_lab.fields", under the same name, a Part with the fields that it reads.
"""

import dataclasses
import importlib
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, NamedTuple

from dias_lab.config import video_neighbours as videos
from dias_lab.config.backbone import Backbone
from dias_lab.config.clips import Clips
from dias_lab.config.data import Data
from dias_lab.config.dias import DIAS
from dias_lab.config.fields import Part, Seed, nearest
from dias_lab.config.neighbours import DINOSAUR, SLATE, SPOT, VQDINO, Codes, SmoothSA
from dias_lab.config.presets import FORMS, PRESETS
from dias_lab.config.slots import Decoder, Slots
from dias_lab.config.tasks import Heads, Prediction, Reasoning
from dias_lab.config.training import Training
from dias_lab.files import read_object

# fields that came after runs of older versions: what is their default now is what those did
LATER = {
    "parent", "colour_stride", "colour_texture", "conditioning", "conditioning_dim", "conditioning_images", "position_weight",
    "evaluation_iterations", "projector", "projector_position", "projector_width", "slot_frames", "evaluation_visible",
    "decoder_locations", "decoder_dim", "trace_images", "logger", "task",
    *(field.name for part in (Clips, Heads, Prediction, Reasoning) for field in dataclasses.fields(part)),
}  # fmt: skip


class Entry(NamedTuple):
    place: str  # module:class; empty where there is none for images
    part: type[Part] = Part  # its own fields, and what it changes in the presets
    clips: str = ""  # module:class of its version for clips, where there is one


METHODS = {
    "dias": Entry("dias_lab.methods.dias:DIAS", DIAS, "dias_lab.methods.dias_clips:ClipDIAS"),
    "smoothsa": Entry("dias_lab.methods.smoothsa:SmoothSA", SmoothSA, "dias_lab.methods.smoothsa_clips:ClipSmoothSA"),
    "spot": Entry("dias_lab.methods.spot:SPOT", SPOT),
    "dinosaur": Entry("dias_lab.methods.dinosaur:DINOSAUR", DINOSAUR),
    "vqdino": Entry("dias_lab.methods.vqdino:VQDINO", VQDINO),
    "slate": Entry("dias_lab.methods.slate:SLATE", SLATE),
    "steve": Entry("", videos.STEVE, "dias_lab.methods.steve:STEVE"),
    "tfdt": Entry("", videos.TfdT, "dias_lab.methods.tfdt:TfdT"),
    "videosaur": Entry("", videos.VideoSAUR, "dias_lab.methods.videosaur:VideoSAUR"),
    "slotcontrast": Entry("", videos.SlotContrast, "dias_lab.methods.slotcontrast:SlotContrast"),
    "randsfq": Entry("", videos.RandSFQ, "dias_lab.methods.randsfq:RandSFQ"),
    # what published weights need
    "videosaur_original": Entry("", videos.VideoSAUROriginal, "dias_lab.reference.originals:VideoSAUROriginal"),
    "slotcontrast_original": Entry("", videos.SlotContrastOriginal, "dias_lab.reference.originals:SlotContrastOriginal"),
    "steve_published": Entry("", videos.STEVE, "dias_lab.reference.codes:PublishedSTEVE"),
    "tfdt_published": Entry("", videos.TfdT, "dias_lab.reference.codes:PublishedTfdT"),
}
TASKS = {  # module:class, and whose schedule
    "discovery": ("dias_lab.analysis.discovery:Discovery", Part),
    "recognition": ("dias_lab.heads.recognition:Recognition", Heads),
    "prediction": ("dias_lab.prediction.task:Prediction", Prediction),
    "reasoning": ("dias_lab.prediction.reasoning:Reasoning", Reasoning),
}
_parts = {point.name: point for point in entry_points(group="dias_lab.fields")}
for _point in entry_points(group="dias_lab.methods"):
    try:
        _part = _parts[_point.name].load() if _point.name in _parts else Part
    except Exception as error:  # somebody else's code: what is here must go on working
        warnings.warn(f"the method {_point.name!r} is left out, its fields cannot be loaded: {error!r}", stacklevel=2)
        continue
    METHODS.setdefault(_point.name, Entry(_point.value, _part))  # no package takes a built-in method's place


@dataclass(frozen=True)
class Run(Part):
    """What is trained: which paper's method, from which random numbers or from which run's weights."""

    task: Literal[tuple(TASKS)] = "discovery"  # of slots; the others learn from the slots of a parent, which stays as it is
    method: Literal[tuple(METHODS)] = "dias"  # each is a file in dias_lab/methods
    seed: Seed = 42  # every random number of a run follows from it
    parent: str = ""  # the directory of a run whose best weights this one starts from, or looks through; empty: random weights


OWN = [entry.part for entry in METHODS.values()]  # the methods' own
PARTS = tuple(
    part
    for part in dict.fromkeys([Run, Data, Clips, Backbone, Slots, Decoder, Codes, *OWN, Heads, Prediction, Reasoning, Training])
    if dataclasses.is_dataclass(part)
)


@dataclass(frozen=True)
class Config(*reversed(PARTS)):  # a dataclass takes the fields of its last base first
    """Everything that defines a run. Make one with `Config.preset(name, **fields)`; change one with `config.replace(...)`."""

    def __post_init__(self):
        super().__post_init__()
        if not (self.clip_frames or METHODS[self.method].place):
            there = ", ".join(name for name, fields in PRESETS.items() if fields.get("clip_frames"))
            raise ValueError(f"{self.method} is a method for clips: take a preset for clips ({there}), or clip_frames above 0")
        for part in dict.fromkeys([*PARTS, *OWN]):
            part.check(self)

    @classmethod
    def preset(cls, name: str, form: str = "complete", **fields) -> "Config":
        """The preset of this name (presets.PRESETS; scenes is the default) in the given form, with `fields` changed.

        The form "complete" is the paper's method, "released" that of the public release (no merging, identity
        matching, the release's double softmax). A method among the fields brings what its part changes; a field given
        by hand wins over all.

        Raises ValueError for an unknown preset, form or field (naming the nearest one), and for ill-typed values.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}{nearest(form, FORMS)}")
        cls._check_names(fields)
        own = METHODS.get(str(fields.get("method")), Entry("")).part
        asked = own.on_presets.get(name, {})
        return cls(**{**PRESETS[name], **FORMS[form], **own.changes, **asked, **fields})

    def for_task(self, task: str, parent: str, **fields) -> "Config":
        """The config of a run that learns a task from the slots of `parent`, whose config this is; with the task's schedule."""
        changes = TASKS[task][1].changes if task in TASKS else {}
        return self.replace(**{**changes, "task": task, "parent": parent, **fields})

    @classmethod
    def from_parameters(cls, namespace: dict) -> "Config":
        """The Config that a notebook's parameters describe: pass `globals()`.

        Reads `preset` (default scenes), `form` (default complete) and every name that is a field of Config; a value of
        None means "as the preset has it". Other names are left alone.
        """
        fields = {name: namespace[name] for name in cls.field_names() if namespace.get(name) is not None}
        return cls.preset(namespace.get("preset") or "scenes", namespace.get("form") or "complete", **fields)

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def _check_names(cls, fields):
        for field in fields:
            if field not in cls.field_names():
                raise ValueError(f"Config has no field {field!r}{nearest(field, cls.field_names())}")

    @classmethod
    def load(cls, path) -> "Config":
        """The Config of a run directory, or of a `config.json`. ValueError, naming the file, for anything else.

        All fields must be there that the method reads; only those of LATER may be missing, and mean what runs did before.
        """
        path = Path(path)
        path = path if path.suffix == ".json" and not path.is_dir() else path / "config.json"
        try:
            fields = read_object(path)
        except FileNotFoundError:
            raise ValueError(f"no config.json at {path.parent}: is it a run directory?") from None
        unknown = sorted(set(fields) - set(cls.field_names()))
        if unknown:
            raise ValueError(f"{path} has fields that this version of dias_lab does not know: {', '.join(unknown)}")
        read = {field.name for part in cls._parts_of(fields.get("method")) for field in dataclasses.fields(part)}
        if missing := [name for name in cls.field_names() if name in read - fields.keys() - LATER]:
            raise ValueError(f"{path} lacks the fields {', '.join(missing)}. Whoever wrote the file knows their values")
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @staticmethod
    def _parts_of(method) -> list[type[Part]]:
        """What a method reads, of the parts that come with this package."""
        return [part for part in PARTS if method in (part.readers or (method,)) and part.__module__.startswith(__name__)]

    def replace(self, **fields) -> "Config":
        """This config with other fields; another `method` brings what its part changes (not what single presets ask of it).

        What the method before had changed stays: for a method's own settings on a preset, start from the preset.
        """
        self._check_names(fields)
        other = fields.get("method", self.method)
        changes = METHODS[other].part.changes if other != self.method and other in METHODS else {}
        return dataclasses.replace(self, **{**changes, **fields})

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def of(self, part: type[Part]) -> dict:
        """The fields of one part, for example config.of(Backbone)."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(part)}

    def unread(self) -> set[str]:
        """The fields that only other methods and tasks read."""
        others = [part for part in PARTS if part.readers and self.method not in part.readers]
        others += [part for part in PARTS if part.tasks and self.task not in part.tasks]
        return {field.name for part in others for field in dataclasses.fields(part)}


def method_class(name: str, clips: bool | None = None) -> type:
    """The class of a method for images, or its version for clips, imported on first use. ValueError where there is none.

    `clips` None: for images, where there is one.
    """
    entry = METHODS.get(name, Entry(""))
    place = entry.clips if clips or clips is None and not entry.place else entry.place
    if not place:
        known = sorted(one for one, entry in METHODS.items() if (entry.clips if clips else entry.place or clips is None))
        said = f"; there are: {', '.join(known)}" if name in METHODS else nearest(name, known)
        raise ValueError(f"there is no method {name!r}{' for clips' if clips else ''}{said}")
    return _at(place)


def task_class(name: str) -> type:
    """The class of a task, imported on first use."""
    return _at(TASKS[name][0])


def _at(place: str) -> type:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
