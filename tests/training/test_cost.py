"""What a training step costs, as it is counted."""

from dias_lab import fit
from dias_lab.config import Config
from dias_lab.data import store
from dias_lab.training import cost


def test_the_costs_of_a_step_are_counted(small_config):
    configs = {"DIAS": small_config}
    for name, fields in (("SPOT, stage 1", {}), ("SPOT, stage 2", {"stage": 2, "fine_tuned_blocks": 0})):
        configs[name] = small_config.replace(method="spot", **fields)
    train = store.open(f"{small_config.data}/train.lmdb")
    costs = cost.step_costs(configs, train, repeats=1)
    assert (costs["passes"] == 1).all() and (costs["passes with gradients"] == 0).all()
    assert (costs["seconds"] > 0).all() and (costs["saved"] > 0).all()
    assert costs.loc["SPOT, stage 2", "operations"] > costs.loc["SPOT, stage 1", "operations"]
    again = cost.step_costs(configs, train, repeats=0)
    assert (again["operations"] == costs["operations"]).all() and again["seconds"].isna().all()
    conditioned = {"SPOT, stage 2": configs["SPOT, stage 2"].replace(conditioning="standardise")}
    assert cost.step_costs(conditioned, train, repeats=0)["operations"].iloc[0] > 0  # the teacher sees what the student sees


def test_a_fine_tuned_backbone_is_a_pass_of_its_own():
    fields = dict(
        method="spot", stage=2, fine_tuned_blocks=1, backbone="vit_tiny_patch16_224", backbone_weights="random", backbone_size=32,
        image_size=32, num_slots=3, slot_dim=16, slot_mlp_dim=16, decoder_layers=1, batch_size=2, device="cpu",
    )  # fmt: skip
    costs = cost.step_costs({"SPOT, stage 2": Config.preset("coco", **fields)}, repeats=0).iloc[0]
    assert costs["passes"] == 2 and costs["passes with gradients"] == 1


def test_steps_from_a_cache_pass_no_backbone(small_config):
    train = store.open(f"{small_config.data}/train.lmdb")
    configs = {"pixels": small_config, "cache": small_config.replace(cache_views=1)}
    assert cost.step_costs(configs, train, repeats=0)["passes"].to_list() == [1, 0]


def test_the_cache_is_that_of_a_training(few_clips, tmp_path):
    """Conditioned features are fitted as a training fits them: no second cache is left beside the data."""
    config = Config.preset("clips", data=str(few_clips), batch_size=2, clip_frames=3, steps=1, evaluate_images=1, device="cpu")
    fit(config, tmp_path / "run", progress=False)
    folder = few_clips / "features"
    there = set(folder.iterdir())
    assert there and cost.step_costs({"cached": config}, store.open(few_clips / "train.lmdb"), repeats=0)["passes"].to_list() == [0]
    assert set(folder.iterdir()) == there


def test_clips_are_counted_a_clip(few_clips):
    """From pixels, from a cache and from noise: their operations are those of all frames."""
    config = Config.preset("clips", data=str(few_clips), batch_size=2, clip_frames=3, workers=0, cache_views=0, device="cpu")
    configs = {"pixels": config, "cache": config.replace(cache_views=1), "four frames": config.replace(clip_frames=4)}
    costs = cost.step_costs(configs, store.open(few_clips / "train.lmdb"), repeats=1)
    assert costs["passes"].to_list() == [3, 0, 4] and (costs["seconds"] > 0).all()
    assert costs.loc["four frames", "operations"] > 1.2 * costs.loc["pixels", "operations"]
    noise = cost.step_costs({"noise": config}, repeats=0)
    assert noise["operations"].iloc[0] == costs.loc["pixels", "operations"] and noise["passes"].iloc[0] == 3
    halved = cost.step_costs({"one clip": config.replace(batch_size=1)}, repeats=0)
    assert halved["operations"].iloc[0] == noise["operations"].iloc[0]
