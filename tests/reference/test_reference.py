"""Published weights: names and shapes written out here, the measured numbers, and a forward pass of its own in plain torch."""

import contextlib
import json
import os
import pickle
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from published import close, measured, wave
from safetensors.torch import save_file
from torch import nn

from dias_lab import reference, runs
from dias_lab.__main__ import main
from dias_lab.analysis.evaluate import evaluate
from dias_lab.analysis.interventions import with_fields
from dias_lab.methods import build, checkpoint
from dias_lab.trace import AttentionTrace
from dias_lab.training.loop import fit

pytestmark = pytest.mark.xdist_group("reference")  # the full-size files are made once


# The published names and shapes


def published_shapes(
    depth=12, layers=4, dim=384, slot_dim=256, slot_mlp_dim=1024, mlp_dim=1536, locations=256, patch=14
):
    """Name -> shape of the state dict of a released DIAS; without a backbone at depth 0."""

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def linear(name, source, target):
        return {f"{name}.weight": (target, source), f"{name}.bias": (target,)}

    shapes = {}
    if depth:
        vit = "encode_backbone.1"
        shapes = {
            f"{vit}.cls_token": (1, 1, dim),
            f"{vit}.reg_token": (1, 4, dim),
            f"{vit}.pos_embed": (1, locations, dim),
        }
        shapes |= {f"{vit}.patch_embed.proj.weight": (dim, 3, patch, patch), f"{vit}.patch_embed.proj.bias": (dim,)}
    for block in (f"encode_backbone.1.blocks.{number}" for number in range(depth)):
        shapes |= norm(f"{block}.norm1", dim) | linear(f"{block}.attn.qkv", dim, 3 * dim)
        shapes |= linear(f"{block}.attn.proj", dim, dim) | norm(f"{block}.norm2", dim)
        shapes |= linear(f"{block}.mlp.fc1", dim, 4 * dim) | linear(f"{block}.mlp.fc2", 4 * dim, dim)
        shapes |= {f"{block}.ls1.gamma": (dim,), f"{block}.ls2.gamma": (dim,)}
    shapes |= (
        norm("encode_project.0", dim) | linear("encode_project.1", dim, dim) | linear("encode_project.3", dim, dim)
    )
    shapes |= {"initializ.mean": (1, 1, slot_dim), "initializ.logstd": (1, 1, slot_dim)}
    shapes |= norm("aggregat.norm1q", slot_dim) | norm("aggregat.norm1kv", dim) | norm("aggregat.norm2", slot_dim)
    shapes |= {"aggregat.proj_q.weight": (slot_dim, slot_dim)}
    shapes |= {"aggregat.proj_k.weight": (slot_dim, dim), "aggregat.proj_v.weight": (slot_dim, dim)}
    shapes |= {f"aggregat.rnn.weight_{side}": (3 * slot_dim, slot_dim) for side in ("ih", "hh")}
    shapes |= {f"aggregat.rnn.bias_{side}": (3 * slot_dim,) for side in ("ih", "hh")}
    shapes |= linear("aggregat.ffn.0", slot_dim, slot_mlp_dim) | linear("aggregat.ffn.2", slot_mlp_dim, slot_dim)
    shapes |= {"decode.mask_token": (1, 1, dim), "decode.posit_embed._pe": (1, locations, dim)}
    shapes |= {"decode.project1.0.weight": (dim, dim), "decode.project2.0.weight": (dim, slot_dim)}
    shapes |= norm("decode.project1.1", dim) | norm("decode.project2.1", dim) | {"decode.norm0.weight": (dim,)}
    for number in range(layers):
        layer = f"decode.backbone.layers.{number}"
        for attention in ("self_attn", "multihead_attn"):
            shapes |= {
                f"{layer}.{attention}.in_proj_weight": (3 * dim, dim),
                f"{layer}.{attention}.out_proj.weight": (dim, dim),
            }
        shapes |= {f"{layer}.linear1.weight": (mlp_dim, dim), f"{layer}.linear2.weight": (dim, mlp_dim)}
        shapes |= {f"{layer}.norm{place}.weight": (dim,) for place in (1, 2, 3) if number or place > 1}
    return {f"m.{name}": shape for name, shape in shapes.items()}


def random_state(shapes, seed=0):
    """Values of a sane size, large enough that every tensor matters."""
    random = torch.Generator().manual_seed(seed)

    def values(name, shape):
        noise = torch.randn(shape, generator=random)
        if "norm" in name or name.endswith((".gamma", "_project.0.weight", "project1.1.weight", "project2.1.weight")):
            return 0.2 * noise + (0 if name.endswith("bias") else 1)
        if name.endswith(("bias", "bias_ih", "bias_hh", "logstd")):
            return 0.2 * noise
        if len(shape) == 2 or "patch_embed" in name:
            sharper = 3 if "proj_q" in name or "proj_k" in name else 1  # maps that are not flat
            return sharper * noise * noise[0].numel() ** -0.5
        return noise

    return {name: values(name, shape) for name, shape in shapes.items()}


# No output in evaluation depends on these: nothing is masked, and a bias of all queries alike cancels in the softmax over slots
UNSEEN = {"m.decode.mask_token", "m.aggregat.norm1q.bias"}
SMALL = dict(  # the sizes of the measured numbers, on the backbone without weights
    backbone="fourier", fourier_dim=12, fourier_stride=8, backbone_size=32, image_size=32, num_slots=3, slot_dim=8, slot_mlp_dim=16,
    decoder_layers=2, decoder_heads=2, decoder_mlp_dim=24,
)  # fmt: skip
SMALL_SHAPES = published_shapes(depth=0, layers=2, dim=12, slot_dim=8, slot_mlp_dim=16, mlp_dim=24, locations=16)
SHALLOW = dict(backbone_arguments='{"final_norm": false, "depth": 2}', decoder_layers=2)  # of the true width


@pytest.fixture
def small():
    return random_state(SMALL_SHAPES)


@pytest.fixture(scope="module")
def shallow():
    return random_state(published_shapes(depth=2, layers=2))


@pytest.fixture(scope="module")
def full():
    return random_state(published_shapes())


@pytest.fixture(scope="module")
def full_file(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "42-0027.pth"
    torch.save(full, path)
    yield path
    path.unlink(missing_ok=True)


def test_the_names_written_out_here_are_as_many_as_the_published_ones():
    shapes = {name: torch.Size(shape).numel() for name, shape in published_shapes().items()}
    backbone = [count for name, count in shapes.items() if name.startswith("m.encode_backbone.1.")]
    assert (len(shapes), sum(shapes.values())) == (242, 32_898_176)
    assert (len(backbone), sum(backbone)) == (173, 21_629_184)
    counts = {"m.encode_project": 296_448, "m.initializ": 512, "m.aggregat": 1_184_256, "m.decode": 9_787_776}
    for part, count in counts.items():
        assert sum(count for name, count in shapes.items() if name.startswith(f"{part}.")) == count


def test_full_size_files_load_strictly(full, full_file, tmp_path):
    model = reference.load(full_file)
    assert not model.training and model.config.num_slots == 7 and model.config.merging == "none"
    assert model.config.distillation == "release" and model.source == str(full_file)
    state = model.state_dict()
    assert len(state) == 242 and sum(value.numel() for value in state.values()) == 32_898_176
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(
        parameter.requires_grad for name, parameter in model.named_parameters() if not name.startswith("backbone.")
    )
    save_file(full, tmp_path / "same.safetensors")
    again = reference.load(str(tmp_path / "same.safetensors"), preset="clevrtex")
    (tmp_path / "same.safetensors").unlink()  # nothing stays mapped to the file
    assert again.config.num_slots == 11
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    for ours, theirs in zip(("decoder.mask_token", "aggregator.norm_slots.bias"), sorted(UNSEEN, reverse=True)):
        assert torch.equal(state[ours].cpu(), full[theirs])


# The measured numbers, through the published names


def measured_state():
    return measured(random_state(SMALL_SHAPES), "m.aggregat.", "m.decode.")


KEEP = torch.tensor([[True, True, False], [True, True, True]])


@torch.no_grad()
def test_measured_numbers_of_slot_attention_and_decoder():
    model = reference.load(measured_state(), device="cpu", **SMALL)
    features = wave(2, 16, 12)
    slots, attention = model.aggregator(features, wave(2, 3, 8, phase=1))
    close(slots.sum(), 3.710116)
    close(slots.abs().sum(), 31.29826)
    close(slots.flatten()[:4], -0.421462, 1.109288, 1.406338, -0.30969)
    close(slots.flatten()[-2:], 0.555998, -0.262425)
    close(attention[0].flatten()[:4], 0.352877, 0.321033, 0.319507, 0.352612)
    close(attention[1].flatten()[:4], 0.325634, 0.331936, 0.339265, 0.329457)
    close(attention[2].flatten()[:4], 0.343488, 0.330993, 0.327422, 0.340942)
    reconstruction, decoded = model.decoder(features, slots)
    close(reconstruction.sum(), -6.301358)
    close(reconstruction.abs().sum(), 345.009396)
    close(reconstruction.flatten()[:4], -1.410266, 0.626065, 1.241295, -1.826186)
    close(decoded.flatten()[:4], 0.287171, 0.362995, 0.376515, 0.285632)
    reconstruction, decoded = model.decoder(features, slots, KEEP)
    close(reconstruction.sum(), -6.38128)
    close(decoded.flatten()[:4], 0.404821, 0.566166, 0.602327, 0.400663)
    masked, attention = model.aggregator(features, wave(2, 3, 8, phase=1), KEEP)
    close(masked.sum(), 3.666926)
    close(attention[-1].flatten()[:4], 0.527619, 0.494423, 0.484205, 0.520182)


# The released forward pass in evaluation, in plain torch


def plain_forward(state, images, noise=None, slots=None, iterations=3):
    """features, slots, attention of each iteration, reconstruction and decoder attention, from the published tensors."""
    state = {name.removeprefix("m."): value for name, value in state.items()}

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), eps)

    pixels = F.interpolate(images, scale_factor=0.875, mode="bicubic", align_corners=False)
    vit = "encode_backbone.1"
    x = F.conv2d(pixels, state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"], stride=14)
    B, C, h, w = x.shape
    x = x.flatten(2).transpose(1, 2) + state[f"{vit}.pos_embed"]
    prefix = (state[f"{vit}.{name}_token"].expand(B, -1, -1) for name in ("cls", "reg"))
    x = torch.cat([*prefix, x], dim=1)
    blocks = 1 + max(int(name.split(".")[3]) for name in state if ".blocks." in name)
    for block in (f"{vit}.blocks.{number}" for number in range(blocks)):
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (6, C // 6)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(2, 3) * (C // 6) ** -0.5).softmax(dim=-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        hidden = F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
    features = x[:, 5:]  # no final norm

    tokens = F.gelu(linear(norm(features, "encode_project.0"), "encode_project.1"))
    tokens = norm(linear(tokens, "encode_project.3"), "aggregat.norm1kv")
    key, value = linear(tokens, "aggregat.proj_k"), linear(tokens, "aggregat.proj_v")
    slots = state["initializ.mean"] + noise * state["initializ.logstd"].exp() if slots is None else slots
    D, maps = slots.shape[-1], []
    for _ in range(iterations):
        query = linear(norm(slots, "aggregat.norm1q"), "aggregat.proj_q") * D**-0.5
        maps.append(torch.einsum("bnd,bld->bnl", query, key).softmax(dim=1))
        mean = torch.einsum("bnl,bld->bnd", maps[-1] / (maps[-1].sum(dim=2, keepdim=True) + 1e-5), value)
        from_input = F.linear(mean, state["aggregat.rnn.weight_ih"], state["aggregat.rnn.bias_ih"]).chunk(3, dim=-1)
        from_state = F.linear(slots, state["aggregat.rnn.weight_hh"], state["aggregat.rnn.bias_hh"]).chunk(3, dim=-1)
        reset, update = (torch.sigmoid(a + b) for a, b in zip(from_input[:2], from_state[:2]))
        slots = (1 - update) * torch.tanh(from_input[2] + reset * from_state[2]) + update * slots
        slots = slots + linear(F.gelu(linear(norm(slots, "aggregat.norm2"), "aggregat.ffn.0")), "aggregat.ffn.2")

    stack = "decode.backbone."
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{stack}layers."))
    layer = nn.TransformerDecoderLayer(
        C, 4, 4 * C, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
    )
    decoder = nn.TransformerDecoder(layer, layers)
    decoder.layers[0].norm1 = nn.Identity()  # it stands before the stack, as norm0
    tensors = {name.removeprefix(stack): value for name, value in state.items() if name.startswith(stack)}
    assert tensors.keys() == decoder.state_dict().keys()
    last, decoded = decoder.layers[-1].multihead_attn, []
    last.register_forward_pre_hook(
        lambda module, inputs, options: (inputs, options | {"need_weights": True}), with_kwargs=True
    )
    last.register_forward_hook(lambda module, inputs, outputs: decoded.append(outputs[1].transpose(1, 2)))
    query = norm(linear(features, "decode.project1.0"), "decode.project1.1") + state["decode.posit_embed._pe"]
    memory = norm(linear(slots, "decode.project2.0"), "decode.project2.1")
    reconstruction = torch.func.functional_call(decoder.eval(), tensors, (norm(query, "decode.norm0"), memory))
    grid = lambda x: x.unflatten(-1, (h, w))  # noqa: E731
    return {
        "features": grid(features.transpose(1, 2)), "slots": slots, "attention": grid(torch.stack(maps)),
        "reconstruction": grid(reconstruction.transpose(1, 2)), "decoder_attention": grid(decoded[0]),
    }  # fmt: skip


def deviations(output, expected):
    """Largest deviation of each output, relative to the largest value; of each iteration for the attention."""
    pairs = {name: (getattr(output, name).cpu(), value) for name, value in expected.items() if name != "attention"}
    pairs |= {
        f"attention {number}": pair for number, pair in enumerate(zip(output.attention.cpu(), expected["attention"]), 1)
    }
    assert all(ours.shape == theirs.shape for ours, theirs in pairs.values())
    return {name: float((ours - theirs).abs().max() / theirs.abs().max()) for name, (ours, theirs) in pairs.items()}


def photos(count):
    return torch.randn(count, 3, 256, 256, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize("start", ["noise", "slots"])
def test_outputs_are_those_of_a_plain_forward_pass(start, shallow):
    model = reference.load(shallow, device="cpu", **SHALLOW)
    images, random = photos(2), torch.Generator().manual_seed(4)
    if start == "noise":
        draws = model.draw([0, 5], seed=1)
        output, expected = model(images, draws=draws), plain_forward(shallow, images, noise=draws["slots"])
    else:
        slots = torch.randn(2, 4, 256, generator=random)
        output, expected = model(images, initial_slots=slots), plain_forward(shallow, images, slots=slots)
    assert max(deviations(output, expected).values()) < 1e-4
    assert output.keep.all() and output.attention.amax(dim=2).mean() > 0.5  # the maps are far from flat


@torch.no_grad()
def test_full_size_outputs_are_those_of_a_plain_forward_pass(full, full_file, record_property):
    model = reference.load(full_file, device="cpu")
    draws = model.draw([0], seed=42)
    found = deviations(model(photos(1), draws=draws), plain_forward(full, photos(1), noise=draws["slots"]))
    record_property("deviations", found)
    print(found)
    assert max(found.values()) < 1e-4


def test_every_published_tensor_counts_in_that_comparison(shallow):
    """Else a tensor at a wrong place could go unseen: a change of 1 % in any tensor is more than the tolerance."""
    state = {name: value.clone().requires_grad_() for name, value in shallow.items()}
    noise = torch.randn(1, 4, 256, generator=torch.Generator().manual_seed(4))
    outputs = plain_forward(state, photos(1), noise=noise)
    random = torch.Generator().manual_seed(5)
    total = sum(
        (value * torch.randn(value.shape, generator=random)).sum() / value.abs().max() for value in outputs.values()
    )
    gradients = torch.autograd.grad(total, list(state.values()), allow_unused=True)
    effects = {
        name: 0.0 if g is None else float(0.01 * (g * shallow[name]).norm()) for name, g in zip(state, gradients)
    }
    assert {name for name, effect in effects.items() if effect < 1e-3} == UNSEEN


# Versions and kinds of the same file


def test_older_names_and_bare_names_are_understood(small):
    expected = reference.load(small, **SMALL).state_dict()
    older = {name.replace("posit_embed._pe", "posit_embed.pe"): value for name, value in small.items()}
    bare = {name.removeprefix("m."): value for name, value in older.items()}
    for state in (older, bare):
        assert "m.decode.posit_embed._pe" not in state
        found = reference.load(state, **SMALL).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"1 unknown: m\.decode\.posit_embed\.pe$"):
        reference.load(small | older, **SMALL)
    mixed = dict(small)
    mixed["initializ.mean"] = mixed.pop("m.initializ.mean")
    with pytest.raises(ValueError, match=r"1 missing: m\.initializ\.mean; 1 unknown: initializ\.mean$"):
        reference.load(mixed, **SMALL)


def test_the_schedules_of_an_early_experiment_are_ignored_and_it_says_so(small):
    state = small | {"m.clust_prob": torch.tensor(1.0), "m.thresh": torch.tensor(0.1)}
    with pytest.warns(UserWarning, match=r"m\.clust_prob, m\.thresh ignored"):
        reference.load(state, **SMALL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, small):
    state = {name: value.to(dtype) for name, value in small.items()}
    model = reference.load(state, device="cpu", **SMALL)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert torch.equal(model.aggregator.gru.weight_hh, state["m.aggregat.rnn.weight_hh"].float())


def test_the_given_state_dict_stays_as_it_is(small):
    before = {name: value.clone() for name, value in small.items()}
    model = reference.load(small, device="cpu", **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert small.keys() == before.keys() and all(torch.equal(small[name], before[name]) for name in before)


def test_position_tables_of_another_size_are_resized_and_it_says_so(shallow):
    fields = SHALLOW | {"image_size": 168, "backbone_size": 168, "device": "cpu"}
    with pytest.warns(UserWarning, match="16x16 to 12x12") as warned:
        model = reference.load(shallow, **fields)
    assert len(warned) == 2
    for ours, theirs in (
        (model.decoder.position, "decode.posit_embed._pe"),
        (model.backbone.model.pos_embed, "encode_backbone.1.pos_embed"),
    ):
        square = shallow[f"m.{theirs}"].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
        expected = F.interpolate(square, size=(12, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours.detach().transpose(1, 2).unflatten(2, (12, 12)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(torch.zeros(1, 3, 168, 168)).attention.shape == (3, 1, 7, 12, 12)
    wrong = shallow | {"m.decode.posit_embed._pe": torch.zeros(1, 250, 384)}
    with pytest.raises(ValueError, match=re.escape("m.decode.posit_embed._pe is (1, 250, 384), not (1, 256, 384)")):
        reference.load(wrong, **SHALLOW)


def test_the_complete_form_runs_on_published_weights(small):
    model = reference.load(small, form="complete", merge_threshold=2.0, min_kept=1, device="cpu", **SMALL)
    output = model(torch.randn(2, 3, 32, 32))
    assert model.config.merging == "reinitialize" and output.keep.sum(dim=1).tolist() == [1, 1]


# What is no published checkpoint


def test_all_that_does_not_fit_is_listed_at_once(small):
    for name in (
        "aggregat.norm1q.weight",
        "aggregat.norm1q.bias",
        "initializ.mean",
        "encode_project.0.weight",
        "decode.norm0.weight",
    ):
        del small[f"m.{name}"]
    small |= {"m.extra": torch.zeros(1), "m.more": torch.zeros(2)}
    small["m.aggregat.proj_q.weight"] = torch.zeros(8, 9)
    small["m.aggregat.ffn.0.bias"][3] = float("nan")
    small["m.aggregat.ffn.2.bias"] = torch.zeros(8, dtype=torch.int64)
    small["m.decode.mask_token"] = "hello"
    with pytest.raises(ValueError) as caught:
        reference.load(small, **SMALL)
    message = str(caught.value)
    assert "5 missing: m.encode_project.0.weight, m.initializ.mean, " in message and message.count("...") == 1
    assert "2 unknown: m.extra, m.more" in message and "4 wrong: " in message
    assert "m.aggregat.proj_q.weight is (8, 9), not (8, 8)" in message
    assert "m.aggregat.ffn.0.bias holds NaN or infinities" in message
    assert "m.aggregat.ffn.2.bias holds no dense floats, but torch.int64" in message
    assert "m.decode.mask_token is a str, no tensor" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_value_that_is_not_finite_is_found(value, small):
    name = "m.decode.backbone.layers.1.linear2.weight"
    small[name][3, 5] = value
    with pytest.raises(ValueError, match=re.escape(f"1 wrong: {name} holds NaN")):
        reference.load(small, **SMALL)
    beyond_float32 = small | {name: torch.full((12, 24), 1e300, dtype=torch.float64)}
    with pytest.raises(ValueError, match=re.escape(f"1 wrong: {name} holds NaN or infinities")):
        reference.load(beyond_float32, **SMALL)


def test_weights_of_others_are_named(small, tmp_path):
    smooth = small | {"m.initializ.logstd2": torch.zeros(1, 1, 8), "m.initializ.detach_flag": torch.tensor(True)}
    with pytest.raises(ValueError, match=r"2 unknown: m\.initializ\.logstd2, .*; these are the weights of SmoothSA"):
        reference.load(smooth, **SMALL)
    model = reference.load(small, device="cpu", **SMALL)
    reference.save(model, tmp_path / "run")
    with pytest.raises(ValueError, match=r"give its run directory"):
        reference.load(tmp_path / "run" / "checkpoints" / "0" / "weights.safetensors", **SMALL)
    wrapped = {name.replace("m.", "module.", 1): value for name, value in small.items()}
    with pytest.raises(ValueError, match=rf"{len(small)} missing: encode_project.*{len(small)} unknown: module\."):
        reference.load(wrapped, **SMALL)


@pytest.mark.parametrize(
    "state, words",
    [
        ({}, "missing"),
        ({"state_dict": {"m.a": 1}, "epoch": 3}, "2 unknown: state_dict, epoch"),
        ({1: torch.zeros(2)}, "no state dict"),
        ([torch.zeros(2)], "no state dict .* but a list"),
        (torch.zeros(2), "no state dict .* but a Tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, words, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth .*{words}"):
        reference.load(tmp_path / "other.pth", **SMALL)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_nothing_in_a_file_is_executed(write, small, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "hostile.pth"
    write(small | {"m.initializ.mean": Payload()}, path)
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    (tmp_path / "executed").rmdir()  # the payload works, where somebody lets it
    with pytest.raises(ValueError, match="nothing in it was executed") as caught:
        reference.load(path, **SMALL)
    assert not (tmp_path / "executed").exists()
    assert "weights_only" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_and_empty_files_are_refused(suffix, share, small, tmp_path):
    path = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(small, path)
    reference.load(path, **SMALL)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=rf"cut{re.escape(suffix)} is no checkpoint that can be read.*another file of the release"
    ):
        reference.load(path, **SMALL)


def test_the_older_file_format_of_torch_loads(small, tmp_path):
    torch.save(small, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    reference.load(tmp_path / "older.pth", **SMALL)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(method="diaz"), "did you mean 'dias'"),
        (dict(method=None), "there are: dias"),
        (dict(preset="cocoo"), "did you mean 'coco'"),
        (dict(num_slotz=3), "did you mean 'num_slots'"),
        (dict(backbone_weights="pretrained"), "backbone_weights cannot be given"),
        (dict(SMALL, decoder="mlp"), "nothing like decoder.mlp.0.weight"),
        (dict(SMALL, initializer="separate"), r"m.initializ.mean is \(1, 1, 8\), not \(1, 3, 8\)"),
        (dict(preset="shapes"), "missing|wrong"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, small):
    with pytest.raises(ValueError, match=words):
        reference.load(small, **arguments)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(ValueError, match=f"there is no file {path}; unpack"):
            reference.load(path)


# In our own format


@torch.no_grad()
def test_saved_as_a_run_it_comes_back_bit_for_bit(shallow, small_scenes, tmp_path):
    torch.save(shallow, tmp_path / "42-0027.pth")
    model = reference.load(tmp_path / "42-0027.pth", device="cpu", preset="voc", **SHALLOW)
    assert reference.save(model, tmp_path / "run") == tmp_path / "run"
    (tmp_path / "42-0027.pth").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")  # nothing in it depends on where it is
    again = checkpoint.load_model(tmp_path / "moved")
    assert again.config == model.config and not again.training and runs.state(tmp_path / "moved") == "done"
    draws = model.draw([0, 1], seed=2)
    ours, theirs = (one(photos(2), draws=draws) for one in (again, model))
    for name in ("features", "slots", "attention", "keep", "reconstruction", "decoder_attention"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    scores = evaluate(tmp_path / "moved", small_scenes / "test.lmdb", limit=1).scores
    assert (
        json.loads((tmp_path / "moved" / "scores" / "test-dias-first1.json").read_text())["images"]
        == scores["images"]
        == 1
    )
    row = runs.collect(tmp_path).iloc[0]
    assert row["state"] == "done" and row["reference"].endswith("42-0027.pth")
    features = model(photos(1)).features
    assert torch.equal(with_fields(again, num_slots=3)(photos(1)).features, features)
    assert torch.equal(again.untrained()(photos(1)).features, features)
    assert not torch.equal(again.untrained().decoder.position, model.decoder.position)


def test_a_run_is_not_written_over_and_other_models_are_not_saved(small, small_config, tmp_path):
    model = reference.load(small, device="cpu", **SMALL)
    reference.save(model, tmp_path)
    with pytest.raises(ValueError, match="holds a run already"):
        reference.save(model, tmp_path)
    with pytest.raises(ValueError, match="only published models"):
        reference.save(build(small_config), tmp_path / "other")
    with pytest.raises(ValueError, match="not trained on"):
        fit(model.config.replace(data=small_config.data), tmp_path)


def test_a_backbone_that_waits_for_its_checkpoint_gives_no_features(shallow):
    config = reference.load(shallow, device="cpu", **SHALLOW).config
    assert config.backbone_weights == "checkpoint"
    with pytest.raises(RuntimeError, match="load_model"):
        build(config)(photos(1))


# The shell


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:  # tyro's own refusals
        return stop.code


def test_evaluate_and_trace_a_published_file(full_file, small_scenes, tmp_path, capsys):
    words = ("--reference", full_file, "--method", "dias", "--preset", "voc")
    assert run("evaluate", *words, "--data", small_scenes, "--limit", 2) == 0
    written = full_file.with_name("42-0027.pth.scores") / "test-dias-first2.json"
    printed = capsys.readouterr().out
    assert f"wrote {written}" in printed and "2 images of test, protocol dias" in printed
    scores = json.loads(written.read_text())
    assert scores["about"]["reference"] == str(full_file) and scores["about"]["config"]["num_slots"] == 6
    model = reference.load(full_file, preset="voc")
    assert evaluate(model, small_scenes / "test.lmdb", limit=2).scores["decoder"] == pytest.approx(scores["decoder"])
    out = tmp_path / "elsewhere" / "scores.json"
    assert (
        run("evaluate", *words, "--data", small_scenes / "test.lmdb", "--limit", 1, "--protocol", "spot", "--out", out)
        == 0
    )
    assert json.loads(out.read_text())["protocol"] == "spot"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.jpg")
    assert run("trace", *words, "--images", tmp_path / "photo.jpg", "--out", tmp_path / "maps.npz") == 0
    trace = AttentionTrace.load(tmp_path / "maps.npz")
    assert trace.attention.shape == (3, 1, 6, 16, 16) and trace.about["run"] == str(full_file)


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "--run-dir RUN or --reference FILE"),
        ("--run-dir x --reference FILE --preset coco", "only one"),
        ("--reference FILE", "give --preset coco, voc or clevrtex"),
        ("--run-dir x --preset coco", "belong to --reference"),
        ("--run-dir x --method dias", "belong to --reference"),
        ("--reference FILE --preset cocoo", "did you mean 'coco'"),
        ("--reference FILE --preset coco --method diaz", "did you mean 'dias'"),
        ("--reference FILE --preset coco", "does not hold a published dias model"),
        ("--reference nowhere.pth --preset coco", "there is no file"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate --data SCENES", "trace --images PHOTO --out maps.npz"])
def test_the_shell_refuses_before_anything_starts(
    command, words, message, small, small_scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(small, tmp_path / "small.pth")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "photo.jpg")
    places = {"FILE": tmp_path / "small.pth", "SCENES": small_scenes, "PHOTO": tmp_path / "photo.jpg"}
    assert run(*(places.get(word, word) for word in f"{command} {words}".split())) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "small.pth"]


def test_shipped_and_a_reference_are_one_too_many(tmp_path, capsys):
    assert (
        run(
            "trace",
            "--shipped",
            "--reference",
            "x.pth",
            "--preset",
            "coco",
            "--images",
            "a.jpg",
            "--out",
            tmp_path / "x.npz",
        )
        == 2
    )
    assert "only one" in capsys.readouterr().err


def test_relative_paths_start_at_the_working_directory(small, small_scenes, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    torch.save(small, tmp_path / "here" / "mine.pth")
    monkeypatch.chdir(tmp_path / "here")
    load = reference.load
    monkeypatch.setattr(reference, "load", lambda path, method, preset: load(path, method, preset, **SMALL))
    assert run("evaluate", "--reference", "mine.pth", "--preset", "coco", "--data", small_scenes, "--limit", 1) == 0
    assert (tmp_path / "here" / "mine.pth.scores" / "test-dias-first1.json").exists()
    assert "wrote mine.pth.scores" in capsys.readouterr().out
    words = "evaluate", "--reference", "mine.pth", "--preset", "coco", "--data", small_scenes, "--out"
    assert run(*words, "mine.pth/scores.json") == 2  # before the time is spent
    assert "mine.pth" in capsys.readouterr().err
