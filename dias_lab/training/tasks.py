"""The tasks that can be trained, a line each."""

from dias_lab.analysis.discovery import Discovery
from dias_lab.config import Config
from dias_lab.methods.task import Task


def task_class(config: Config) -> type[Task]:
    return Discovery
