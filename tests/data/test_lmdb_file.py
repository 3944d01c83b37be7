"""The tests of stores and published files under every major version of lmdb: they differ after a fork, at a second open and in liblmdb."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.6.2", "2.3.0", "3.0.0"])
def test_store_under(version, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), f"lmdb=={version}"]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("DIAS_LAB_CI", None)
    found = subprocess.check_output([sys.executable, "-c", "import lmdb; print(lmdb.__version__)"], env=environment, text=True)
    assert found.strip() == version
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    tests += ["tests/data/test_store.py", "tests/data/test_legacy.py"]
    result = subprocess.run(tests, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
