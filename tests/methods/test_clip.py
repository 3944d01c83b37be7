"""What all methods for clips promise: the image model on the first frame, streams equal clips, padding does not count."""

import pickle

import pytest
import torch
from small_methods import reached

from dias_lab.config import Config, method_class
from dias_lab.data.draws import draw
from dias_lab.methods import build, clip
from dias_lab.methods.clip import ClipMethod, ClipOutput
from dias_lab.trace import CLIP_AXES

BOTH = ("dias", "smoothsa")  # for images, too
METHODS = (*BOTH, "randsfq", "slotcontrast", "videosaur")
FIELDS = ("features", "slots", "attention", "keep", "reconstruction", "decoder_attention", "leader")
B, F, N = 2, 4, 5


@pytest.fixture
def config(small_config):
    """Slots are redundant, so that some are left out."""
    return small_config.replace(clip_frames=F, merge_threshold=1.0, min_kept=2, transition_frames=3, transition_dropout=0.3)


@pytest.fixture
def clips():
    """Prepared clips [2 4 3 128 128] that change from frame to frame."""
    return torch.rand(B, F, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


def other(config, method, **fields):
    """The same for a method, whose own transition is not wanted."""
    return config.replace(method=method, **{"transition": config.transition, "transition_dropout": 0.3, **fields})


def same(ours, theirs, fields=FIELDS, **tolerance):
    for name in fields:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda said, name=name: f"{name}: {said}", **tolerance)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", BOTH)
def test_a_clip_of_one_frame_is_what_the_image_method_makes_of_it(method, training, config, clips):
    ours, image = build(other(config, method)).train(training), build(other(config, method, clip_frames=0)).train(training)
    assert isinstance(ours, ClipMethod) and type(ours).__mro__[2] is type(image)
    own = ours.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in image.state_dict().items())  # the same names, and initial values
    draws, theirs = ours.draw(range(B), seed=1, frames=1), image.draw(range(B), seed=1)
    assert all(torch.equal(draws[name].view_as(theirs[name]), theirs[name]) for name in theirs)
    output, expected = ours(clips[:, :1], draws=draws), image(clips[:, 0], draws=theirs)
    assert isinstance(output, ClipOutput)
    same(output.frame(0), expected)
    (losses, weights), (wanted, their_weights) = ours.losses(output, 0.3), image.losses(expected, 0.3)
    assert weights == their_weights and losses.keys() == wanted.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], wanted[name])


STREAMS = [
    dict(),
    dict(transition="identity", next_iterations=2),
    dict(transition="rsfq"),
    dict(transition="rsfq", transition_frames=9),
    dict(refresh=2),
    dict(merging="none", num_iterations=4),
    dict(condition="boxes"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", STREAMS, ids=str)
def test_a_stream_gives_what_the_whole_clip_gives(fields, method, config, clips):
    model, state = build(other(config, method, **fields)).eval(), None
    more = dict(draws=model.draw(range(B), seed=1), boxes=torch.rand(B, N - 1, 4) if "condition" in fields else None)
    whole = model(clips, **more)
    assert whole.attention.shape[:3] == (model.config.num_iterations, B, F) and whole.slots.shape[:2] == (B, F)
    for f in range(F):
        output, state = model.step(clips[:, f], state, **(more if f == 0 else {}))
        same(output, whole.frame(f), atol=1e-5, rtol=1e-5)
        assert state.frame == f + 1 and not state.slots.requires_grad


@pytest.mark.parametrize("fields", [{}, dict(refresh=3), dict(transition="rsfq", transition_frames=4)], ids=str)
def test_a_state_does_not_grow(fields, config, clips):
    model, state, sizes = build(config.replace(**fields)).eval(), None, []
    for number in range(12):
        _, state = model.step(clips[:, number % F], state)
        tensors = [state.keep, state.leader, state.initial, *state.past.slots, *state.past.projected]
        sizes.append(sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values()))
    assert len(set(sizes[4:])) == 1 and state.frame == 12


def test_what_belongs_to_the_first_frame_is_refused_later(config, clips):
    model = build(config).eval()
    _, state = model.step(clips[:, 0])
    for name, value in (("keep", torch.ones(B, N, dtype=torch.bool)), ("initial_slots", torch.zeros(B, N, 12)), ("boxes", torch.zeros(B, 4, 4))):
        with pytest.raises(ValueError, match="first frame: give them with state=None"):
            model.step(clips[:, 1], state, **{name: value})
    with pytest.raises(ValueError, match="the state is of 2 streams, and the frames are 1"):
        model.step(clips[:1, 1], state)
    with pytest.raises(ValueError, match=r"one frame of each stream, float .* got float32 \[2, 4, 3"):
        model.step(clips)
    with pytest.raises(ValueError, match=r"as model.prepare gives it, got uint8 \[2, 3, 128, 128\]"):
        model.step((clips[:, 0] > 0).to(torch.uint8))


@pytest.mark.parametrize("shape", [(2, 3, 128, 128), (2, 0, 3, 128, 128)])
def test_what_is_no_clip_is_refused(shape, config):
    model = build(config)
    for given in (dict(images=torch.zeros(shape)), dict(images=None, features=torch.zeros(shape))):
        with pytest.raises(ValueError, match=r"clips are \[B F 3 R R\].*F at least 1"):
            model(**given)
    with pytest.raises(ValueError, match=r"frames must be bool \[B F\], here \[1, 2\], got \[1, 3\]"):
        model(torch.zeros(1, 2, 3, 128, 128), frames=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"keep must be bool \[B N\], here \[1, 5\], got \[5\]"):
        model(torch.zeros(1, 2, 3, 128, 128), keep=torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize("method", METHODS)
def test_a_long_clip_is_taken_in_pieces(method, config, clips, monkeypatch):
    model = build(other(config, method, transition="rsfq", refresh=3)).eval()
    draws, seen = model.draw(range(B), seed=2), []
    whole = model(clips, draws=draws)
    monkeypatch.setattr(clip, "AT_ONCE", 3)  # of two clips: one frame at a time
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    again = model(clips, draws=draws)
    assert seen == [B] * F and again.iterations == whole.iterations
    same(again, whole, atol=1e-5, rtol=1e-5)
    features = torch.cat([piece.features for piece in model.pieces(None, draws=draws, features=whole.features)], dim=1)
    assert torch.equal(features, whole.features)


def test_later_frames_have_their_first_map_in_front(config, clips):
    output = build(config.replace(num_iterations=5, next_iterations=2)).eval()(clips)
    assert output.iterations == (5, 2, 2, 2)
    first, later = output.attention[:, :, 0], output.attention[:, :, 1:]
    assert all(not torch.equal(first[t], first[t + 1]) for t in range(4))
    assert all(torch.equal(later[t], later[0]) for t in range(4)) and not torch.equal(later[4], later[0])
    torch.testing.assert_close(output.attention.sum(dim=3), torch.ones(5, B, F, 8, 8))


def test_random_numbers_are_of_the_clip_and_the_frame(config):
    model = build(config.replace(transition="rsfq"))
    draws = model.draw([3, 7], seed=1, step=2)
    assert draws["slots"].shape == (B, N, 12) and draws["order"].shape == (B, F, 64) and draws["visible"].shape == (B, F)
    assert draws["transition"].shape == (B, F, 3) and not torch.equal(draws["order"][0, 0], draws["order"][0, 1])
    longer, alone = model.draw([3, 7], seed=1, step=2, frames=6), model.draw([7], seed=1, step=2)
    for name, value in draws.items():
        assert torch.equal(alone[name][0], value[1])
        assert torch.equal(longer[name][:, :F] if name in ("order", "visible", "transition") else longer[name], value)
    requests = pickle.loads(pickle.dumps(model.requests()))  # processes that read batches draw, too
    assert all(torch.equal(value, draws[name]) for name, value in draw(1, 2, [3, 7], requests, F).items())


@pytest.mark.parametrize("fields", [{}, dict(decoder="mlp", decoder_locations=7), dict(decoder="raster")], ids=str)
def test_every_decoder_draws_on_each_frame(fields, config, clips):
    model = build(config.replace(**fields)).train()
    output = model(clips, draws=model.draw(range(B), seed=1), decoder_attention=True)
    assert output.reconstruction.shape == output.features.shape and output.decoder_attention.shape == (B, F, N, 8, 8)
    assert (output.sampled is not None) == bool(fields.get("decoder_locations"))
    losses, weights = model.losses(output, 0.3)
    sum(weights[name] * losses[name] for name in losses).backward()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [dict(), dict(next_iterations=2), dict(decoder="mlp", decoder_locations=7)], ids=str)
def test_frames_of_padding_do_not_count(fields, method, config, clips):
    fields = {} if method == "videosaur" else fields  # whose own decoder does not sample, and has next_iterations=3 already
    model = build(other(config, method, contrast_weight=0.5, transition="rsfq", **fields)).train()
    draws, frames = model.draw(range(B), seed=1), torch.tensor([[True] * F, [True, True, False, False]])
    changed = clips.clone()
    changed[1, 2:] += 3
    found = [model.losses(model(images, draws=draws, frames=frames), 0.3)[0] for images in (clips, changed)]
    assert found[0].keys() >= {"reconstruction", "contrast"}
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])
    whole = torch.ones(B, F, dtype=torch.bool)
    every = [model.losses(model(clips, draws=draws, frames=one), 0.3)[0] for one in (None, whole)]
    for name in every[0]:
        torch.testing.assert_close(every[0][name], every[1][name])
    assert not torch.allclose(found[0]["reconstruction"], every[0]["reconstruction"])


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_from_outside_holds_for_the_whole_clip(method, config, clips):
    model = build(other(config, method, refresh=2)).eval()
    keep = torch.tensor([[True, False, True, True, False], [False, True, True, True, True]])
    output = model(clips, keep=keep, draws=model.draw(range(B), seed=1))
    assert torch.equal(output.keep, keep[:, None].expand(-1, F, -1)) and output.leader is None
    gone = ~output.keep
    assert (output.attention[:, gone] == 0).all() and (output.decoder_attention[gone] == 0).all()
    for f in range(1, F):  # who is left out stays as it was
        assert torch.equal(output.slots[:, f][gone[:, f]], output.slots[:, 0][gone[:, 0]])
    with pytest.raises(ValueError, match="keep is False for every slot"):
        model(clips, keep=torch.zeros(B, N, dtype=torch.bool))


@pytest.mark.parametrize("method", METHODS)
def test_initial_slots_take_the_place_of_the_sample(method, config, clips):
    model = build(other(config, method, condition="boxes")).eval()  # boxes are not needed then
    slots = torch.randn(B, N, 12)
    a, b = (model(clips, initial_slots=slots, draws=model.draw(range(B), seed=seed)) for seed in (1, 2))
    same(a, b)


def test_boxes_come_first_and_the_others_start_from_noise(config):
    model = build(config.replace(condition="boxes")).eval()
    boxes = torch.rand(B, 3, 4)
    boxes[1, 2] = -1
    draws = model.draw(range(B), seed=1)
    slots, noise = model.sample(draws, boxes), model.initializer(B, noise=draws["slots"])
    expected = model.boxes(boxes)
    assert torch.equal(slots[:, :2], expected[:, :2]) and torch.equal(slots[0, 2], expected[0, 2])
    assert torch.equal(slots[1, 2], noise[1, 2]) and torch.equal(slots[:, 3:], noise[:, 3:])


@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_do_not_fit_are_refused(method, config, clips):
    model = build(other(config, method, condition="boxes"))
    for boxes, words in [
        (None, 'condition is "boxes": give those of the first frame'),
        (torch.rand(B, 4), r"boxes must be \[B S 4\], here \[2 S 4\], got \[2, 4\]"),
        (torch.rand(B, F, 4, 4), r"boxes must be \[B S 4\]"),
        (torch.rand(1, 4, 4), r"boxes must be \[B S 4\]"),
        (torch.rand(B, N + 1, 4), "6 rows of boxes for num_slots = 5"),
    ]:
        with pytest.raises(ValueError, match=words):
            model(clips, boxes=boxes)
    with pytest.raises(ValueError, match='this model starts without .condition="none"'):
        build(other(config, method))(clips, boxes=torch.rand(B, 4, 4))


def test_what_the_transition_lets_through(config, clips):
    """The last frame's reconstruction teaches the initializer through an encoder, and not through RSFQ."""
    for transition, through in (("identity", True), ("encoder", True), ("rsfq", False)):
        model = build(config.replace(transition=transition)).train()
        output = model(clips, draws=model.draw(range(B), seed=1))
        names = reached(model, output.reconstruction[:, -1].square().mean())
        assert any(name.startswith("initializer") for name in names) == through
        assert any(name.startswith("transition") for name in names) == (transition != "identity")


def test_contrast_is_logged_where_it_has_a_weight(config, clips):
    model = build(config.replace(contrast_weight=0.5, distillation="none"))
    losses, weights = model.losses(model(clips), 0.3)
    assert weights == {"reconstruction": 1.0, "contrast": 0.5} and losses.keys() == weights.keys()
    assert model.losses(model(clips[:, :1]), 0.3)[1] == {"reconstruction": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_a_trace_holds_the_frames_of_all_clips(method, config):
    model = build(other(config, method, refresh=2)).train()
    images = torch.randint(0, 255, (B, F, 3, 140, 160), dtype=torch.uint8)
    segments = torch.randint(0, 3, (B, F, 140, 160))
    trace = model.trace(images, segments, seed=5, names=["a", "b"], about={"run": "x"})
    assert model.training and trace.images.shape == (B * F, 140, 140, 3) and trace.segments.shape == (B * F, 140, 140)
    assert trace.about["frames"] == F and trace.about["axes"] == CLIP_AXES and trace.about["run"] == "x"
    assert trace.names[:F] == [f"a, frame {f}" for f in range(F)] and (trace.leader is not None) == (method == "dias")
    prepared, cut = model.eval().prepare(images, segments)
    assert prepared.shape == (B, F, 3, 128, 128) and cut.shape == (B, F, 128, 128)
    output = model(prepared, draws=model.draw(range(B), 5)).as_images()
    torch.testing.assert_close(torch.from_numpy(trace.attention).float(), output.attention, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.from_numpy(trace.decoder_attention).float(), output.decoder_attention, atol=1e-3, rtol=0)
    assert torch.equal(torch.from_numpy(trace.keep), output.keep)
    names = [str(number) for number in range(B * F)]
    assert model.trace(images, names=names).names == names and model.trace(images).names[F] == "clip 1, frame 0"
    with pytest.raises(ValueError, match=r"traces uint8 \[B F 3 H W\], got \[4, 3"):
        model.trace(images[0])


def test_a_trace_starts_from_boxes_where_the_model_does(config):
    model = build(config.replace(condition="boxes")).eval()
    images, boxes = torch.randint(0, 255, (B, F, 3, 128, 128), dtype=torch.uint8), torch.rand(B, 2, 4)
    trace = model.trace(images, boxes=boxes)
    output = model(model.prepare(images), boxes=boxes, draws=model.draw(range(B), 0)).as_images()
    torch.testing.assert_close(torch.from_numpy(trace.attention).float(), output.attention, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match='condition is "boxes"'):
        model.trace(images)


@pytest.mark.parametrize("method", METHODS)
def test_it_has_what_every_method_has(method, config, clips):
    model = build(other(config, method, transition="rsfq")).eval()
    trained = {id(parameter) for group in model.parameter_groups() for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert model.compiled() == [model.project, model.aggregator, model.decoder]
    with torch.no_grad():
        model.transition.time.weight += 1
    twin = model.untrained()
    assert type(twin) is type(model) and twin.backbone is model.backbone and not torch.equal(twin.transition.time.weight, model.transition.time.weight)
    again = build(model.config)
    again.load_trained_state(model.trained_state())
    same(again.eval()(clips, draws=model.draw(range(B), 1)), model(clips, draws=model.draw(range(B), 1)))


@pytest.mark.parametrize("method", ["spot", "slate", "vqdino", "dinosaur"])
def test_methods_that_are_for_images_alone_are_refused_with_those_that_are_not(method):
    with pytest.raises(ValueError, match=f"there is no method '{method}' for clips; there are: dias, randsfq, slotcontrast, "):
        build(Config.preset("clips", method=method))
    assert method_class(method)  # of images, there is one


@pytest.mark.parametrize("preset", ["clips", "ytvis", "movi_c", "movi_d", "movi_e"])
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_can_be_built(method, preset):
    model = build(Config.preset(preset, method=method, backbone_weights="random", backbone_arguments='{"depth": 1}' if preset != "clips" else "{}"))
    assert isinstance(model, ClipMethod) and hasattr(model, "boxes") == preset.startswith("movi")


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(next_iterations=4), "next_iterations is 4, and must not exceed the 3 of the first frame"),
        (dict(evaluation_iterations=2, next_iterations=3), "must not exceed the 2"),
        (dict(transition="rsfq", transition_frames=1), "transition_frames must be at least 2"),
        (dict(refresh=2, merging="none"), "refresh looks for redundant slots .* needs merging"),
        (dict(refresh=2, reinitialize_from="sample"), "refresh .* would not know who was who"),
        (dict(target="quantised"), 'target="quantised" is for images'),
        (dict(transition_heads=5), "transition_heads = 5 does not divide the slots' width 12"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, words, config):
    with pytest.raises(ValueError, match=words):
        build(config.replace(**fields))
