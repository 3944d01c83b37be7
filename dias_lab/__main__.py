"""The shell: python -m dias_lab COMMAND. Typed by tyro from functions and from Config.

Exit status: 0 done, 1 failed, 2 refused before anything started.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import tyro

from dias_lab.config import Config
from dias_lab.shell_data import Flag, Refused, convert, verify

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
    chosen = first.parse_known_args(arguments)[0]
    preset = refused_if_wrong(Config.preset, chosen.preset, chosen.form)
    default = Options(tyro.MISSING, preset, chosen.preset, chosen.form)
    options = refused_if_wrong(
        tyro.cli, Options, default=default, prog="python -m dias_lab train", args=one_word(arguments)
    )

    from dias_lab.train import check, fit

    run_dir, config = options.run_dir.resolve(), options.config  # paths as typed: from the working directory
    for flag, name in (("--data", "data"), ("--backbone-weights", "backbone_weights")):
        path = Path(getattr(config, name))
        if any(word.split("=")[0] == flag for word in arguments) and path.exists():
            config = config.replace(**{name: str(path.resolve())})
    refused_if_wrong(check, config, run_dir)
    result = fit(config, run_dir)
    print(f"wrote {options.run_dir}: {result['steps']} steps in {result['seconds']:.0f} s, best {result['best_step']}")
    print_scores(result["scores"])


def evaluate(arguments: list[str]):
    """Score the best checkpoint of a run on a store."""

    def command(run_dir: Path, data: Path, split: str = "test", protocol: str = "dias", limit: int = 0):
        from dias_lab.data import store
        from dias_lab.evaluate import evaluate, scores_file

        path = data if data.suffix == ".lmdb" else data / f"{split}.lmdb"
        if not path.exists():
            raise Refused(f"there is no store {path}; make it with python -m dias_lab convert")
        run_dir, one = run_dir.resolve(), store.open(path.resolve())
        print_scores(evaluate(run_dir, one, protocol, limit=limit).scores)
        print(f"wrote {scores_file(run_dir, one, protocol, limit)}")

    tyro.cli(command, prog="python -m dias_lab evaluate", args=arguments)


def trace(arguments: list[str]):
    """Write the attention maps of photos to a trace that figures and explorer open."""

    def command(images: list[Path], out: Path, run_dir: Path | None = None, shipped: Flag = False, seed: int = 0):
        from dias_lab import checkpoint
        from dias_lab.data.dataset import read_photos

        if (run_dir is None) != shipped:
            raise Refused("say which model: either --run-dir RUN or --shipped")
        model = checkpoint.shipped() if shipped else checkpoint.load_model(run_dir.resolve())
        pictures, names = read_photos(images, model.config.image_size)
        about = {"run": "shipped" if shipped else str(run_dir)}
        model.trace(pictures, seed=seed, names=names, about=about).save(out)
        print(f"wrote {out}: {len(names)} images")

    tyro.cli(command, prog="python -m dias_lab trace", args=arguments)


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
    "segments": segments, "run": run,
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


def print_scores(scores: dict):
    header = ("map", "ARI", "FG-ARI", "mBO", "mIoU")
    print(f"{scores['images']} images of {scores['store']}, protocol {scores['protocol']}, scores x100")
    print("{:>9} {:>6} {:>6} {:>6} {:>6}".format(*header))
    for name in ("first", "last", "decoder"):
        values = [scores[name][metric] for metric in ("ari", "fg_ari", "mbo", "miou")]
        shown = ["   n/a" if value is None or value != value else f"{100 * value:6.1f}" for value in values]
        print(f"{name:>9} {' '.join(shown)}")


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
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        print(f"dias_lab {name}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dias_lab {name}: interrupted; nothing that was complete is lost", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
