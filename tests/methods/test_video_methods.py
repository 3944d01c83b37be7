"""The neighbours for clips alone: they train, resume, are cached, evaluated, streamed and traced; what each has of its own."""

import pytest
import torch
from published import load_swollen, near, swell
from small_methods import interrupted, reached, states

from dias_lab import runs
from dias_lab.config import Config
from dias_lab.data.convert import scenes
from dias_lab.methods import build, checkpoint
from dias_lab.methods.videosaur import SlotMixer
from dias_lab.modules.decoder import MLPDecoder
from dias_lab.reference import published_names
from dias_lab.reference.names import NAMES
from dias_lab.training.loop import fit

METHODS = ("randsfq", "slotcontrast", "videosaur")
B, F, N = 2, 3, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    scenes.convert_clips(folder, train=2, validation=1, test=1, frames=2)
    return folder


def short(method, folder, **fields):
    """The preset "clips" for three steps; a clip of it is longer than those that there are."""
    given = dict(
        clip_frames=F, batch_size=2, steps=3, evaluate_every=3, evaluate_images=1, log_every=1, device="cpu", data=str(folder),
        conditioning_images=2, evaluation_iterations=4,
    )  # fmt: skip
    return Config.preset("clips", method=method, **given | fields)


VARIANTS = {
    **{method: dict(method=method) for method in METHODS},
    "randsfq, tsim": dict(method="randsfq", similarity_weight=0.1, contrast_weight=0.0),
    "steve": dict(method="steve"),
    "tfdt": dict(method="tfdt"),
    "videosaur, boxes": dict(method="videosaur", condition="boxes", num_slots=9, cache_views=0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_trains_resumes_bit_for_bit_is_evaluated_streams_and_is_traced(name, folder, tmp_path, monkeypatch):
    config = short(**VARIANTS[name], folder=folder)
    result = fit(config, tmp_path / "whole", progress=False)
    assert result["steps"] == 3 and -1 <= result["scores"]["decoder"]["video_fg_ari"] <= 1
    log = [line for line in runs.read_lines(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    similar = config.similarity_weight > 0 and config.method in ("videosaur", "randsfq")
    assert ("quantization" in log[0]) == (config.method in ("steve", "tfdt"))
    assert (("similarity" in log[0]), ("contrast" in log[0])) == (similar, config.contrast_weight > 0)
    interrupted(config, tmp_path / "again", 2, monkeypatch)
    whole, again = states(tmp_path / "whole", tmp_path / "again")
    assert all(torch.equal(whole[one], again[one]) for one in whole)
    assert not any(torch.equal(whole[one], first) for one, first in build(config).state_dict().items() if "transition.layer.mlp" in one)

    model, images = checkpoint.load_model(tmp_path / "whole"), torch.randint(0, 255, (1, 3, 3, 128, 128), dtype=torch.uint8)
    more = dict(boxes=torch.rand(1, 8, 4)) if config.condition == "boxes" else {}
    trace = model.trace(images, seed=1, **more)
    assert trace.about["frames"] == 3 and len(trace.attention[0]) == 3
    given, state = dict(draws=model.draw([0], 1), **more), None
    whole = model(model.prepare(images), **given)
    torch.testing.assert_close(torch.from_numpy(trace.decoder_attention).float(), whole.decoder_attention[0], atol=1e-3, rtol=0)
    for f in range(3):
        one, state = model.step(model.prepare(images[:, f]), state, **(given if f == 0 else {}))
        torch.testing.assert_close(one.slots, whole.slots[:, f], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.reconstruction, whole.reconstruction[:, f], atol=1e-5, rtol=1e-5)


# What each has of its own


@pytest.fixture
def config(small_config):
    return small_config.replace(clip_frames=F)


@pytest.fixture
def clips():
    return torch.rand(B, F, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("method, iterations, truncated", [("randsfq", (3, 1, 1), False), ("slotcontrast", (3, 3, 3), True), ("videosaur", (3, 3, 3), True)])
def test_iterations_and_gradients_are_the_releases(method, iterations, truncated, config, clips):
    model = build(config.replace(method=method)).train()
    output = model(clips, draws=model.draw(range(B), seed=1))
    assert output.iterations == iterations and model.truncate == truncated
    names = reached(model, output.reconstruction[:, -1].square().mean())
    through = {name for name in names if name.startswith("initializer")}  # RSFQ hands on no gradient
    assert bool(through) == (method != "randsfq") and any(name.startswith("transition") for name in names)


@pytest.mark.parametrize("name", ["randsfq, tsim", "videosaur"])
def test_time_similarity_teaches_the_slots(name, config, clips):
    model = build(config.replace(**VARIANTS[name])).train()
    output = model(clips, draws=model.draw(range(B), seed=1))
    assert output.similarity.shape == (B, F, 64, 8, 8) and output.reconstruction.shape == output.features.shape
    terms, weights = model.losses(output, 0.3)
    assert weights == {"reconstruction": 1.0, "similarity": 0.1}
    names = reached(model, terms["similarity"])
    assert {"aggregator.to_key.weight", "project.1.weight", "transition.layer.mlp.0.weight"} <= names
    assert (name == "videosaur") or {"readout.weight", "readout.bias"} <= names
    assert {id(one) for group in model.parameter_groups() for one in group["params"]} == {id(one) for one in model.parameters() if one.requires_grad}
    assert model.losses(model(clips[:, :1]), 0.3)[1] == {"reconstruction": 1.0}  # of one frame there is none


def test_what_is_reconstructed_alone_has_no_logits(config, clips):
    model = build(config.replace(method="videosaur", similarity_weight=0.0))
    output = model(clips)
    assert output.similarity is None and model.decoder.render[-1].out_features == 16
    assert model.losses(output, 0.3)[1] == {"reconstruction": 1.0}


@pytest.mark.parametrize("method", (*METHODS, "steve", "tfdt"))
def test_boxes_alone_are_the_slots_and_padding_is_a_box_of_size_0(method, config, clips):
    model = build(config.replace(method=method, condition="boxes", codebook_size=16)).train()
    assert not any(name.startswith("initializer") for name, _ in model.named_parameters())
    boxes = torch.rand(B, 4, 4)
    boxes[:, 2:] = -1
    output, zeros = (model(clips, boxes=one, draws=model.draw(range(B), seed=1)) for one in (boxes, boxes.clamp_min(0)))
    assert output.slots.shape == (B, F, 4, 12) and output.keep.all() and torch.equal(output.slots, zeros.slots)
    assert not torch.equal(*output.slots.unbind(2)[2:])  # dropout tells them apart, in training alone
    output = model.eval()(clips, boxes=boxes)
    assert torch.equal(*output.slots.unbind(2)[2:])
    with pytest.raises(ValueError, match="6 rows of boxes for num_slots = 5: each is a slot"):
        model(clips, boxes=torch.rand(B, 6, 4))
    with pytest.raises(ValueError, match='condition is "boxes": give those of the first frame'):
        model(clips)


def test_evaluation_starts_from_the_means_of_separate_gaussians(config, clips):
    for method, differ in (("randsfq", True), ("slotcontrast", False), ("videosaur", False)):
        model = build(config.replace(method=method)).eval()
        a, b = (model(clips, draws=model.draw(range(B), seed=seed)).slots for seed in (1, 2))
        assert torch.equal(a, b) != differ


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_shorter_than_the_window_is_taken_as_it_is(method, config, clips):
    """What it lacks is missed by nothing: its frames are what they are at the start of a longer one."""
    model = build(config.replace(method=method)).eval()
    draws = model.draw(range(B), seed=1)
    whole = model(clips, draws=draws)
    for frames in (1, 2):
        torch.testing.assert_close(model(clips[:, :frames], draws=draws).slots, whole.slots[:, :frames], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="F at least 1"):
        model(clips[:, :0])


def test_logits_of_a_long_clip_are_joined(config, clips, monkeypatch):
    model = build(config.replace(method="videosaur")).eval()
    whole = model(clips)
    monkeypatch.setattr("dias_lab.methods.clip.AT_ONCE", 2)
    torch.testing.assert_close(model(clips).similarity, whole.similarity, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(method="videosaur", decoder="mlp", decoder_locations=7), "the decoder is videosaur's own"),
        (dict(method="videosaur", decoder_heads=5), "decoder_heads = 5 does not divide the slots' width 12, which the heads share"),
        (dict(method="randsfq", decoder="mlp", decoder_locations=7, similarity_weight=0.1), "told at every location, and decoder_locations is 7"),
        (dict(method="slotcontrast", next_iterations=4), "next_iterations is 4, and must not exceed the 3"),
        (dict(method="videosaur", similarity_threshold=2.0), "similarity_threshold is a cosine from -1 to 1"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(fields, words, config):
    with pytest.raises(ValueError, match=words):
        build(config.replace(**fields))


@pytest.mark.parametrize("method", ["steve", "tfdt"])
def test_codes_are_the_target_of_all_frames(method, config, clips):
    model = build(config.replace(method=method, codebook_size=16, code_dim=10)).train()
    draws, frames = model.draw(range(B), seed=1), torch.tensor([[True] * F, [True, False, False]])
    output = model(clips, draws=draws, frames=frames)
    assert output.logits.shape == (B, F, 16, 8, 8) and output.features.shape == output.reconstruction.shape == (B, F, 10, 8, 8)
    terms, weights = model.losses(output, 0.3)
    assert weights == {"reconstruction": 1.0, "quantization": 1.0, "perplexity": 0.0}
    changed = clips.clone()
    changed[1, 1:] += 3
    other = model.losses(model(changed, draws=draws, frames=frames), 0.3)[0]
    torch.testing.assert_close(terms["reconstruction"], other["reconstruction"])
    names = reached(model, terms["reconstruction"])
    assert {"aggregator.to_key.weight", "transition.layer.mlp.0.weight", "decoder.readout.weight"} <= names
    assert not any(name.startswith("quantizer") for name in names) and reached(model, terms["quantization"]) <= {
        name for name, _ in model.named_parameters() if name.startswith("quantizer")
    }  # fmt: skip
    images = build(model.config.replace(clip_frames=0, method={"steve": "slate", "tfdt": "vqdino"}[method], code_dim=10)).train()
    images.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("transition.")})
    theirs = images(clips[:, 0], draws={name: value if name == "slots" else value[:, 0] for name, value in draws.items() if name != "transition"})
    torch.testing.assert_close(output.logits[:, 0], theirs.logits)


def test_pixels_are_needed_where_codes_come_from_them(config, clips):
    model = build(config.replace(method="steve", codebook_size=16, code_dim=10)).eval()
    features, draws = model.encode(clips), model.draw(range(B), seed=1)
    with pytest.raises(ValueError, match="come from pixels: give the images"):
        model(None, features=features)
    both = model(clips, features=features, draws=draws)  # as on a GPU
    assert torch.equal(both.logits, model(clips, draws=draws).logits)
    with pytest.raises(ValueError, match="steve's tokens come from pixels, and a cache keeps features alone"):
        config.replace(method="steve", cache_views=1)
    with pytest.raises(ValueError, match="steve quantises pixels: code_dim must be above 0"):
        config.replace(method="steve", code_dim=0)


# The measured numbers of the decoders


def measured(decoder, method):
    theirs = lambda name: published_names(f"decoder.{name}", NAMES[f"{method} clips"])[0].removeprefix("decode.")  # noqa: E731
    return load_swollen(decoder, theirs), swell(2, 3, 8, phase=1), torch.zeros(2, 16, 12, dtype=torch.float64)


@torch.no_grad()
def test_measured_numbers_of_the_slot_mixer():
    decoder, slots, features = measured(SlotMixer(20, 8, 16, 2, 4, 16), "videosaur")
    rebuilt, attention = decoder(features, slots)
    near(rebuilt, -422.295821, 2261.417325, "-4.031821 -2.895391 2.419438 0.499480", "2.779494 0.229817 -4.394592 1.188117")
    near(attention, None, None, "0.352020 0.200560 0.422880 0.183574", "0.397929 0.310663 0.368332 0.378504")
    keep = torch.tensor([[True, True, False]] * 2)
    assert (decoder(features, slots, keep)[1][:, 2] == 0).all()
    torch.testing.assert_close(decoder(features, slots, keep)[0], decoder(features, slots[:, :2])[0])


@torch.no_grad()
def test_measured_numbers_of_the_broadcast_decoder():
    decoder, slots, features = measured(MLPDecoder(12, 8, 16, 3, 16), "slotcontrast")
    rebuilt, attention = decoder(features, slots)
    near(rebuilt, -183.978960, 785.141641, "-3.169307 0.183539 1.967110 0.854553", "-3.269772 3.353552 0.894780 -5.441122")
    near(attention, None, None, "0.003809 0.002445 0.043950 0.061517", "0.479086 0.416945 0.216293 0.305037")
