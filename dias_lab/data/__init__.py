"""Data: stores, converters, the built-in scenes, and batches."""

import importlib


def __getattr__(name: str):
    """The modules, on first use: the store needs no torch, and must not wait for it."""
    if name in ("clips", "convert", "dataset", "scenes", "store", "summary"):
        return importlib.import_module(f"dias_lab.data.{name}")
    raise AttributeError(f"dias_lab.data has no {name!r}")
