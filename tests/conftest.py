import os
from pathlib import Path

import pytest

from dias_lab.config import Config

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores
REAL_DATA = os.environ.get("DIAS_LAB_REAL_DATA")


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA:
        pytest.skip("no real data")
    return Path(REAL_DATA).resolve()


@pytest.fixture(scope="session")
def small_scenes(tmp_path_factory) -> Path:
    """A folder of stores with a few scenes of the difficulty shapes."""
    from dias_lab.data.convert import scenes

    folder = tmp_path_factory.mktemp("scenes")
    scenes.convert(folder, train=10, validation=4, test=3, difficulty="shapes")
    return folder


@pytest.fixture(scope="session")
def few_clips(tmp_path_factory) -> Path:
    """A folder of stores with a few of the built-in clips, of four frames."""
    from dias_lab.data.convert import scenes

    folder = tmp_path_factory.mktemp("few-clips")
    scenes.convert_clips(folder, train=3, validation=2, test=2, frames=4)
    return folder


@pytest.fixture
def small_config(small_scenes) -> Config:
    """DIAS in its complete form, small enough for a step in milliseconds."""
    return Config.preset(
        "shapes", data=str(small_scenes), backbone_size=128, fourier_dim=16, fourier_stride=16, slot_dim=12, slot_mlp_dim=16, num_slots=5,
        decoder_layers=2, decoder_heads=2, steps=20, batch_size=4, log_every=3, evaluate_every=5, evaluate_images=3, device="cpu",
        aggregator_start="random", decoder_start="random", num_iterations=3, crop_scale=0.75,
    )  # fmt: skip


def pytest_runtest_makereport(item, call):
    """In CI nothing may be skipped for want of a browser or of real data."""
    if os.environ.get("DIAS_LAB_CI") and call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception):
        reason = str(call.excinfo.value)
        if "real data" in reason or "chromium" in reason.lower():
            call.excinfo = pytest.ExceptionInfo.from_exception(AssertionError(f"in CI this must run: {reason}"))


def pytest_collection_modifyitems(items):
    """The longest tests, those that have a worker to themselves, begin first."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
