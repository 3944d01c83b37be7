"""dias_lab: the notebook workbench for object-centric learning, around DIAS (arXiv:2507.23755).

Nothing is imported before it is used, so `import dias_lab` is instant and the viewing code never needs torch.
"""

import importlib
import os
import pkgutil
import sys

if sys.platform == "win32" or not hasattr(os, "register_at_fork"):  # no hooks of forks, file locks, limits of processes
    raise ImportError("dias_lab does not run on Windows itself: install and start it in WSL, the Windows Subsystem for Linux")

__version__ = "0.1.0"

_HOME = {
    "Config": "dias_lab.config",
    "AttentionTrace": "dias_lab.trace",
    "SlotAttention": "dias_lab.modules.aggregator",
    "RandomOrderDecoder": "dias_lab.modules.decoder",
    "merge_redundant": "dias_lab.modules.redundancy",
    "reinitialize": "dias_lab.modules.redundancy",
    "distillation_loss": "dias_lab.losses",
    "build": "dias_lab.methods",
    "shipped": "dias_lab.methods.checkpoint",
    "load_model": "dias_lab.methods.checkpoint",
    "fit": "dias_lab.training.loop",
}


def __getattr__(name: str):
    """What `_HOME` names, and every module and folder of the package."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"dias_lab.{name}")
    raise AttributeError(f"dias_lab has no {name!r}")


def __dir__():
    return sorted([*_HOME, *(module.name for module in pkgutil.iter_modules(__path__)), "__version__"])
