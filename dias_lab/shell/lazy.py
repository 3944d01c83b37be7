"""Modules that take seconds to import, each imported when it is first used, as in lazy.train.fit(config, run_dir).

Help, and most refusals, need none of them.
"""

import importlib

MODULES = {
    "checkpoint": "dias_lab.checkpoint",
    "dataset": "dias_lab.data.dataset",
    "devices": "dias_lab.devices",
    "evaluate": "dias_lab.evaluate",
    "grid_table": "dias_lab.grid_table",
    "reference": "dias_lab.reference",
    "store": "dias_lab.data.store",
    "train": "dias_lab.train",
}


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name])
