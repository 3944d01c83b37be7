"""Published weights of SmoothSA, SPOT and DINOSAUR: names and shapes written out here, and the measured numbers."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import ORDERS, close, measured, wave

from dias_lab import reference
from dias_lab.config import Config

pytestmark = pytest.mark.xdist_group("reference")


# The published names and shapes


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name, source, target):
    return {f"{name}.weight": (target, source), f"{name}.bias": (target,)}


def vit(prefix, dim, depth, patch, locations, registers=0, class_position=0, scaled=False, final_norm=False):
    shapes = {f"{prefix}.cls_token": (1, 1, dim), f"{prefix}.pos_embed": (1, locations + class_position, dim)}
    shapes |= {f"{prefix}.reg_token": (1, registers, dim)} if registers else {}
    shapes |= {f"{prefix}.patch_embed.proj.weight": (dim, 3, patch, patch), f"{prefix}.patch_embed.proj.bias": (dim,)}
    for block in (f"{prefix}.blocks.{number}" for number in range(depth)):
        shapes |= norm(f"{block}.norm1", dim) | linear(f"{block}.attn.qkv", dim, 3 * dim)
        shapes |= linear(f"{block}.attn.proj", dim, dim) | norm(f"{block}.norm2", dim)
        shapes |= linear(f"{block}.mlp.fc1", dim, 4 * dim) | linear(f"{block}.mlp.fc2", 4 * dim, dim)
        shapes |= {f"{block}.ls1.gamma": (dim,), f"{block}.ls2.gamma": (dim,)} if scaled else {}
    return shapes | (norm(f"{prefix}.norm", dim) if final_norm else {})


def attention(name, dim):
    return {f"{name}.in_proj_weight": (3 * dim, dim), f"{name}.out_proj.weight": (dim, dim)}


def genera1z(
    method, backbone=True, dim=384, width=None, hidden=None, slot_dim=256, slot_mlp_dim=1024, slots=7, layers=4, mlp_dim=1536, locations=256
):  # fmt: skip
    """Name -> shape in the repositories of Genera1Z: dias, smoothsa, spot (with registers) and dinosaur (without)."""
    older = method == "dinosaur"
    width, hidden = width or (256 if older else dim), hidden or (768 if older else dim)
    shapes = (
        vit("encode_backbone.1", dim, 12, 14, locations, 0 if older else 4, int(older), True, older) if backbone else {}
    )
    shapes |= norm("encode_project.0", dim) | linear("encode_project.1", dim, hidden)
    shapes |= linear("encode_project.3", hidden, width)
    shapes |= {f"initializ.{name}": (1, slots if older else 1, slot_dim) for name in ("mean", "logstd")}
    if method == "smoothsa":
        shapes |= {"initializ.logstd2": (1, 1, slot_dim), "initializ.detach_flag": ()}
        shapes |= linear("initializ.qproj_kv", width, slot_dim)
        shapes |= attention("initializ.qinit.self_attn", slot_dim) | attention(
            "initializ.qinit.multihead_attn", slot_dim
        )
        shapes |= {
            "initializ.qinit.linear1.weight": (slot_mlp_dim, slot_dim),
            "initializ.qinit.linear2.weight": (slot_dim, slot_mlp_dim),
        }
        shapes |= {"initializ.qinit.norm1.weight": (slot_dim,), "initializ.qinit.norm3.weight": (slot_dim,)}
    shapes |= norm("aggregat.norm1q", slot_dim) | norm("aggregat.norm1kv", width) | norm("aggregat.norm2", slot_dim)
    shapes |= {"aggregat.proj_q.weight": (slot_dim, slot_dim)}
    shapes |= {"aggregat.proj_k.weight": (slot_dim, width), "aggregat.proj_v.weight": (slot_dim, width)}
    shapes |= {f"aggregat.rnn.weight_{side}": (3 * slot_dim, slot_dim) for side in ("ih", "hh")}
    shapes |= {f"aggregat.rnn.bias_{side}": (3 * slot_dim,) for side in ("ih", "hh")}
    shapes |= linear("aggregat.ffn.0", slot_dim, slot_mlp_dim) | linear(
        f"aggregat.ffn.{2 + older}", slot_mlp_dim, slot_dim
    )
    if older:
        widths = [slot_dim, 2048, 2048, 2048, dim + 1]
        shapes |= {"decode.posit_embed.pe": (1, locations, slot_dim)}
        for number, (a, b) in enumerate(zip(widths, widths[1:])):
            shapes |= linear(f"decode.backbone.{2 * number}", a, b)
        return {f"m.{name}": shape for name, shape in shapes.items()}
    if method == "spot":
        shapes |= {"decode.bos": (9, 1, 1, dim)}
    else:
        shapes |= {"decode.mask_token": (1, 1, dim), "decode.posit_embed._pe": (1, locations, dim)}
    shapes |= {"decode.project1.0.weight": (dim, dim), "decode.project2.0.weight": (dim, slot_dim)}
    shapes |= norm("decode.project1.1", dim) | norm("decode.project2.1", dim) | {"decode.norm0.weight": (dim,)}
    for layer, number in ((f"decode.backbone.layers.{number}", number) for number in range(layers)):
        shapes |= attention(f"{layer}.self_attn", dim) | attention(f"{layer}.multihead_attn", dim)
        shapes |= {f"{layer}.linear1.weight": (mlp_dim, dim), f"{layer}.linear2.weight": (dim, mlp_dim)}
        shapes |= {f"{layer}.norm{place}.weight": (dim,) for place in (1, 2, 3) if number or place > 1}
    return {f"m.{name}": shape for name, shape in shapes.items()}


def spot_original(stage, backbone=True, dim=768, slot_dim=256, slot_mlp_dim=1024, slots=7, layers=4, locations=196):
    """Name -> shape in gkakogeorgiou/spot."""
    shapes = {"bos_tokens": (9, 1, 1, dim)}
    for encoder in ("encoder", "second_encoder")[: stage if backbone else 0]:
        shapes |= vit(encoder, dim, 12, 16, locations, class_position=1, final_norm=True)
    if stage == 1:
        shapes |= {"slot_attn.slot_mu": (1, 1, slot_dim), "slot_attn.slot_log_sigma": (1, 1, slot_dim)}
    else:
        shapes |= {"slot_attn.slots_init.weight": (slots, slot_dim)}
    shapes |= (
        norm("slot_attn.layer_norm", dim) | linear("slot_attn.mlp.0", dim, dim) | linear("slot_attn.mlp.2", dim, dim)
    )
    inner = "slot_attn.slot_attention"
    shapes |= (
        norm(f"{inner}.norm_inputs", dim) | norm(f"{inner}.norm_slots", slot_dim) | norm(f"{inner}.norm_mlp", slot_dim)
    )
    shapes |= {f"{inner}.project_q.weight": (slot_dim, slot_dim)}
    shapes |= {f"{inner}.project_k.weight": (slot_dim, dim), f"{inner}.project_v.weight": (slot_dim, dim)}
    shapes |= {f"{inner}.gru.weight_{side}": (3 * slot_dim, slot_dim) for side in ("ih", "hh")}
    shapes |= {f"{inner}.gru.bias_{side}": (3 * slot_dim,) for side in ("ih", "hh")}
    shapes |= linear(f"{inner}.mlp.0", slot_dim, slot_mlp_dim) | linear(f"{inner}.mlp.2", slot_mlp_dim, slot_dim)
    shapes |= {"input_proj.0.weight": (dim, dim), "slot_proj.0.weight": (dim, slot_dim)}
    shapes |= norm("input_proj.1", dim) | norm("slot_proj.1", dim)
    for block in (f"dec.blocks.{number}" for number in range(layers)):
        shapes |= {f"{block}.self_attn_mask": (locations, locations)} | norm(f"{block}.self_attn_layer_norm", dim)
        for name in ("self_attn", "encoder_decoder_attn"):
            shapes |= {f"{block}.{name}.proj_{matrix}.weight": (dim, dim) for matrix in "qkvo"}
        shapes |= norm(f"{block}.encoder_decoder_attn_layer_norm", dim) | norm(f"{block}.ffn_layer_norm", dim)
        shapes |= linear(f"{block}.ffn.0", dim, 4 * dim) | linear(f"{block}.ffn.2", 4 * dim, dim)
    return shapes | norm("dec.layer_norm", dim)


def constants(shapes):
    """A state dict in which every tensor holds one number, its own: true shapes in no memory."""
    state = {name: torch.tensor(0.001 * rank).expand(shape) for rank, (name, shape) in enumerate(shapes.items())}
    for name, shape in shapes.items():
        if name.endswith("self_attn_mask"):
            state[name] = torch.ones(shape, dtype=torch.bool).triu(1)
        elif name.endswith("detach_flag"):
            state[name] = torch.tensor(True)
    return state


FULL = {  # shapes, keys, values in all, method
    "smoothsa": (genera1z("smoothsa"), 254, 34_046_081, "smoothsa"),
    "spot": (genera1z("spot"), 241, 32_802_944, "spot"),
    "dinosaur": (genera1z("dinosaur"), 208, 33_017_601, "dinosaur"),
    "spot, original, stage 1": (spot_original(1), 260, 127_097_664, "spot"),
    "spot, original, stage 2": (spot_original(2), 409, 212_897_600, "spot"),
}


@pytest.mark.parametrize("name", FULL)
def test_the_names_written_out_here_are_as_many_as_the_published_ones(name):
    shapes, keys, values, _ = FULL[name]
    assert (len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())) == (keys, values)


PLACES = {  # ours -> theirs, one a part; where ours is theirs one below the other, all of them
    "smoothsa": {
        "backbone.model.blocks.11.ls2.gamma": ["m.encode_backbone.1.blocks.11.ls2.gamma"],
        "initializer.log_std": ["m.initializ.logstd"],
        "initializer.log_std_around": ["m.initializ.logstd2"],
        "initializer.project_features.bias": ["m.initializ.qproj_kv.bias"],
        "initializer.block.cross_attention.in_proj_weight": ["m.initializ.qinit.multihead_attn.in_proj_weight"],
        "initializer.block.self_attention.in_proj_weight": ["m.initializ.qinit.self_attn.in_proj_weight"],
        "initializer.block.norm_self.weight": ["m.initializ.qinit.norm1.weight"],
        "initializer.block.norm_mlp.weight": ["m.initializ.qinit.norm3.weight"],
        "decoder.position": ["m.decode.posit_embed._pe"],
    },
    "spot": {
        "decoder.start": ["m.decode.bos"],
        "decoder.norm_input.weight": ["m.decode.norm0.weight"],
        "decoder.layers.3.norm_self.weight": ["m.decode.backbone.layers.3.norm1.weight"],
    },
    "dinosaur": {
        "backbone.model.norm.weight": ["m.encode_backbone.1.norm.weight"],
        "initializer.mean": ["m.initializ.mean"],
        "aggregator.mlp.2.bias": ["m.aggregat.ffn.3.bias"],
        "decoder.position": ["m.decode.posit_embed.pe"],
        "decoder.mlp.6.weight": ["m.decode.backbone.6.weight"],
    },
    "spot, original, stage 1": {
        "backbone.model.norm.bias": ["encoder.norm.bias"],
        "initializer.log_std": ["slot_attn.slot_log_sigma"],
        "project.3.weight": ["slot_attn.mlp.2.weight"],
        "decoder.norm_input.bias": ["dec.blocks.0.self_attn_layer_norm.bias"],
        "decoder.layers.1.norm_self.bias": ["dec.blocks.1.self_attn_layer_norm.bias"],
        "decoder.layers.2.self_attention.in_proj_weight": [f"dec.blocks.2.self_attn.proj_{m}.weight" for m in "qkv"],
        "decoder.layers.2.cross_attention.out_proj.weight": ["dec.blocks.2.encoder_decoder_attn.proj_o.weight"],
        "decoder.norm_output.weight": ["dec.layer_norm.weight"],
    },
    "spot, original, stage 2": {
        "backbone.model.blocks.8.mlp.fc1.bias": ["encoder.blocks.8.mlp.fc1.bias"],
        "target_backbone.model.blocks.8.mlp.fc1.bias": ["second_encoder.blocks.8.mlp.fc1.bias"],
        "initializer.slots": ["slot_attn.slots_init.weight"],
    },
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_state_dicts_load_strictly(name):
    shapes, _, values, method = FULL[name]
    state = constants(shapes)
    model = reference.load(state, method=method)
    found = model.state_dict()
    skipped = sum(v.numel() for v in state.values() if not v.is_floating_point())
    assert sum(value.numel() for value in found.values()) == values - skipped
    assert not model.training and not any(backbone.waiting for backbone in model.backbones().values())
    for ours, theirs in PLACES[name].items():
        for part, source in zip(found[ours].chunk(len(theirs)), theirs, strict=True):
            assert (part.cpu() == state[source].flatten()[0]).all(), ours
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if "original" in name:
        assert model.config.stage == int(name[-1]) and model.config.spot_parts == "original"
        tensors = {1: (106, 41_145_344), 2: (153, 69_498_112)}[model.config.stage]
        in_one = 8 * 2  # q, k and v of eight attentions are one tensor here
        assert (len(trained) + in_one, sum(p.numel() for p in trained)) == tensors
    else:
        assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    del state[next(iter(PLACES[name].values()))[0]]
    with pytest.raises(ValueError, match="1 missing"):
        reference.load(state, method=method)


def test_the_wrapper_of_spots_files_is_taken_off_and_nothing_in_it_is_executed(tmp_path):
    small = dict(SPOT_SMALL)
    state = random_state(spot_original(1, False, dim=12, slot_dim=8, slot_mlp_dim=16, layers=2, locations=16))
    expected = reference.load(state, method="spot", **small).state_dict()
    extras = {"epoch": 3, "best_val_loss": np.float64(0.5), "optimizer": {"param_groups": [{"lr": np.float64(1e-4)}]}}
    torch.save(extras | {"model": state}, tmp_path / "checkpoint.pt.tar")
    older = {
        name.replace("dec.", "tf_dec.") if name.startswith("dec.") else name: value for name, value in state.items()
    }
    torch.save(older, tmp_path / "best_model.pt")
    for name in ("checkpoint.pt.tar", "best_model.pt"):
        found = reference.load(tmp_path / name, method="spot", **small).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"model": state, "optimizer": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="nothing in it was executed"):
        reference.load(tmp_path / "hostile.pt", method="spot", **small)
    assert not (tmp_path / "touched").exists()


SAID = {
    "dias": "of DIAS",
    "smoothsa": "of SmoothSA",
    "spot": "of SPOT, as re-impl",
    "original": "of SPOT, of its",
    "dinosaur": "of DINOSAUR",
}


@pytest.mark.parametrize(
    "asked, given",
    [
        (a, g)
        for a in ("dias", "smoothsa", "spot", "dinosaur")
        for g in SAID
        if a != g and (a, g) != ("spot", "original")
    ],
)
def test_weights_of_another_method_are_refused_by_its_name(asked, given):
    sizes = dict(dim=12, slot_dim=8, slot_mlp_dim=16, layers=2, locations=16)
    if given == "original":
        shapes = spot_original(1, False, **sizes)
    else:
        shapes = genera1z(given, False, mlp_dim=24, width=12, hidden=12, slots=3, **sizes)
    fields = dict(SMALL, decoder_mlp_dim=2048, decoder_layers=4, **OWN_WIDTH) if asked == "dinosaur" else SMALL
    with pytest.raises(ValueError, match=rf"published {asked} model.*these are the weights {re.escape(SAID[given])}"):
        reference.load(constants(shapes), method=asked, **fields)


def test_a_model_with_a_codebook_is_named():
    state = constants(genera1z("dinosaur", False, dim=12, slot_dim=8, slot_mlp_dim=16, locations=16))
    with pytest.raises(ValueError, match="SLATE, VQDINO"):
        reference.load(state | {"m.mediat.quant.codebook.weight": torch.zeros(4, 4)}, **SMALL)


def test_another_number_of_slots_where_each_has_its_own_is_refused():
    state = constants(genera1z("dinosaur"))
    with pytest.raises(ValueError, match=re.escape("m.initializ.mean is (1, 7, 256), not (1, 6, 256)")):
        reference.load(state, method="dinosaur", preset="voc")


# The measured numbers, through the published names

OWN_WIDTH = dict(project_dim=12, project_hidden_dim=12)
SMALL = dict(
    backbone="fourier", fourier_dim=12, fourier_stride=8, backbone_size=32, image_size=32, num_slots=3, slot_dim=8, slot_mlp_dim=16,
    decoder_layers=2, decoder_heads=2, decoder_mlp_dim=24, device="cpu",
)  # fmt: skip
SPOT_SMALL = SMALL | dict(decoder_mlp_dim=48, decoder_heads=2)
SMALL_SIZES = dict(backbone=False, dim=12, slot_dim=8, layers=2, mlp_dim=24, locations=16)


def random_state(shapes, seed=0):
    random = torch.Generator().manual_seed(seed)
    state = constants(shapes)
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    return state | {
        name: 0.5 * torch.randn(value.shape, generator=random) + (1 if "norm" in name and "weight" in name else 0)
        for name, value in floats.items()
    }


def measured_state(shapes):
    return measured(random_state(shapes), "m.initializ.", "m.aggregat.", "m.decode.")


@torch.no_grad()
def test_measured_numbers_of_the_permuted_decoder():
    model = reference.load(measured_state(genera1z("spot", slot_mlp_dim=16, **SMALL_SIZES)), method="spot", **SMALL)
    features = wave(2, 16, 12)
    slots, _ = model.aggregator(features, wave(2, 3, 8, phase=1))
    close(slots.sum(), 3.710116)
    reconstruction, attention = model.decoder(features, slots)
    close(reconstruction.sum(), -4.086976)
    close(reconstruction.abs().sum(), 342.49945)
    close(attention.flatten()[:4], 0.317544, 0.317553, 0.304068, 0.290488)
    model.decoder.evaluation = "all"
    reconstruction, attention = model.decoder(features, slots)
    close(reconstruction.sum(), -4.351334)
    close(reconstruction.abs().sum(), 142.046856)
    close(attention.flatten()[:4], 0.307115, 0.299996, 0.302611, 0.308545)


@torch.no_grad()
def test_measured_numbers_of_preheating():
    state = measured_state(genera1z("smoothsa", slot_mlp_dim=32, **SMALL_SIZES))
    model = reference.load(state, method="smoothsa", **SMALL | dict(slot_mlp_dim=32))
    sample = model.initializer(2, noise=torch.zeros(2, 3, 8))
    preheated, slots = model.initializer.preheat(wave(2, 16, 12), sample)
    close(preheated.sum(), 5.319847)
    close(preheated.abs().sum(), 64.786368)
    close(preheated.flatten()[:4], 2.585449, -1.186011, 1.4376, -1.452152)
    assert torch.equal(slots, preheated)  # in evaluation nothing is added


# Forward passes of their own in plain torch, from the published tensors


@torch.no_grad()
@pytest.mark.parametrize("stage", [1, 2])
def test_spots_own_layers_give_what_a_plain_forward_pass_gives(stage):
    state = random_state(
        spot_original(stage, False, dim=12, slot_dim=8, slot_mlp_dim=16, slots=3, layers=2, locations=16)
    )
    fields = SPOT_SMALL | dict(stage=stage, fine_tuned_blocks=0, evaluation_permutations="all")
    model = reference.load(state, method="spot", **fields)
    assert model.config.stage == stage
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    draws = model.draw([0, 1], seed=3)
    output = model(images, draws=draws)
    features = output.features.flatten(2).transpose(1, 2)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    tokens = linear(linear(norm(features, "slot_attn.layer_norm"), "slot_attn.mlp.0").relu(), "slot_attn.mlp.2")
    inner = "slot_attn.slot_attention"
    tokens = norm(tokens, f"{inner}.norm_inputs")
    key, value = linear(tokens, f"{inner}.project_k") * 8**-0.5, linear(tokens, f"{inner}.project_v")
    if stage == 1:
        slots = state["slot_attn.slot_mu"] + draws["slots"] * state["slot_attn.slot_log_sigma"].exp()
    else:
        slots = state["slot_attn.slots_init.weight"].expand(2, -1, -1)
    for _ in range(3):
        logits = linear(norm(slots, f"{inner}.norm_slots"), f"{inner}.project_q") @ key.transpose(1, 2)
        weights = logits.softmax(dim=1) + 1e-8
        update = (weights / weights.sum(dim=2, keepdim=True)) @ value
        gates = [state[f"{inner}.gru.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        slots = torch.gru_cell(update.flatten(0, 1), slots.flatten(0, 1), *gates).view(2, 3, 8)
        slots = slots + linear(linear(norm(slots, f"{inner}.norm_mlp"), f"{inner}.mlp.0").relu(), f"{inner}.mlp.2")
    torch.testing.assert_close(output.slots, slots, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.attention[-1].flatten(2), logits.softmax(dim=1), atol=1e-4, rtol=1e-4)

    def attend(query, memory, name, mask=None):
        q, k, v = (
            linear(x, f"{name}.proj_{m}").unflatten(2, (2, 6)).transpose(1, 2)
            for x, m in zip((query, memory, memory), "qkv")
        )
        scores = q @ k.transpose(2, 3) * 6**-0.5
        weights = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(dim=-1)
        return linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.proj_o"), weights

    memory = norm(linear(slots, "slot_proj.0"), "slot_proj.1")
    rebuilt, maps = 0, 0
    for number, order in enumerate(ORDERS):
        order = torch.tensor(order)
        start = state["bos_tokens"][number].expand(2, 1, 12)
        x = norm(linear(torch.cat([start, features[:, order[:-1]]], dim=1), "input_proj.0"), "input_proj.1")
        for layer in range(2):
            block, mask = f"dec.blocks.{layer}", state[f"dec.blocks.{layer}.self_attn_mask"]
            query = norm(x, f"{block}.self_attn_layer_norm")
            x = query if layer == 0 else x
            x = x + attend(query, query, f"{block}.self_attn", mask)[0]
            update, weights = attend(
                norm(x, f"{block}.encoder_decoder_attn_layer_norm"), memory, f"{block}.encoder_decoder_attn"
            )
            x = x + update
            x = x + linear(linear(norm(x, f"{block}.ffn_layer_norm"), f"{block}.ffn.0").relu(), f"{block}.ffn.2")
        back = order.argsort()
        rebuilt = rebuilt + norm(x, "dec.layer_norm")[:, back] / 9
        summed = weights.sum(dim=1)
        maps = maps + (summed / summed.sum(dim=-1, keepdim=True))[:, back].transpose(1, 2) / 9
    torch.testing.assert_close(output.reconstruction.flatten(2).transpose(1, 2), rebuilt, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.decoder_attention.flatten(2), maps, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dinosaurs_features_go_through_the_final_norm_and_alpha_comes_last():
    shapes = genera1z("dinosaur")
    keep = [name for name in shapes if not re.search(r"blocks\.(?!0\.)\d+", name)]
    state = random_state({name: shapes[name] for name in keep})
    state = {name: value * (0.1 if value.ndim == 2 else 1) for name, value in state.items()}
    model = reference.load(state, method="dinosaur", backbone_arguments='{"depth": 1}', device="cpu")
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    output = model(images)
    weight, bias = (state[f"m.encode_backbone.1.norm.{name}"][None, :, None, None] for name in ("weight", "bias"))
    normed = (output.features - bias) / weight  # what a LayerNorm gave, before its weights
    torch.testing.assert_close(normed.mean(dim=1), torch.zeros(1, 16, 16), atol=1e-3, rtol=0)
    torch.testing.assert_close(normed.var(dim=1, unbiased=False), torch.ones(1, 16, 16), atol=1e-2, rtol=0)
    x = output.slots[:, :, None] + state["m.decode.posit_embed.pe"][:, None]
    for number in (0, 2, 4, 6):
        x = F.linear(x, state[f"m.decode.backbone.{number}.weight"], state[f"m.decode.backbone.{number}.bias"])
        x = F.gelu(x) if number < 6 else x
    alpha = x[..., 384:].softmax(dim=1)
    expected = (alpha * x[..., :384]).sum(dim=1).transpose(1, 2)
    torch.testing.assert_close(output.reconstruction.flatten(2), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(output.decoder_attention.flatten(2), alpha[..., 0], atol=1e-4, rtol=1e-3)


def test_fields_of_the_published_models_are_those_of_their_sources():
    for preset, slots in (("coco", 7), ("voc", 6), ("clevrtex", 11)):
        config = Config.preset(preset, method="spot")
        assert (config.num_slots, config.gradient_clip, config.gradient_norm) == (slots, 0.3, "largest")
    assert (config.teacher_weight, config.fine_tuned_blocks) == (0.005, 4)
    config = Config.preset("coco", method="smoothsa")
    assert (config.preheat_weight, config.preheat_detached, config.truncation) == (100.0, 0.1, "bi_level")
