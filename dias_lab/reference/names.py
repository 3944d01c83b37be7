"""Tables of names: how the tensors of published checkpoints are called, here and there.

Sources: the state dicts of Genera1Z/DIAS (v1 to v4 alike: 242 tensors, the prefix `m.` before each), of
Genera1Z/SmoothSA (SmoothSA, 254; for videos 266, or 271 where slots start from boxes; its SPOT, 241), of
Genera1Z/VQ-VFM-OCL (DINOSAUR, 208, with `pe` for the position table; STEVE, 316, and TfdT, 261, whose first stages have
139 and 270), of Genera1Z/RandSF.Q (RandSF.Q, 254, its variant with time similarity, 256, SlotContrast, 214, and VideoSAUR,
245; from boxes two more), of gkakogeorgiou/spot (stage 1, 260; stage 2, 409), and of martius-lab/videosaur (222 to 256) and
martius-lab/slotcontrast (217). A recognition head adds 4.
A method joins by a table in NAMES.
"""

ENCODING = {  # how our names begin, and how the published ones do; * is a number. What follows is the same in both
    "backbone.model": "encode_backbone.1",
    "project": "encode_project",
    "initializer.mean": "initializ.mean",
    "initializer.log_std": "initializ.logstd",
    "aggregator.norm_slots": "aggregat.norm1q",
    "aggregator.to_query": "aggregat.proj_q",
    "aggregator.norm_features": "aggregat.norm1kv",
    "aggregator.to_key": "aggregat.proj_k",
    "aggregator.to_value": "aggregat.proj_v",
    "aggregator.gru": "aggregat.rnn",
    "aggregator.norm_mlp": "aggregat.norm2",
}
AGGREGATOR_MLP = {"aggregator.mlp": "aggregat.ffn"}
TRANSFORMER = {
    "decoder.project_features": "decode.project1",
    "decoder.project_slots": "decode.project2",
    "decoder.norm_input": "decode.norm0",
    "decoder.layers.*.norm_self": "decode.backbone.layers.*.norm1",
    "decoder.layers.*.self_attention": "decode.backbone.layers.*.self_attn",
    "decoder.layers.*.norm_cross": "decode.backbone.layers.*.norm2",
    "decoder.layers.*.cross_attention": "decode.backbone.layers.*.multihead_attn",
    "decoder.layers.*.norm_mlp": "decode.backbone.layers.*.norm3",
    "decoder.layers.*.mlp.0": "decode.backbone.layers.*.linear1",
    "decoder.layers.*.mlp.2": "decode.backbone.layers.*.linear2",
}
RANDOM_ORDER = {"decoder.mask_token": "decode.mask_token", "decoder.position": "decode.posit_embed._pe"}
GENERA1Z = ENCODING | AGGREGATOR_MLP | RANDOM_ORDER | TRANSFORMER
SMOOTHSA = GENERA1Z | {
    "initializer.log_std_around": "initializ.logstd2",
    "initializer.project_features": "initializ.qproj_kv",
    "initializer.block.cross_attention": "initializ.qinit.multihead_attn",
    "initializer.block.norm_self": "initializ.qinit.norm1",
    "initializer.block.self_attention": "initializ.qinit.self_attn",
    "initializer.block.norm_mlp": "initializ.qinit.norm3",
    "initializer.block.mlp.0": "initializ.qinit.linear1",
    "initializer.block.mlp.2": "initializ.qinit.linear2",
}
ENCODER = {
    "transition.layer.self_attention": "self_attn",
    "transition.layer.norm_self": "norm1",
    "transition.layer.mlp.0": "linear1",
    "transition.layer.mlp.2": "linear2",
    "transition.layer.norm_mlp": "norm2",
}
DECODER = ENCODER | {
    "transition.layer.cross_attention": "multihead_attn",
    "transition.layer.norm_cross": "norm2",
    "transition.layer.norm_mlp": "norm3",
}
RSFQ = {ours: f"transit.transit.{theirs}" for ours, theirs in DECODER.items()}
RSFQ |= {"transition.time": "transit.te", "transition.project": "transit.proji"}
TRANSITION = {"boxes": "initializ"} | {ours: f"transit.{theirs}" for ours, theirs in ENCODER.items()}
CODES = ENCODING | TRANSITION | {ours: theirs for ours, theirs in TRANSFORMER.items() if "project" not in ours} | {
    "aggregator.mlp.0": "aggregat.ffn.0",
    "aggregator.mlp.2": "aggregat.ffn.3",  # a dropout stands between
    "quantizer.encode": "mediat.encode",
    "decoder.start": "decode.bos",
    "decoder.position": "decode.posit_embed._pe",
    "decoder.readout": "decode.readout",
}  # fmt: skip
DRAWN = {"quantizer.codebook": "mediat.quant.codebook.weight", "quantizer.to_code": "mediat.quant.project"}
LAYER = {
    "norm_self": "norm1", "qkv": "self_attn.qkv", "out_proj": "self_attn.out_proj", "norm_mlp": "norm2", "mlp.0": "linear1",
    "mlp.2": "linear2",
}
CORRECTOR, PREDICTOR = "processor.module.corrector", "processor.module.predictor.blocks.0"
ORIGINAL = {
    "initializer": "initializer",
    "backbone.model": "encoder.module.backbone.model",
    "project": "encoder.module.output_transform.layers",
    "aggregator.to_query": f"{CORRECTOR}.to_q",
    "aggregator.to_key": f"{CORRECTOR}.to_k",
    "aggregator.to_value": f"{CORRECTOR}.to_v",
    "aggregator.gru": f"{CORRECTOR}.gru",
    "aggregator.norm_features": f"{CORRECTOR}.norm_features",
    "aggregator.norm_slots": f"{CORRECTOR}.norm_slots",
    "decoder.position": "decoder.module.pos_emb",
} | {f"transition.layer.{ours}": f"{PREDICTOR}.{theirs}" for ours, theirs in LAYER.items()}
QKV = [f"proj_{matrix}.weight" for matrix in "qkv"]  # one below the other they are torch's in_proj_weight
CROSS = "dec.blocks.*.encoder_decoder_attn"

NAMES = {
    "dias": GENERA1Z,
    "smoothsa": SMOOTHSA,
    "smoothsa clips": SMOOTHSA | RSFQ | {"boxes": "initializ.mlp"},
    "randsfq clips": GENERA1Z | RSFQ | {"boxes": "initializ", "readout": "decode.readout"},
    "slotcontrast clips": ENCODING | AGGREGATOR_MLP | TRANSITION | {
        "decoder.position": "decode.posit_embed._pe",
        "decoder.mlp": "decode.backbone",
    },
    "videosaur clips": ENCODING | AGGREGATOR_MLP | TRANSITION | {
        "decoder.position": "decode.posit_embed._pe",
        "decoder.norm_memory": "decode.norm_m",
        "decoder.norm_query": "decode.norm_q",
        "decoder.norm_key": "decode.norm_k",
        "decoder.layers.*.norm_self": "decode.allocat.layers.*.norm1",
        "decoder.layers.*.norm_cross": "decode.allocat.layers.*.norm2",
        "decoder.layers.*.cross_attention": "decode.allocat.layers.*.multihead_attn",
        "decoder.layers.*.norm_mlp": "decode.allocat.layers.*.norm3",
        "decoder.layers.*.mlp.0": "decode.allocat.layers.*.linear1",
        "decoder.layers.*.mlp.2": "decode.allocat.layers.*.linear2",
        "decoder.to_query.weight": "decode.attent.q_proj_weight",
        "decoder.to_key.weight": "decode.attent.k_proj_weight",
        "decoder.render": "decode.render",
    },
    "steve_published clips": CODES | {"quantizer.codebook": "mediat.codebook.templat.weight"},
    "tfdt_published clips": CODES | DRAWN,
    "steve_published first stage": {
        "quantizer.encode": "encode",
        "quantizer.codebook": "codebook.templat.weight",
        "decode": "decode",
    },
    "tfdt_published first stage": DRAWN | {
        "backbone.model": "encode_backbone.1",
        "quantizer.encode": "mediat.encode",
        "decode": "mediat.decode",
    },
    "recognition head": {"hidden": "recogn.0", "out": "recogn.3"},  # a dropout stands between
    "videosaur_original clips": ORIGINAL | {
        **{f"decoder.layers.*.{ours}": f"decoder.module.allocator.blocks.*.{theirs}" for ours, theirs in LAYER.items()},
        "decoder.norm_memory": "decoder.module.norm_memory",
        "decoder.norm_query": "decoder.module.norm_q",
        "decoder.norm_key": "decoder.module.norm_k",
        "decoder.to_query": "decoder.module.to_q",
        "decoder.to_key": "decoder.module.to_k",
        "decoder.render.layers": "decoder.module.renderer.layers",
        "decoder.render.out": "decoder.module.output_transform",
    },
    "slotcontrast_original clips": ORIGINAL | {
        "aggregator.norm_mlp": f"{CORRECTOR}.mlp.layers.0",
        "aggregator.mlp.0": f"{CORRECTOR}.mlp.layers.1",
        "aggregator.mlp.2": f"{CORRECTOR}.mlp.layers.3",
        "decoder.mlp": "decoder.module.mlp.layers",
    },
    "spot": ENCODING | AGGREGATOR_MLP | TRANSFORMER | {"decoder.start": "decode.bos"},
    "dinosaur": ENCODING | {
        "aggregator.mlp.0": "aggregat.ffn.0",
        "aggregator.mlp.2": "aggregat.ffn.3",  # a dropout stands between
        "decoder.position": "decode.posit_embed._pe",
        "decoder.mlp": "decode.backbone",
    },
    "spot original": {
        "backbone.model": "encoder",
        "target_backbone.model": "second_encoder",
        "project.0": "slot_attn.layer_norm",
        "project.1": "slot_attn.mlp.0",
        "project.3": "slot_attn.mlp.2",
        "initializer.mean": "slot_attn.slot_mu",
        "initializer.log_std": "slot_attn.slot_log_sigma",
        "initializer.slots": "slot_attn.slots_init.weight",
        "aggregator.norm_features": "slot_attn.slot_attention.norm_inputs",
        "aggregator.norm_slots": "slot_attn.slot_attention.norm_slots",
        "aggregator.to_query": "slot_attn.slot_attention.project_q",
        "aggregator.to_key": "slot_attn.slot_attention.project_k",
        "aggregator.to_value": "slot_attn.slot_attention.project_v",
        "aggregator.gru": "slot_attn.slot_attention.gru",
        "aggregator.norm_mlp": "slot_attn.slot_attention.norm_mlp",
        "aggregator.mlp": "slot_attn.slot_attention.mlp",
        "decoder.start": "bos_tokens",
        "decoder.project_features": "input_proj",
        "decoder.project_slots": "slot_proj",
        "decoder.norm_input": "dec.blocks.0.self_attn_layer_norm",
        "decoder.layers.*.norm_self": "dec.blocks.*.self_attn_layer_norm",
        "decoder.layers.*.self_attention.in_proj_weight": tuple(f"dec.blocks.*.self_attn.{part}" for part in QKV),
        "decoder.layers.*.self_attention.out_proj": "dec.blocks.*.self_attn.proj_o",
        "decoder.layers.*.norm_cross": f"{CROSS}_layer_norm",
        "decoder.layers.*.cross_attention.in_proj_weight": tuple(f"{CROSS}.{part}" for part in QKV),
        "decoder.layers.*.cross_attention.out_proj": f"{CROSS}.proj_o",
        "decoder.layers.*.norm_mlp": "dec.blocks.*.ffn_layer_norm",
        "decoder.layers.*.mlp": "dec.blocks.*.ffn",
        "decoder.norm_output": "dec.layer_norm",
    },
}  # fmt: skip

# What a published model has otherwise than Config.preset(preset, form="released", method=method)
UNNORMED = {"backbone_arguments": '{"final_norm": false}'}  # published without the final norm
TIME = dict(similarity_weight=0.1, contrast_weight=0.0)  # of RandSF.Q's variant with time similarity
DINO, DINO_2 = "vit_base_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"
FIELDS = {
    **dict.fromkeys(("dias", "smoothsa", "smoothsa clips", "spot", "randsfq clips"), UNNORMED),
    **dict.fromkeys(
        ("slotcontrast clips", "videosaur clips", "steve_published clips", "tfdt_published clips"),
        dict(backbone=DINO_2, backbone_norm=True),
    ),
    "dinosaur": dict(backbone=DINO_2, backbone_norm=True, project_dim=256, project_hidden_dim=768),
    **dict.fromkeys(("videosaur_original clips", "slotcontrast_original clips"), {}),  # the file's own sizes: originals.py
    "spot original": dict(backbone=DINO, image_size=224, backbone_size=224, decoder_heads=6, spot_parts="original"),
}  # fmt: skip

OLDER = {"decode.posit_embed.pe": "decode.posit_embed._pe", "tf_dec.": "dec."}
IGNORED = ("clust_prob", "thresh")  # an early experiment's schedules of merging; here they are Config fields
WITHOUT = {  # saved, but no weights
    **dict.fromkeys(("smoothsa", "smoothsa clips"), ("initializ.detach_flag",)),  # a schedule: Config.preheat_detached
    "spot original": ("dec.blocks.*.self_attn_mask",),  # the causal mask
}
TABLES = ("backbone.model.pos_embed", "decoder.position")  # [1 L C], resized where the map's size differs

# Names that only this kind of checkpoint has, all of them, and their number of axes where another kind shares them; first hit
# counts. And what to tell whoever gave it for another kind
THESE, CLIPS = "these are the weights of", "and a preset for clips, ytvis, movi_c, movi_d or movi_e"
SIGNS = {
    "dias_lab": ("aggregator.to_query.weight", None,
                 "this file is from a run of dias_lab: give its run directory to load_model, or as --run-dir"),
    "steve_published clips": ("mediat.codebook.* transit.*", None, f'{THESE} STEVE, for videos: method="steve" {CLIPS}'),
    "tfdt_published clips": ("mediat.quant.* transit.*", None, f'{THESE} VVO-TfdT, for videos: method="tfdt" {CLIPS}'),
    "steve_published first stage": ("codebook.templat.weight encode.*", None,
                                    f"{THESE} a first stage of STEVE (or SLATE): dias_lab.reference.stages reads it"),
    "tfdt_published first stage": ("mediat.quant.* mediat.decode.*", None,
                                   f"{THESE} a first stage of TfdT (or VQDINO): dias_lab.reference.stages reads it"),
    "recognition head": ("recogn.* discov.*", None,
                         "this file holds a recognition head on a model: dias_lab.reference.heads makes two runs of it"),
    "vq": ("mediat.*", None, f"{THESE} a codebook, or a model with one (SLATE, VQDINO): published ones are not read here"),
    "smoothsa clips": ("transit.te.weight initializ.logstd2", None, f'{THESE} SmoothSA for videos: method="smoothsa" {CLIPS}'),
    "randsfq clips": ("transit.te.weight", None, f'{THESE} RandSF.Q, for videos: method="randsfq" {CLIPS}'),
    "videosaur clips": ("decode.allocat.*", None, f'{THESE} VideoSAUR, for videos: method="videosaur" {CLIPS}'),
    "slotcontrast clips": ("transit.linear1.weight decode.backbone.0.weight", None,
                           f'{THESE} SlotContrast, for videos: method="slotcontrast" {CLIPS}'),
    "videosaur_original clips": ("decoder.module.allocator.*", None,
                                 f'{THESE} VideoSAUR, of its authors\' own code: method="videosaur", for clips'),
    "slotcontrast_original clips": ("decoder.module.mlp.*", None,
                                    f'{THESE} SlotContrast, of its authors\' own code: method="slotcontrast", for clips'),
    "smoothsa": ("initializ.logstd2", None, f'{THESE} SmoothSA for images: method="smoothsa" and a preset for images'),
    "spot original": ("slot_attn.slot_attention.*", None, f'{THESE} SPOT, of its authors\' own code: method="spot"'),
    "spot": ("decode.bos", 4, f'{THESE} SPOT, as re-implemented beside SmoothSA: method="spot"'),
    "dinosaur": ("decode.backbone.0.weight", None, f'{THESE} DINOSAUR: method="dinosaur"'),
    "dias": ("decode.mask_token", None, f'{THESE} DIAS: method="dias"'),
}  # fmt: skip
