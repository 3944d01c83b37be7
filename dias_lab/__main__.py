"""The shell: python -m dias_lab COMMAND. Typed by tyro from functions and from Config.

Exit status: 0 done, 1 failed, 2 refused before anything started.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import tyro

from dias_lab.config import Config
from dias_lab.shell_data import Flag, Refused, convert, verify
from dias_lab.shell_grid import grid

WORDS_IN_ONE = ("--image-mean", "--image-std")  # fields of text that people write as several words


def train(arguments: list[str]):
    """Train a model in a run directory, or resume it there."""

    @dataclasses.dataclass(frozen=True)
    class Options:
        run_dir: Path
        config: tyro.conf.OmitArgPrefixes[Config]
        preset: str = "scenes"
        form: str = "complete"

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="scenes")
    first.add_argument("--form", default="complete")
    first.add_argument("--method", default="dias")
    arguments = ["--teacher-run" + word[6:] if word.split("=")[0] == "--from" else word for word in arguments]
    chosen = first.parse_known_args(arguments)[0]
    preset = refused_if_wrong(Config.preset, chosen.preset, chosen.form, method=chosen.method)
    default = Options(tyro.MISSING, preset, chosen.preset, chosen.form)
    options = refused_if_wrong(
        tyro.cli, Options, default=default, prog="python -m dias_lab train", args=one_word(arguments)
    )

    from dias_lab import devices
    from dias_lab.train import check, fit

    run_dir, config = options.run_dir.resolve(), options.config  # paths as typed: from the working directory
    for flag, name in (("--data", "data"), ("--backbone-weights", "backbone_weights"), ("--teacher-run", "teacher_run")):
        path = Path(getattr(config, name))
        if any(word.split("=")[0] == flag for word in arguments) and path.exists():
            config = config.replace(**{name: str(path.resolve())})
    refused_if_wrong(check, config, run_dir)
    result = fit(config, run_dir)
    if devices.rank(config) > 0:  # the first process says it
        return
    print(f"wrote {options.run_dir}: {result['steps']} steps in {result['seconds']:.0f} s, best {result['best_step']}")
    print_scores(result["scores"])


def evaluate(arguments: list[str]):
    """Score the best checkpoint of a run, or a published one, on a store."""

    def command(
        data: Path, run_dir: tuple[Path, ...] = (), reference: tuple[Path, ...] = (), method: str | None = None,
        preset: str | None = None, split: str = "test", protocol: str = "dias", limit: int = 0, out: Path | None = None,
    ):  # fmt: skip
        """Score the best checkpoint of a run, or a published one, on a store; of several, mean and standard deviation.

        Args:
            data: a folder of stores, or one store
            run_dir: the run, or runs with different seeds
            reference: a published checkpoint, or several, instead of a run
            method: of the reference; dias if not given
            preset: of the reference: coco, voc or clevrtex
            split: which store of the folder
            protocol: dias, dias-v1, spot, oclf or videosaur
            limit: only the first images; 0 takes all
            out: where the scores of one run go; by default below the run, or beside the reference
        """
        from dias_lab.data import store
        from dias_lab.evaluate import evaluate, scores_file, scores_name

        if out and len(run_dir + reference) > 1:
            raise Refused("--out is for one run; the scores of several go below each")
        if run_dir and reference:
            raise Refused("say which model: --run-dir RUN or --reference FILE, and only one of them")
        subjects = [(place, None) for place in run_dir] + [(None, place) for place in reference]
        models = [model_to_load(*subject, method, preset) for subject in subjects or [(None, None)]]
        path = data if data.suffix == ".lmdb" else data / f"{split}.lmdb"
        if not path.exists():
            raise Refused(f"there is no store {path}; make it with python -m dias_lab convert")
        one, scores = store.open(path.resolve()), []
        for (run, checkpoint), model in zip(subjects, models, strict=True):
            if run:
                subject, target = run.resolve(), out or scores_file(run.resolve(), one, protocol, limit)
            else:
                subject = model()
                target = out or checkpoint.with_name(f"{checkpoint.name}.scores") / scores_name(one, protocol, limit)
                refused_if_wrong(target.resolve().parent.mkdir, parents=True, exist_ok=True)  # else they would be lost
            scores.append(evaluate(subject, one, protocol, limit=limit, out=target.resolve()).scores)
            print(f"wrote {target}")
        print_scores(*scores)

    tyro.cli(command, prog="python -m dias_lab evaluate", args=arguments)


def trace(arguments: list[str]):
    """Write the attention maps of photos to a trace that figures and explorer open."""

    def command(
        images: list[Path], out: Path, run_dir: Path | None = None, shipped: Flag = False, reference: Path | None = None,
        method: str | None = None, preset: str | None = None, seed: int = 0,
    ):  # fmt: skip
        """Write the attention maps of photos to a trace that figures and explorer open.

        Args:
            images: photos, or folders of them
            out: the trace, an .npz file
            run_dir: the run whose best checkpoint looks at them
            shipped: the small model that comes with the package does
            reference: a published checkpoint does
            method: of the reference; dias if not given
            preset: of the reference: coco, voc or clevrtex
            seed: of the slots
        """
        from dias_lab.data.dataset import read_photos

        model = model_to_load(run_dir, reference, method, preset, shipped)()
        pictures, names = read_photos(images, model.config.image_size)
        about = {"run": "shipped" if shipped else str(run_dir or reference)}
        model.trace(pictures, seed=seed, names=names, about=about).save(out)
        print(f"wrote {out}: {len(names)} images")

    tyro.cli(command, prog="python -m dias_lab trace", args=arguments)


def model_to_load(run_dir, reference, method, preset, shipped=None):
    """What to call for the model that the options name; Refused unless they name exactly one."""
    from dias_lab import reference as published
    from dias_lab.methods import checkpoint

    if sum((run_dir is not None, reference is not None, bool(shipped))) != 1:
        ways = "--run-dir RUN or --reference FILE" + (", or --shipped" if shipped is not None else "")
        raise Refused(f"say which model, and only one: {ways}")
    if reference is None and (method or preset):
        raise Refused("--method and --preset belong to --reference; a run has its own config")
    if reference is not None and preset is None:
        raise Refused("a published checkpoint does not say how many slots it had: give --preset coco, voc or clevrtex")
    if shipped:
        return checkpoint.shipped
    if run_dir is not None:
        return lambda: checkpoint.load_model(run_dir.resolve())
    return lambda: refused_if_wrong(published.load, reference.resolve(), method or "dias", preset)


def explore(arguments: list[str]):
    """Write a trace, or two of the same images side by side, as an HTML page to explore; it needs no network."""

    def command(traces: tyro.conf.Positional[list[Path]], out: Path):
        """Write an HTML page to explore, with everything inside.

        Args:
            traces: one or two files that `python -m dias_lab trace` wrote
            out: the page
        """
        from dias_lab import viz

        loaded = [read_trace(path) for path in traces]
        refused_if_wrong(viz.explore, loaded).to_html(out)
        print(f"wrote {out}: {len(loaded[0])} images, {out.stat().st_size / 1e6:.2f} MB; open it in a browser")

    tyro.cli(command, prog="python -m dias_lab explore", args=arguments)


def segments(arguments: list[str]):
    """Write the slots' segments of a trace as label PNGs and COCO RLE JSON."""

    def command(trace: tyro.conf.Positional[Path], out: Path, map: str | None = None):
        """Write label PNGs and segments.json; label n + 1 is slot n.

        Args:
            trace: what `python -m dias_lab trace` wrote
            out: a folder
            map: an iteration, counted from 1, or decoder; the last of all if not given
        """
        from dias_lab import segments

        loaded = read_trace(trace)
        which = refused_if_wrong(segments.stop_of, loaded, map)
        print(f"wrote {segments.export(loaded, out, which)} and {len(loaded)} label maps beside it")

    tyro.cli(command, prog="python -m dias_lab segments", args=arguments)


def run(arguments: list[str]) -> int:
    """Execute the ordered notebooks and build the HTML gallery (make run ARGS='...')."""
    from dias_lab import book

    options = refused_if_wrong(tyro.cli, book.Options, prog="python -m dias_lab run", args=one_word(arguments))
    return book.run(options)


COMMANDS = {
    "convert": convert, "verify": verify, "train": train, "evaluate": evaluate, "trace": trace, "explore": explore,
    "segments": segments, "run": run, "grid": grid,
}  # fmt: skip


def read_trace(path: Path):
    from dias_lab.trace import AttentionTrace

    return refused_if_wrong(AttentionTrace.load, path)


def refused_if_wrong(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error


def one_word(arguments: list[str]) -> list[str]:
    """`--image-mean 0.5 0.5 0.5` as one option with one value."""
    joined, option = [], ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument
        elif option in WORDS_IN_ONE and joined[-1] != option:
            joined[-1] += f" {argument}"
            continue
        joined.append(argument)
    return joined


def print_scores(*runs: dict):
    """The scores of a run, or mean and sample standard deviation of several, under their protocol."""
    import statistics

    titles = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO", "miou": "mIoU", "mbo_class": "mBO-class"}
    titles = {metric: title for metric, title in titles.items() if all(metric in one["decoder"] for one in runs)}
    first, spread = runs[0], f", mean ± standard deviation of n = {len(runs)} runs" if len(runs) > 1 else ""
    print(f"{first['images']} images of {first['store']}, protocol {first['protocol']}, scores x100{spread}")
    width = 14 if spread else 11
    print(" " * 8 + "".join(f"{title:>{width}}" for title in titles.values()))
    for name in ("first", "last", "decoder"):
        line = f"{name:>8}"
        for metric in titles:
            values = [100 * one[name][metric] for one in runs if one[name][metric] == one[name][metric]]
            shown = f"{statistics.fmean(values):.1f}" if values else "n/a"
            shown += f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            line += f"{shown:>{width}}"
        print(line)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m dias_lab COMMAND [--help]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:10s} {command.__doc__}")
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            from dias_lab.config import nearest

            raise Refused(f"there is no command {name!r}{nearest(name, COMMANDS)}")
        return COMMANDS[name](rest) or 0
    except Refused as refusal:
        print(f"dias_lab {name}: refused: {refusal}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"dias_lab {name}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dias_lab {name}: interrupted; nothing that was complete is lost", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
