import os
from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def touch():
    """touch(path, seconds): an empty JSON file that was written then."""

    def touch(path: Path, seconds: float) -> None:
        path.write_text("{}")
        os.utime(path, (seconds, seconds))

    return touch
