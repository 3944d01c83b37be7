"""The shell's command train."""

import argparse
from pathlib import Path
from typing import Annotated

import tyro

from dias_lab.config import Config
from dias_lab.shell import lazy, options
from dias_lab.shell.common import refusing
from dias_lab.shell.models import print_scores

GROUPS = options.of_parts(places=True)
Fields = options.joined(GROUPS)


def train(
    run_dir: Path, fields: Annotated[Fields, tyro.conf.arg(name="")], preset: str = "scenes", form: str = "complete"
):
    """Train a model in a run directory, or resume it there.

    Args:
        run_dir: the folder that gets weights, log and scores; the same command goes on where one was interrupted
        preset: whose numbers are the defaults below: scenes (the built-in toy images), coco, voc or clevrtex
        form: of DIAS: complete is the paper's method; released is what its authors' code does, which never merges slots
    """
    with refusing():
        config, folder = Config(**options.values(fields)), run_dir.resolve()
        lazy.train.check(config, folder)
    result = lazy.train.fit(config, folder)
    if lazy.devices.rank(config) > 0:  # the first process says it
        return
    print(f"wrote {run_dir}: {result['steps']} steps in {result['seconds']:.0f} s, best {result['best_step']}")
    print_scores(result["scores"])


def train_defaults(words: list[str]) -> dict:
    """The fields as the preset, form and method among the words have them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in (("preset", "scenes"), ("form", "complete"), ("method", "dias")):
        first.add_argument(f"--{name}", default=default)
    chosen = first.parse_known_args(words)[0]
    with refusing():
        config = Config.preset(chosen.preset, chosen.form, method=chosen.method)
    return {"fields": Fields(**options.filled(GROUPS, config))}
