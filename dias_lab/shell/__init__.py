"""The shell: python -m dias_lab COMMAND. Exit status: 0 done, 1 failed, 2 refused before anything started.

A command is a typed function in a file of this folder, of which tyro makes options and help; or a dict of functions,
where it has commands of its own. Its file is imported when it is called, and torch when nothing is left to refuse
without it: so help is instant.
"""

import contextlib
import functools
import importlib
import os
import sys
from typing import Annotated

import tyro

from dias_lab.config import nearest

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]

COMMANDS = {  # a file of this folder, what there is called, and what that does
    "convert": ("data:CONVERTERS", "Convert a data set to stores, and draw a contact sheet of them."),
    "verify": ("data:verify", "Check every record of a store, or of all stores in a folder."),
    "train": ("models:train", "Train a model in a run directory, or resume it there."),
    "evaluate": ("models:evaluate", "Score the best checkpoint of a run, or a published one, on a store."),
    "trace": ("models:trace", "Write the attention maps of photos, or of clips, to a trace that figures and explorer open."),
    "slots": ("slots:slots", "Write the slots of a whole store to files, which recognition, prediction and reasoning read."),
    "explore": ("pictures:explore", "Write a trace, or two of the same images, as an HTML page to explore offline."),
    "segments": ("pictures:segments", "Write the slots' segments of a trace as label PNGs and COCO RLE JSON."),
    "run": ("book:run", "Execute the ordered notebooks and build the HTML gallery (make run ARGS='...')."),
    "grid": ("grid:COMMANDS", "Start, watch, resume and tabulate many runs of one notebook."),
}


class Refused(Exception):
    """What the user asked for cannot be started; the message says why."""


@contextlib.contextmanager
def refusing(*errors: type[Exception]):
    """While this runs, such an error (ValueError and OSError, if none is named) means that nothing was started."""
    errors = errors or (ValueError, OSError)
    try:
        yield
    except errors as error:
        raise Refused(str(error)) from error


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m dias_lab COMMAND [--help]\n")
        for name, (_, line) in COMMANDS.items():
            print(f"  {name:10s} {line}")
        return 0 if arguments else 2
    name, *words = arguments
    try:
        return execute(name, words) or 0
    except BrokenPipeError:  # the reader has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Refused as refusal:
        status, what = 2, f"refused: {refusal}"
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        status, what = 1, f"failed: {error}"
    except KeyboardInterrupt:
        status, what = 1, "interrupted; nothing that was complete is lost"
    print(f"dias_lab {name}: {what}", file=sys.stderr)
    return status


def execute(name: str, words: list[str]) -> int | None:
    """Call the command with the options that the words are. Defaults may depend on them: train's on --preset."""
    if name not in COMMANDS:
        raise Refused(f"there is no command {name!r}{nearest(name, COMMANDS)}")
    (file, attribute), program = COMMANDS[name][0].split(":"), f"python -m dias_lab {name}"
    module = importlib.import_module(f"{__name__}.{file}")
    command = getattr(module, attribute)
    if isinstance(command, dict):
        plain = {"description": COMMANDS[name][1], "config": (tyro.conf.FlagCreatePairsOff,)}
        return tyro.extras.subcommand_cli_from_dict(command, prog=program, args=words, **plain)
    if defaults := getattr(module, f"{attribute}_defaults", None):
        command = functools.partial(command, **defaults(words))
    return tyro.cli(command, prog=program, args=words)
