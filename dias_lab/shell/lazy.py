"""Modules that take seconds to import, each imported when it is first used, as in lazy.train.fit(config, run_dir).

Help, and most refusals, need none of them.
"""

import importlib

MODULES = {
    "checkpoint": "dias_lab.methods.checkpoint",
    "dataset": "dias_lab.data.dataset",
    "devices": "dias_lab.training.devices",
    "evaluate": "dias_lab.analysis.evaluate",
    "grid_table": "dias_lab.book.grid_table",
    "reference": "dias_lab.reference",
    "store": "dias_lab.data.store",
    "train": "dias_lab.training.loop",
}


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])
