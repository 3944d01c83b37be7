"""The numbers of the presets and of the method's two forms, where they are not the defaults of Config.

Those of coco, voc and clevrtex are the released configurations' (Genera1Z/DIAS, v4). Those of `scenes`, the default, were
found on toys (docs/learning.md), those of `shapes` where clustering suffices (docs/scenes_recipe.md), those of `photos`,
for photos without a network, on 4,223 of them (docs/photos.md). What a neighbour of DIAS has otherwise stands with its
fields.
"""

import types

SCENES = dict(
    data="data/scenes", image_size=128, crop_scale=1.0, cache_views=1, backbone="colour", backbone_size=96, colour_stride=8,
    conditioning="scale", projector="convolutional", num_slots=7, slot_dim=64, slot_mlp_dim=128, project_dim=64,
    num_iterations=4, evaluation_iterations=8, aggregator_start="k_means", linkage="average", merge_threshold=0.1, min_kept=2,
    slot_frames=True, decoder_mlp_dim=64, distillation_weight=0.1, steps=17_000, batch_size=16, learning_rate=1e-3,
    final_learning_rate=0.05, warmup=0.01, precision="32-true", log_every=100, evaluate_every=1000, evaluate_images=100,
    visible_probability=0.25, visible_fraction=0.02, evaluation_visible="none",
)  # fmt: skip
VIDEO = dict(  # what the released configurations for videos share (Genera1Z/SmoothSA)
    learning_rate=5e-5, batch_size=8, steps=50_000, gradient_clip=0.05, crop_scale=0.75, evaluate_every=1250,
)  # fmt: skip
PRESETS = types.MappingProxyType({
    "scenes": SCENES,
    # for toys that move, from the weights of the scenes (docs/video.md)
    "clips": SCENES | dict(
        data="data/clips", clip_frames=6, next_iterations=2, transition="identity", batch_size=4, steps=500, learning_rate=1e-4,
        evaluate_every=125, evaluate_images=20,
    ),
    "shapes": dict(
        data="data/shapes", image_size=128, crop_scale=1.0, backbone="fourier", backbone_size=120, fourier_dim=64,
        fourier_stride=5, fourier_texture=0.3, fourier_position=0.0, num_slots=10, slot_dim=64, slot_mlp_dim=128,
        num_iterations=5, aggregator_start="k_means", linkage="average", merge_threshold=0.3, decoder_start="lookup",
        decoder_layers=1, visible_probability=0.25, visible_fraction=0.95, distillation_weight=0.1, steps=400, batch_size=16,
        learning_rate=5e-4, aggregator_rate=0.1, precision="32-true", log_every=20, evaluate_every=50, evaluate_images=100,
    ),
    "photos": dict(
        data="data/photos", crop_scale=1.0, cache_views=1, backbone="tf_efficientnet_lite0",
        backbone_weights="data/tf_efficientnet_lite0.safetensors", backbone_arguments='{"output_stride": 16}',
        backbone_stage="blocks.5 blocks.6", backbone_size=256, image_mean="0.5", image_std="0.5", conditioning="half_whiten",
        conditioning_dim=62, position_weight=1.0, slot_dim=66, slot_mlp_dim=256, num_iterations=5, aggregator_start="k_means",
        linkage="average", merge_threshold=0.4, min_kept=2, decoder="mlp", decoder_start="lookup", decoder_layers=3,
        decoder_mlp_dim=256, decoder_locations=32, distillation_weight=0.1, steps=3000, learning_rate=2e-3,
        precision="32-true", evaluate_every=500, evaluate_images=100,
    ),
    "coco": dict(data="data/coco", num_slots=7),
    "voc": dict(data="data/voc", num_slots=6, steps=50_000, evaluate_every=1250),
    "clevrtex": dict(data="data/clevrtex", num_slots=11, steps=50_000, evaluate_every=1250),
    "ytvis": VIDEO | dict(data="data/ytvis", num_slots=7, clip_frames=5, transition_frames=5),
    "movi_c": VIDEO | dict(data="data/movi_c", num_slots=11, clip_frames=6, condition="boxes"),
    "movi_d": VIDEO | dict(data="data/movi_d", num_slots=21, clip_frames=6, condition="boxes"),
    "movi_e": VIDEO | dict(data="data/movi_e", num_slots=24, clip_frames=6, condition="boxes"),
})  # fmt: skip

FORMS = types.MappingProxyType({
    "complete": dict(merging="reinitialize", matching="hungarian", distillation="cross_entropy"),
    "released": dict(merging="none", matching="identity", distillation="release"),
})  # fmt: skip
