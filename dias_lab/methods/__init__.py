"""Methods: one paper, one file. `build(config)` makes the one that `config.method` names; docs/adding_a_method.md makes one."""

from dias_lab.methods.base import Given, Method, Output, build, segments_from

__all__ = ["Given", "Method", "Output", "build", "segments_from"]
