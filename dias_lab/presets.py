"""The numbers of the presets, of the method's two forms, and of each method, where they are not the defaults of Config.

Those of coco, voc and clevrtex are the released configurations' (Genera1Z/DIAS, v4); those of `scenes` were found on the
built-in scenes (docs/scenes_recipe.md).
"""

import types

PRESETS = types.MappingProxyType({
    "scenes": dict(
        data="data/scenes", image_size=128, crop_scale=1.0, backbone="fourier", backbone_size=120, fourier_dim=64,
        fourier_stride=5, fourier_texture=0.3, fourier_position=0.0, num_slots=10, slot_dim=64, slot_mlp_dim=128,
        num_iterations=5, aggregator_start="k_means", linkage="average", merge_threshold=0.3, decoder_start="lookup",
        decoder_layers=1, visible_probability=0.25, visible_fraction=0.95, distillation_weight=0.1, steps=400, batch_size=16,
        learning_rate=5e-4, aggregator_rate=0.1, precision="32-true", log_every=20, evaluate_every=50, evaluate_images=100,
    ),
    "coco": dict(data="data/coco", num_slots=7),
    "voc": dict(data="data/voc", num_slots=6, steps=50_000, evaluate_every=1250),
    "clevrtex": dict(data="data/clevrtex", num_slots=11, steps=50_000, evaluate_every=1250),
})  # fmt: skip

FORMS = types.MappingProxyType({
    "complete": dict(merging="reinitialize", matching="hungarian", distillation="cross_entropy"),
    "released": dict(merging="none", matching="identity", distillation="release"),
})  # fmt: skip

# What a method's paper has otherwise than the presets, which are those of DIAS; and what the small scenes ask of it: the
# fourier backbone has nothing to fine-tune, and its features no position, from which an MLP decoder could paint. Over all
# orders, as SPOT's authors score it, no order's own delay is left in the map.
METHODS = types.MappingProxyType({
    "smoothsa": dict(merging="none", distillation="none"),
    "spot": dict(merging="none", distillation="none", gradient_clip=0.3, gradient_norm="largest"),
    "dinosaur": dict(merging="none", distillation="none", initializer="separate", decoder="mlp"),
    "vqdino": dict(merging="none", distillation="none", initializer="separate", code_dim=256),
    "slate": dict(merging="none", distillation="none", initializer="separate", code_dim=256),
})  # fmt: skip
SCENES = {
    "spot": dict(fine_tuned_blocks=0, evaluation_permutations="all"),
    "dinosaur": dict(decoder="raster", decoder_layers=2, decoder_mlp_dim=256),
    "vqdino": dict(codebook_size=256, code_dim=0, decoder_layers=2, decoder_mlp_dim=256),
    "slate": dict(codebook_size=256, code_dim=64, decoder_layers=2, decoder_mlp_dim=256, decoder_start="random"),
}
