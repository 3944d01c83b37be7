"""AttentionTrace: the arrays that pictures of attention are made of, and their file.

Needs numpy only, so that a trace opens on a laptop where torch is not installed. The file is a plain `.npz`, one array
per field, read without pickle; `names` and `about` are JSON text in uint8 arrays.

Axes: B images, or frames of clips, F of each; T iterations, N slots, h w locations of the feature map, H W pixels, K
training steps.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from dias_lab.files import as_array, read_arrays, replacing, text_array, text_of

# labels of true segments, here and nowhere else: 1 to LAST_SEGMENT are objects, the last two belong to no segment
BACKGROUND, LAST_SEGMENT, OVERLAP, VOID = 0, 253, 254, 255
SCHEMA = 3  # 1: without the maps of training steps; 2: without leader
AXES = "T B N h w"
CLIP_AXES = "T (B F) N h w"  # of B clips: their frames, flattened into the image axis; about["frames"] is F
ARRAYS = {  # the fields, and which of their axes is that of the images
    "images": 0, "attention": 1, "decoder_attention": 0, "keep": 0, "segments": 0, "leader": 1,
    "training_steps": None, "training_attention": 2, "training_decoder_attention": 1, "training_keep": 1,
}  # fmt: skip
TRAINING = tuple(name for name in ARRAYS if name.startswith("training_"))
OPTIONAL = ("decoder_attention", "segments", "leader", *TRAINING)
MAX_SLOTS = 255  # segments are uint8
TOLERANCE = 1e-2  # of a sum of float16 numbers


@dataclass(frozen=True, eq=False)
class AttentionTrace:
    """What each slot attends to, at every iteration, on some images.

    images             uint8 [B H W 3]
    attention          float16 [T B N h w]: in [0, 1], sums to 1 over N; other float types are converted
    decoder_attention  float16 [B N h w] or None: the decoder's map, of the same kind
    keep               bool [B N]: False where a slot was merged away
    leader             uint8 [T B N] or None: which slot each belongs to at each iteration, itself while it is alone; other
                       integers are converted. Of a training it is that of the last step
    segments           uint8 [B H W] or None: the true ones; 0 background, 1 to 253 objects, 254 overlap, 255 void
    names              B strings; numbers if not given
    about              what JSON can hold: method, run, seed, ...; `frames`: F, where images are the frames of clips of F
                       frames each. Filled in: `schema`, and `axes`, those of `attention`: "T B N h w", or "T (B F) N h w"

    A trace of a training has the maps of K of its steps, and those of the last one stand above as well; `at(step)` is
    the plain trace of one step, `over_training` makes one of several:

    training_steps              int64 [K], rising
    training_attention          float16 [K T B N h w]
    training_decoder_attention  float16 [K B N h w], or None where there is no decoder's map
    training_keep               bool [K B N]

    Tensors will do as well, on any device. Raises ValueError for arrays that are not so, naming the expected axes.
    """

    images: np.ndarray
    attention: np.ndarray
    decoder_attention: np.ndarray | None
    keep: np.ndarray
    segments: np.ndarray | None = None
    names: list[str] = field(default_factory=list)
    about: dict = field(default_factory=dict)
    leader: np.ndarray | None = None
    training_steps: np.ndarray | None = None
    training_attention: np.ndarray | None = None
    training_decoder_attention: np.ndarray | None = None
    training_keep: np.ndarray | None = None

    def __post_init__(self):
        for name, array in self._arrays().items():
            object.__setattr__(self, name, as_array(array))
        images, height, width = self._check("images", self.images, "B H W 3", (None, None, None, 3), np.uint8)[:3]
        maps = self._check("attention", self.attention, AXES, (None, images, None, None, None))
        self._check("keep", self.keep, "B N", (images, maps[2]), np.bool_)
        if maps[2] > MAX_SLOTS:
            raise ValueError(f"a trace holds at most {MAX_SLOTS} slots, got {maps[2]}")
        if self.decoder_attention is not None:
            self._check("decoder_attention", self.decoder_attention, "B N h w", (images, maps[2], None, None))
        if self.segments is not None:
            self._check("segments", self.segments, "B H W", (images, height, width), np.uint8)
        names = [str(name) for name in self.names] or [str(number) for number in range(images)]
        if len(names) != images:
            raise ValueError(f"{len(names)} names for {images} images: give one each, or none")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "about", _checked_about(self.about, images))
        for name in ("attention", "decoder_attention"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._half(name, self.keep))
        if self.leader is not None:
            object.__setattr__(self, "leader", self._checked_leader())
        self._check_training()

    def _checked_leader(self) -> np.ndarray:
        """uint8 [T B N]. ValueError unless leaders are slots that lead themselves, and those of the end are what is kept."""
        leader, own = self.leader, np.arange(self.num_slots)
        kind = leader.dtype if leader.dtype.kind in "iu" else np.uint8
        self._check("leader", leader, "T B N", (self.num_iterations, *self.keep.shape), kind)
        known = np.isin(leader, own)
        right = known & (np.take_along_axis(leader, np.where(known, leader, 0).astype(np.intp), -1) == leader)
        right[-1] &= (leader[-1] == own) == self.keep
        if not right.all():
            place = tuple(np.argwhere(~right)[0].tolist())
            what = f"a slot, 0 to {own[-1]}, that leads itself, and in the last iteration one that is kept"
            raise ValueError(f"leader must be {what}; got {leader[place]} at (iteration, image, slot) = {place}")
        return leader.astype(np.uint8)

    def _check_training(self):
        """ValueError unless the maps of training steps are all there, of the same kind, and end with this trace's own."""
        given = [name for name in TRAINING if getattr(self, name) is not None]
        if not given:
            return
        wanted = ["training_steps", "training_attention", "training_keep"]
        wanted += ["training_decoder_attention"] * (self.decoder_attention is not None)
        if {*given} != {*wanted}:
            raise ValueError(f"the maps of training steps are {', '.join(wanted)}, all of them; got {', '.join(given)}")
        steps = self.training_steps
        if steps.ndim != 1 or steps.dtype.kind not in "iu" or not len(steps) or (np.diff(steps) <= 0).any() or steps[0] < 0:
            raise ValueError(f"training_steps must be whole numbers [K] from 0 that rise, got {steps.tolist()} ({steps.dtype})")
        object.__setattr__(self, "training_steps", steps.astype(np.int64))
        axes = {"training_attention": f"K {AXES}", "training_decoder_attention": "K B N h w"}
        self._check("training_keep", self.training_keep, "K B N", (len(steps), *self.keep.shape), np.bool_)
        for name in axes.keys() & {*given}:
            own = getattr(self, name.removeprefix("training_"))
            self._check(name, getattr(self, name), axes[name], (len(steps), *own.shape))
            object.__setattr__(self, name, self._half(name, self.training_keep))
        for name in ("attention", "decoder_attention", "keep"):
            own, over = getattr(self, name), getattr(self, f"training_{name}")
            if own is not None and not np.array_equal(own, over[-1]):
                raise ValueError(f"{name} must be that of the last training step, training_{name}[-1], and is not")

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}

    def _check(self, name: str, array: np.ndarray, axes: str, shape: tuple, dtype=None) -> tuple[int, ...]:
        """The array's shape. ValueError if it is not `shape` (None: any positive length), or the type is another."""
        fits = (size > 0 if wanted is None else size == wanted for size, wanted in zip(array.shape, shape))
        if array.ndim != len(shape) or not all(fits):
            lengths = " ".join("?" if wanted is None else str(wanted) for wanted in shape)
            raise ValueError(f"{name} must be [{axes}], here [{lengths}], got {list(array.shape)}")
        if array.dtype.kind != "f" if dtype is None else array.dtype != dtype:
            raise ValueError(f"{name} must be {np.dtype(dtype) if dtype else 'floats'} [{axes}], got {array.dtype}")
        return array.shape

    def _half(self, name: str, keep: np.ndarray) -> np.ndarray:
        """The maps as float16, once they are known to be a distribution over the slots that there are."""
        maps = getattr(self, name)
        low, high = float(maps.min()), float(maps.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN fails, too
            raise ValueError(f"{name} must lie in [0, 1] and be finite, got values from {low:g} to {high:g}")
        total = maps.sum(axis=-3, dtype=np.float32)  # [T B h w] or [B h w], with training steps before them
        any_slot = keep.any(axis=-1)[..., None, None]  # [B 1 1]
        any_slot = any_slot[:, None] if name == "training_attention" else any_slot
        wrong = (np.abs(total - 1) > TOLERANCE) & any_slot
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            axes = "iteration, image, row, column" if "decoder" not in name else "image, row, column"
            axes = f"number of the step, {axes}" if keep.ndim == 3 else axes
            raise ValueError(
                f"{name} must sum to 1 over slots, got {total[place]:g} at ({axes}) = {place}: "
                "give the softmax over slots, not the weights renormalised over locations"
            )
        return maps.clip(0, 1).astype(np.float16)

    num_images = property(lambda self: self.images.shape[0])
    num_iterations = property(lambda self: self.attention.shape[0])
    num_slots = property(lambda self: self.attention.shape[2])
    frames = property(lambda self: self.about.get("frames"))  # F, or None: the images are no frames of clips
    num_clips = property(lambda self: self.num_images // self.frames if self.frames else 0)

    def __len__(self) -> int:
        return self.num_images

    @property
    def stops(self) -> list:
        """Every map there is, in order: 0..T-1, then "decoder" if there is one. Each goes into the methods below."""
        return list(range(self.num_iterations)) + ["decoder"] * (self.decoder_attention is not None)

    def maps_of(self, which) -> np.ndarray:
        """Attention maps float16 [B N h w] of an iteration (an index from 0, or "last"), or of the "decoder"."""
        which = self.num_iterations - 1 if which == "last" else which
        if which not in self.stops:
            raise ValueError(f"the trace has no map {which!r}; it has {', '.join(map(repr, self.stops))}")
        return self.decoder_attention if which == "decoder" else self.attention[which]

    def segments_of(self, which) -> np.ndarray:
        """Segments uint8 [B H W]: the slot whose upsampled map is the largest (a slot left out has a map of zeros)."""
        height, width = self.images.shape[1:3]
        return np.stack([upsample(maps, height, width).argmax(axis=0) for maps in self.maps_of(which)]).astype(np.uint8)

    def entropy_of(self, which) -> np.ndarray:
        """How undecided each location is, float32 [B h w]: entropy over slots / log N; 0 one slot, 1 all alike."""
        maps = self.maps_of(which).astype(np.float32)
        entropy = -(maps * np.log(np.maximum(maps, 1e-12))).sum(axis=1)
        return (entropy / math.log(max(self.num_slots, 2))).clip(0, 1)

    def __getitem__(self, images) -> "AttentionTrace":
        """The trace of some images: a slice, a list of indices, or one index (one image). Parts of clips are images."""
        chosen, about, frames = np.atleast_1d(np.arange(self.num_images)[images]), self.about, self.frames or 1
        firsts = chosen[::frames] // frames * frames  # if they are whole clips
        if not np.array_equal(chosen, (firsts[:, None] + np.arange(frames)).ravel()):
            about = {name: value for name, value in about.items() if name not in ("frames", "axes")}
        arrays = {name: array.take(chosen, ARRAYS[name]) for name, array in self._arrays().items() if ARRAYS[name] is not None}
        return replace(self, names=[self.names[image] for image in chosen], about=about, **arrays)

    def clip(self, number: int) -> "AttentionTrace":
        """The trace of one clip, counted from 0. ValueError for others."""
        if number not in range(self.num_clips):
            there = f"it has {self.num_clips}, of {self.frames} frames" if self.frames else "it has none: no about['frames']"
            raise ValueError(f"the trace has no clip {number!r}; {there}")
        return self[number * self.frames : (number + 1) * self.frames]

    def at(self, step: int) -> "AttentionTrace":
        """The plain trace of one training step. ValueError, with the steps there are, for any other."""
        steps = [] if self.training_steps is None else self.training_steps.tolist()
        if step not in steps:
            there = f"it has those of {', '.join(map(str, steps))}" if steps else "it is of one model, not of a training"
            raise ValueError(f"the trace has no maps of training step {step!r}; {there}")
        arrays = {"leader": self.leader if step == steps[-1] else None}
        for name in ("attention", "decoder_attention", "keep"):
            over = getattr(self, f"training_{name}")
            arrays[name] = None if over is None else over[steps.index(step)]
        return replace(self, **arrays, **dict.fromkeys(TRAINING), about={**self.about, "step": step})

    @classmethod
    def over_training(cls, traces: dict[int, "AttentionTrace"]) -> "AttentionTrace":
        """One trace of plain ones of the same pictures, by training step: the opposite of `at`.

        Raises ValueError for pictures or maps of other sizes, naming the step.
        """
        steps = sorted(traces)
        if not steps:
            raise ValueError("a trace of a training needs the maps of at least one step")
        last = traces[steps[-1]]
        for step in steps:
            for name in ("images", "attention", "decoder_attention"):
                one, other = (np.shape(getattr(trace, name)) for trace in (traces[step], last))
                if one != other:
                    raise ValueError(f"{name} of step {step} are {list(one)}, and those of step {steps[-1]} {list(other)}")
            if not np.array_equal(traces[step].images, last.images):
                raise ValueError(f"the pictures of step {step} are not those of step {steps[-1]}")
        names = ["attention", "keep"] + ["decoder_attention"] * (last.decoder_attention is not None)
        over = {f"training_{name}": np.stack([getattr(traces[step], name) for step in steps]) for name in names}
        about = {name: value for name, value in last.about.items() if name != "step"}
        return replace(last, about=about, training_steps=np.array(steps), **over)

    def save(self, path) -> None:
        """Write `path`, whole or not at all. Folders that are missing are made."""
        arrays = self._arrays() | {"names": text_array("names", self.names), "about": text_array("about", self.about)}
        with replacing(path) as file:  # a file, since numpy appends .npz to a name
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path) -> "AttentionTrace":
        """The trace in a file that `save` wrote. Raises ValueError, naming the file, for anything else."""
        try:
            arrays = dict.fromkeys(OPTIONAL) | read_arrays(path, (*ARRAYS, "names", "about"))
            about = arrays.pop("about", None)
            about = _checked_about({} if about is None else text_of("about", about))  # first: a newer file may hold anything else
            if missing := {*ARRAYS, "names"} - arrays.keys():
                raise ValueError(f"it has no array {', '.join(sorted(missing))}")
            arrays["names"] = text_of("names", arrays["names"])
            if not isinstance(arrays["names"], list):
                raise ValueError(f"names must be a list, got {type(arrays['names']).__name__}")
            return cls(**arrays, about=about)
        except Exception as error:  # whatever a damaged or hostile file makes numpy, zipfile or json raise
            if isinstance(error, OSError) and error.filename:  # the system's own; zipfile's names no file
                raise
            raise ValueError(f"{path} is not a trace that can be read: {error}") from error


def upsample(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps [... h w] resized to float32 [... height width], bilinear.

    Pixel centres are aligned and the border is repeated: torch's interpolate(mode="bilinear", align_corners=False).
    """
    rows, columns = _interpolation(maps.shape[-2], height), _interpolation(maps.shape[-1], width)
    return rows @ maps.astype(np.float32) @ columns.T


def _interpolation(size: int, new_size: int) -> np.ndarray:  # float32 [new_size size]
    position = ((np.arange(new_size) + 0.5) * (size / new_size) - 0.5).clip(0, size - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(size)), 0).astype(np.float32)


def _checked_about(about, images: int | None = None) -> dict:
    if not isinstance(about, dict):
        raise ValueError(f"about must be a dict, got {type(about).__name__}")
    about = {"schema": SCHEMA, "axes": CLIP_AXES if "frames" in about else AXES, **about}
    if type(about["schema"]) is not int or not 1 <= about["schema"] <= SCHEMA:
        known = f"this version of dias_lab reads up to {SCHEMA}"
        raise ValueError(f"its schema is {about['schema']!r}, {known}: update dias_lab")
    frames = about.get("frames", None if about["axes"] == CLIP_AXES else 1)
    if type(frames) is not int or frames < 1 or (images or 0) % frames:
        of = "" if images is None else f" of the {images} images, and divides their number"
        raise ValueError(f"about['frames'] must be the whole number of frames of each clip{of}, got {frames!r}")
    if about["axes"] not in (AXES, CLIP_AXES):
        raise ValueError(f"about['axes'] must be {AXES!r} or {CLIP_AXES!r}, got {about['axes']!r}")
    return about | {"schema": SCHEMA, "axes": CLIP_AXES if "frames" in about else AXES}  # as it would be saved
