import pytest

from dias_lab.config import Config
from dias_lab.data.convert import scenes
from dias_lab.training.loop import fit

SMALL = dict(
    backbone="colour", backbone_size=128, colour_stride=16, conditioning="standardise", conditioning_images=4, slot_dim=12, slot_mlp_dim=16,
    num_slots=5, num_iterations=2, decoder_layers=1, decoder_heads=2, decoder_mlp_dim=24, steps=2, batch_size=4, evaluate_every=2,
    evaluate_images=2, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """A folder of stores with a few of the built-in scenes, whose classes are the kinds of their toys."""
    folder = tmp_path_factory.mktemp("toys")
    scenes.convert(folder, train=16, validation=4, test=5)
    return folder


@pytest.fixture(scope="session")
def parent(toys, tmp_path_factory):
    """A run of a small model, hardly trained."""
    run_dir = tmp_path_factory.mktemp("parent")
    fit(Config.preset("scenes", data=str(toys), aggregator_start="random", decoder_start="random", **SMALL), run_dir, progress=False)
    return run_dir


@pytest.fixture(scope="session")
def config(parent, toys):
    """Of a head on that model's slots."""
    fields = dict(data=str(toys), steps=30, batch_size=8, head_dim=32, evaluate_every=10, log_every=5, device="cpu")
    return Config.load(parent).for_task("recognition", parent=str(parent), **fields)


@pytest.fixture(scope="session")
def run(config, tmp_path_factory):
    """A head that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("head")
    fit(config, run_dir, progress=False)
    return run_dir
