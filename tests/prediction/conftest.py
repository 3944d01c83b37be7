import pytest

from dias_lab.config import Config
from dias_lab.data.convert import physics

PARENT = "dias_lab/shipped/clips"


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """A folder of stores with a few clips of the world with physics, of ten frames; slots and features come beside them."""
    folder = tmp_path_factory.mktemp("physics")
    physics.convert(folder, train=3, validation=2, test=1, frames=10)
    return folder


@pytest.fixture(scope="session")
def small(worlds) -> Config:
    """A small SlotFormer on the slots of the model that comes with the package: 3 frames seen, 4 predicted."""
    from dias_lab import runs

    return Config.load(runs.resolve(PARENT)).for_task(
        "prediction", PARENT, data=str(worlds), burn_in=3, rollout=4, prediction_dim=16, prediction_layers=1, prediction_heads=2,
        prediction_mlp_dim=32, steps=4, batch_size=2, log_every=2, evaluate_every=2, evaluate_images=1, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(small, tmp_path_factory):
    """The directory of a run of four steps."""
    from dias_lab.training.loop import fit

    folder = tmp_path_factory.mktemp("runs") / "prediction"
    fit(small, folder, progress=False)
    return folder
