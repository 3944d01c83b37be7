"""The shell's commands on models: train, evaluate and trace. They import torch last, so that a refusal is instant."""

import argparse
from pathlib import Path
from typing import Annotated

import tyro

import dias_lab
from dias_lab import runs
from dias_lab.config import TASKS, Config, task_class
from dias_lab.shell import Flag, Refused, options, refusing

Fields = options.joined(options.of_parts(places=True))
Typed = Annotated[Fields, tyro.conf.arg(name="")]
CLIPS = "for clips also videosaur, slotcontrast, randsfq, steve or tfdt"
METHODS = f"of the reference: dias (if not given), smoothsa, spot or dinosaur; {CLIPS}"
Method = Annotated[str | None, tyro.conf.arg(help=METHODS)]
PRESETS = "coco, voc or clevrtex; for clips ytvis, movi_c, movi_d or movi_e"
TRAINED_FOR = f"the data set that the reference was trained for: {PRESETS}"
Preset = Annotated[str | None, tyro.conf.arg(help=TRAINED_FOR)]


def train(run_dir: Path, fields: Typed, preset: str = "scenes", form: str = "complete"):
    """Train a model in a run directory, or resume it there.

    With --from RUN it starts from the weights of another run, whose numbers are then the defaults below unless --preset or
    --form is given, too. In SPOT's stage 2, without --teacher-run, that run is the teacher, and the preset has the defaults.
    With --task it learns something else from the slots of that run, which stays as it is.

    Args:
        run_dir: the folder that gets weights, log and scores; the same command goes on where one was interrupted
        preset: whose numbers are the defaults below: scenes and shapes (built-in images), clips (built-in clips), photos, coco,
            voc or clevrtex; for clips also ytvis, movi_c, movi_d or movi_e
        form: of DIAS: complete is the paper's method; released is what its authors' code does, which never merges slots
    """
    with refusing():
        values, folder = options.values(fields), run_dir.resolve()
        if values["stage"] == 2 and not values["teacher_run"]:
            values |= {"teacher_run": values["parent"], "parent": ""}
        config = Config(**values)
        from dias_lab.training import devices, loop

        loop.check(config, folder)
    result = loop.fit(config, folder)
    if devices.rank(config) == 0:  # of several processes, the first says it
        print(f"wrote {run_dir}: {result['steps']} steps in {result['seconds']:.0f} s, best {result['best_step']}")
        print(task_class(config.task).text(result["scores"]))


def train_defaults(words: list[str]) -> dict:
    """The fields as the preset, form and method among the words have them, or the run that they name as the parent."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in ("--preset", "--form", "--method", "--stage", "--teacher-run", "--parent --from", "--run-dir", "--task"):
        first.add_argument(*names.split(), nargs="?")
    chosen = first.parse_known_args(words)[0]
    taught = chosen.stage == "2" and not chosen.teacher_run  # by the run that is named
    on_slots = chosen.task in TASKS and chosen.task != "discovery"
    if on_slots and not chosen.parent or on_slots and (chosen.preset or chosen.form or chosen.method):
        way = "name its run with --from; preset, form and method are that run's"
        raise Refused(f"the task {chosen.task} looks at the slots of a trained model: {way}")
    with refusing():
        if on_slots:
            config = Config.load(runs.resolve(options.place([chosen.parent]))).for_task(chosen.task, chosen.parent)
        elif chosen.parent and not (taught or chosen.preset or chosen.form):
            parent, own = runs.resolve(options.place([chosen.parent])), Path(chosen.run_dir or "", "config.json")
            gone = not (parent / "config.json").exists() and own.exists()  # a run that is there goes on without it
            config = Config.load(own if gone else parent)
        else:
            config = Config.preset(chosen.preset or "scenes", chosen.form or "complete", method=chosen.method or "dias")
    return {"fields": options.filled(Fields, config)}


def evaluate(
    data: Path, run_dir: tuple[Path, ...] = (), reference: tuple[Path, ...] = (), method: Method = None,
    preset: Preset = None, split: str = "test", protocol: str = "dias", limit: int = 0, out: Path | None = None,
):  # fmt: skip
    """Score the best checkpoint of a run, or a published one, on a store.

    A checkpoint is a model's weights as they were saved; a store is a file of images and their true segments. Several
    models get their mean and standard deviation.

    Args:
        data: a folder of stores, or one store (.lmdb)
        run_dir: a folder that train wrote, or several, of runs with different seeds
        reference: instead of a run, a file of weights that a paper's authors published, or several
        split: which store of the folder: train, validation or test
        protocol: how unlabelled pixels and the background count in the scores: dias, dias-v1, spot, oclf or videosaur
        limit: only the first images, or clips; 0 takes all
        out: the file for the scores of one run; if not given, below the run, or beside the reference
    """
    if out and len(run_dir + reference) > 1:
        raise Refused("--out is for one run; the scores of several go below each")
    _refuse_unclear(run_dir, reference, method, preset)
    if limit < 0:
        raise Refused(f"--limit {limit}: the number of first images, or 0 for all")
    path = data if data.suffix == ".lmdb" else data / f"{split}.lmdb"
    if not path.exists():
        raise Refused(f"there is no store {path}; make it with python -m dias_lab convert")
    from dias_lab.analysis import evaluate as scoring

    one, scores = dias_lab.data.store.open(path.resolve()), []
    with refusing():
        tasks = {place: Config.load(place.resolve()).task for place in run_dir}
    for place in run_dir + reference:
        if tasks.get(place, "discovery") != "discovery":
            found, text = task_class(tasks[place]).report(place.resolve(), one, limit)
            target = out or scoring.scores_file(place.resolve(), one, tasks[place], limit)
            runs.write_json(target.resolve(), found | {"about": runs.about()})
            print(f"wrote {target}\n{text}")
            continue
        if run_dir:
            subject, target = place.resolve(), out or scoring.scores_file(place.resolve(), one, protocol, limit)
        else:
            subject = _published(place, method, preset)
            target = out or place.with_name(f"{place.name}.scores") / scoring.scores_name(one, protocol, limit)
            with refusing():  # else the scores would be lost
                target.resolve().parent.mkdir(parents=True, exist_ok=True)
        scores.append(scoring.evaluate(subject, one, protocol, limit=limit, out=target.resolve()).scores)
        print(f"wrote {target}")
    if scores:
        print(scoring.scores_text(*scores))


def trace(
    images: list[Path], out: Path, run_dir: Path | None = None, shipped: Flag = False, reference: Path | None = None,
    method: Method = None, preset: Preset = None, seed: int = 0, clips: Flag = False, frames: int | None = None,
):  # fmt: skip
    """Write the attention maps of photos, or of clips, to a trace that figures and explorer open.

    An attention map says how much each slot looks at each place of an image; a trace holds them for all iterations.

    Args:
        images: photos, or folders of them; clips, a folder of frames or a video file each, for a model of clips
        out: the trace, an .npz file
        run_dir: the folder of a run, whose best model looks at them
        shipped: the small model that comes with the package looks at them
        reference: a model that a paper's authors published, a file of weights, looks at them
        seed: of the random numbers that slots start with
        clips: the paths are clips for a model of images, too, which sees them frame by frame
        frames: only the first of each clip; all are cut to the shortest one
    """
    _refuse_unclear(run_dir, reference, method, preset, shipped)
    if missing := [str(path) for path in images if not path.exists()]:
        raise Refused(f"there is no file or folder {', '.join(missing)}")
    if frames is not None and frames < 1:
        raise Refused(f"--frames {frames}: a clip has at least one")
    if reference:
        model = _published(reference, method, preset)
    else:
        model = dias_lab.shipped() if shipped else dias_lab.load_model(run_dir.resolve())
    if model.config.clip_frames and model.config.condition == "boxes":
        way_out = "score it on a store that has them, or trace in Python: model.trace(images, boxes=...)"
        raise Refused(f"this model starts from the boxes of a clip's first frame, and pictures have none: {way_out}")
    side, in_time = dias_lab.methods.tracing.photo_side(images, model.config.image_size), model.config.clip_frames > 0
    about = {"run": "shipped" if shipped else str(run_dir or reference)}
    if frames is not None and not (clips or in_time):
        raise Refused("--frames is for clips: this is a model of images; with --clips it sees each path as one, frame by frame")
    if clips or in_time:
        pictures, names = _clips(images, side, frames)  # [B F 3 R R]
        about |= {"frames": pictures.shape[1], "axes": dias_lab.trace.CLIP_AXES}
        pictures = pictures if in_time else pictures.flatten(0, 1)
    else:
        pictures, names = dias_lab.data.dataset.read_photos(images, side)
    model.trace(pictures, seed=seed, names=names, about=about).save(out)
    print(f"wrote {out}: {len(names)} images" + (f", {len(images)} clips" if clips or in_time else ""))


def _clips(paths: list[Path], side: int, frames: int | None):
    """Clips, uint8 [B F 3 R R], cut to the shortest, which is said; and the names of all frames, clip after clip."""
    import torch

    from dias_lab.data.convert.frames import read_clip

    found, names = zip(*(read_clip(path, side, frames) for path in paths))
    shortest = min(map(len, found))
    if max(map(len, found)) > shortest:
        told = ", ".join(f"{path.name} {len(clip)}" for path, clip in zip(paths, found))
        print(f"cut to {shortest} frames, as the shortest of them: {told}")
    return torch.stack([clip[:shortest] for clip in found]), [name for of_clip in names for name in of_clip[:shortest]]


def _refuse_unclear(run_dir, reference, method, preset, shipped=None):
    """Refused unless the options name models of exactly one kind, and what is needed to load them."""
    if sum(map(bool, (run_dir, reference, shipped))) != 1:
        ways = "--run-dir RUN or --reference FILE" + (", or --shipped" if shipped is not None else "")
        raise Refused(f"say which model, and only one: {ways}")
    if not reference and (method or preset):
        raise Refused("--method and --preset belong to --reference; a run has its own config")
    if reference and preset is None:
        raise Refused(f"a published checkpoint does not say how many slots it had: give --preset {PRESETS}")


def _published(file: Path, method: str | None, preset: str):
    with refusing():
        return dias_lab.reference.load(file.resolve(), method or "dias", preset)
