"""Clips without a browser: what the page is told of them, streams, films and strips; test_browser_clips.py drives the page."""

import io

import numpy as np
import pytest
from PIL import Image
from traces import some_clips, some_trace

from dias_lab.trace import AttentionTrace
from dias_lab.viz import Stream, clip_figures, explore, film, frames, palette
from dias_lab.viz import payload as payloads
from dias_lab.viz.payload import payload, story


def switches_of(slots, true):
    """By loops over objects and frames: a count that shares nothing with the package's."""
    found, seen = [], {}
    for frame in range(len(true)):
        for one in range(1, 254):
            here = true[frame] == one
            if here.any():
                overlaps = [(here & (slots[frame] == slot)).sum() / (here | (slots[frame] == slot)).sum() for slot in range(slots.max() + 1)]
                best = seen[one] if one in seen and overlaps[seen[one]] == max(overlaps) else int(np.argmax(overlaps))
                if seen.get(one, best) != best:
                    found.append([frame, one, seen[one], best])
                seen[one] = best
    return found


@pytest.fixture(scope="module")
def clips():
    return some_clips(size=64)


def test_what_is_told_of_clips(clips):
    data = payload([clips])
    assert data["clips"] == {"frames": 24, "first": 0, "names": ["discs 0", "discs 1"]}
    told = data["runs"][0]["story"]
    assert told["merged"] == [[0, 6, 0], [24, 6, 0]] and told["revived"] == [[12, 6], [36, 6]]
    made = [[8, 1, 1, 2], [8, 2, 2, 1], [16, 3, 3, 5]]
    assert told["switches"][-1] == made + [[24 + frame, *what] for frame, *what in made]
    for stop, (shares, switches) in enumerate(zip(told["shares"], told["switches"], strict=True)):
        which = clips.stops[stop]
        np.testing.assert_allclose(shares, clips.maps_of(which).astype(float).mean((2, 3)), atol=6e-5)
        both = [clips.clip(number) for number in range(2)]
        expected = [switches_of(one.segments_of(which), one.segments) for one in both]
        assert switches == expected[0] + [[24 + frame, *what] for frame, *what in expected[1]]
    without = payload([AttentionTrace(clips.images, clips.attention, None, clips.keep, about={"frames": 24})])
    assert without["runs"][0]["story"]["switches"] is None and without["runs"][0]["story"]["merged"] == [[0, 6, None], [24, 6, None]]
    assert without["clips"]["names"] == ["clip 1", "clip 2"]
    images = payload([clips[:3]])
    assert images["clips"] is None and images["runs"][0]["story"] is None


def hard(true, slots, num_slots=3):
    """A clip of one row of pixels a frame, whose maps are the slots' segments."""
    true, slots = (np.array(one, np.uint8)[:, None] for one in (true, slots))  # [F 1 W]
    maps = np.eye(num_slots)[slots].transpose(0, 3, 1, 2)
    images = np.zeros((*true.shape, 3), np.uint8)
    return AttentionTrace(images, maps[None], None, np.ones((len(true), num_slots), bool), true, about={"frames": len(true)})


@pytest.mark.parametrize(
    "true, slots, expected",
    [
        ([[1, 1, 0, 0]] * 3, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 2, 0]], []),
        ([[1, 1, 0, 0]] * 3, [[1, 1, 0, 0], [2, 2, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 2], [2, 1, 2, 1]]),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2]], [[2, 1, 1, 2]]),  # lost while it was hidden
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [2, 2, 0, 0], [0, 0, 1, 1]], []),  # found again
        ([[0, 0, 0, 0]] * 2, [[1, 1, 0, 0], [2, 2, 0, 0]], []),  # the background is no object
        ([[254, 255, 0, 0]] * 2, [[1, 1, 0, 0], [2, 2, 0, 0]], []),
        ([[1, 1, 1, 0]] * 2, [[1, 1, 2, 0], [1, 2, 2, 0]], [[1, 1, 1, 2]]),
        ([[1, 1, 1, 255, 255, 255, 255]] * 2, [[1] * 7, [1, 1, 0, 1, 1, 1, 1]], [[1, 1, 1, 0]]),  # void is part of a slot's area
        ([[1, 1, 0, 0]] * 2, [[1, 1, 0, 0], [0, 1, 0, 0]], []),
        ([[1, 1, 0, 0]] * 3, [[2, 2, 0, 0], [1, 2, 0, 0], [1, 2, 0, 0]], []),  # of two equal ones it keeps its own
        ([[253, 0, 0, 0]], [[1, 1, 0, 0]], []),  # one frame
    ],
)
def test_identity_switches(true, slots, expected):
    trace = hard(true, slots)
    assert story(trace)["switches"] == [expected] == [switches_of(np.array(slots)[:, None], np.array(true)[:, None])]


def test_switches_do_not_cross_from_clip_to_clip():
    trace = hard([[1, 1, 0]] * 4, [[1, 1, 0]] * 2 + [[2, 2, 0]] * 2)
    assert story(trace)["switches"] == [[[2, 1, 1, 2]]]
    two = AttentionTrace(**{**vars(trace), "about": {"frames": 2}, "keep": np.array([[True] * 3, [True] * 3, [True, True, False], [True] * 3])})
    assert story(two)["switches"] == [[]]
    assert (story(two)["merged"], story(two)["revived"]) == ([[2, 2, None]], [[3, 2]])


def test_a_slot_that_was_left_out_is_not_merged():
    """It has no share of the first frame's first iteration."""
    trace = hard([[1, 1, 0]] * 3, [[1, 1, 0]] * 3)
    keep = np.array([[True, True, False]] * 2 + [[True] * 3])
    told = story(AttentionTrace(**{**vars(trace), "keep": keep}))
    assert told["merged"] == [] and told["revived"] == [[2, 2]]


@pytest.mark.parametrize(
    "names, expected",
    [
        (["dog/00000", "dog/00001"], "dog"), (["car-2/09", "car-2/10"], "car-2"), (["9", "10"], "clip 1"), (["a", "b"], "clip 1"),
        (["dog 2", "dog 2"], "dog 2"), (["a, frame 1", "a, frame 12"], "a"), (["frame 0", "frame 1"], "clip 1"), (["x_1.jpg", "x_2.jpg"], "x"),
    ],
)  # fmt: skip
def test_clips_are_named_by_what_their_frames_have_in_common(names, expected):
    trace = some_trace(images=2, names=names, about={"frames": 2})
    assert payload([trace])["clips"]["names"] == [expected]


def test_slots_of_two_runs_keep_their_colours_through_a_clip(clips):
    order = [3, 0, 6, 1, 2, 5, 4]
    other = AttentionTrace(**{**vars(clips), "attention": clips.attention[:, :, order], "decoder_attention": clips.decoder_attention[:, order], "keep": clips.keep[:, order], "leader": None})
    colours = payload([clips, other])["runs"][1]["colours"]
    assert len(colours) == 48
    for clip in (colours[:24], colours[24:]):
        assert all(frame == clip[0] for frame in clip) and clip[0][:2] == [3, 0] and len({*clip[0]}) == 7
    with pytest.raises(ValueError, match="their clips have 24 and no frames: about\\['frames'\\] must be the same"):
        explore([clips, AttentionTrace(**{**vars(clips), "about": {}})])


@pytest.mark.parametrize("size", [128, 256])
def test_24_frames_of_7_slots_take_less_than_three_megabytes(size, tmp_path):
    pages = {}
    for texture in (0.04, 0.3):  # as a photo has it; and noise, which nothing compresses
        trace = some_clips(clips=1, size=size, texture=texture)
        pages[texture] = explore(trace).to_html(tmp_path / "page.html").stat().st_size
    print(f"24 frames of 7 slots at {size} x {size}, 4 maps of 16 x 16: {pages[0.04] / 1e6:.2f} MB, {pages[0.3] / 1e6:.2f} MB of noise")
    assert max(pages.values()) < 3e6


def test_where_a_page_of_clips_opens(clips):
    page = explore(clips, image=30)
    assert (page.start["image"], page.title, explore(clips.clip(1)).title) == (30, "2 clips", "discs 1")
    with pytest.raises(ValueError, match="image must be an integer from 0 to 47, got 48"):
        explore(clips, image=48)
    live = explore(clips, live=True, image=40)
    live.show(clips.clip(0))
    assert live.image == 0 and live.data["clips"]["frames"] == 24


# ---------------------------------------------------------------- streams
def test_a_stream_is_the_clip_of_its_last_frames(clips):
    """Once the window is full, what it shows is what `explore` would show of these frames."""
    clip, stream = clips.clip(0), Stream(window=10)
    stream.add(clip.images[0], clip.attention[:, 0], clip.keep[0])
    assert stream.data["clips"] == {"frames": 1, "first": 0, "names": ["stream"]} and stream.stop == 2
    assert stream.data["runs"][0]["story"]["merged"] == [[0, 6, None]]
    for frame in range(1, 24):
        stream.add(clip.images[frame], clip.attention[:, frame], clip.keep[frame])
        told = stream.data["runs"][0]["story"]
        if frame in (12, 20):
            assert told["revived"] == [[9 if frame == 12 else 1, 6]]
    assert stream.data["clips"] == {"frames": 10, "first": 14, "names": ["stream"]} and told["revived"] == told["merged"] == []
    last = payload([AttentionTrace(clip.images[14:], clip.attention[:, 14:], None, clip.keep[14:], about={"frames": 10})])
    (run,), (expected,) = stream.data["runs"], last["runs"]
    assert run["attention"] == expected["attention"] and run["keep"] == expected["keep"]
    assert run["story"]["shares"] == expected["story"]["shares"] and run["story"]["switches"] is None
    assert [image["picture"] for image in stream.data["images"]] == [image["picture"] for image in last["images"]]
    assert stream.latest["number"] == 23 and '"frames":10' in stream.page.html()
    assert "text/html" not in Stream()._repr_mimebundle_()[0]  # nothing to show yet


def test_a_stream_ends_where_somebody_stops_it(clips):
    with Stream() as stream:
        for _ in range(1000):
            stream.add(clips.images[0], clips.attention[:, 0])
            if stream.number == 3:
                stream.set_trait("stopped", True)  # what the button does
            if stream.stopped:
                break
    assert (stream.number, stream.stopped, stream.running) == (3, True, False)
    with stream:  # again; and the kernel's own button
        assert stream.running and not stream.stopped
        raise KeyboardInterrupt
    assert stream.stopped and not stream.running
    with pytest.raises(ZeroDivisionError), stream:
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda image, maps, keep: (image[:32], maps, keep), r"frame 1 of the stream has .*\[32, 64, 3\].* the first has .*\[64, 64, 3\]"),
        (lambda image, maps, keep: (image, maps[[0, 1, 2, 2]], keep), r"\[4, 7, 16, 16\].* the first has"),
        (lambda image, maps, keep: (image, maps[:, :6] / maps[:, :6].sum(axis=1, keepdims=True), None), r"\[3, 6, 16, 16\].* the first has"),
        (lambda image, maps, keep: (image, maps[:0], keep), "none of them 0"),
        (lambda image, maps, keep: (image / 255, maps, keep), "image must be uint8"),
        (lambda image, maps, keep: (image, maps[0], keep), r"attention must be \[T N h w\]"),
        (lambda image, maps, keep: (image, maps / 2, keep), "sum to 1 over slots"),
        (lambda image, maps, keep: (image, maps, keep[:3]), r"keep must be \[B N\], here \[1 7\]"),
        (lambda image, maps, keep: (image, maps, keep / 1), "keep must be bool"),
    ],
)
def test_frames_that_do_not_fit_a_stream_are_named(clips, change, message):
    stream, frame = Stream(), (clips.images[0], clips.attention[:, 0], clips.keep[0])
    stream.add(*frame)
    with pytest.raises(ValueError, match=message):
        stream.add(*change(*frame))
    stream.add(*frame)
    assert stream.data["clips"]["frames"] == 2
    for options in ({"window": 1}, {"view": "x"}):
        with pytest.raises(ValueError, match=r"at least 2 frames and opens with one of overlay, .*; got (1, 'overlay'|240, 'x')"):
            Stream(**options)


def test_frames_with_fewer_iterations_repeat_their_first_map(clips):
    """As those of a model that runs one iteration on all frames but the first."""
    stream, maps = Stream(), clips.attention
    stream.add(clips.images[0], maps[:, 0])
    stream.add(clips.images[1], maps[1:, 1])
    stream.add(clips.images[2], maps[2:, 2])
    shares = np.array(stream.data["runs"][0]["story"]["shares"])  # [3 3 7]
    expected = [maps[:, 0], maps[[1, 1, 2], 1], maps[[2, 2, 2], 2]]
    np.testing.assert_allclose(shares, np.stack(expected, 1).astype(float).mean((-2, -1)), atol=6e-5)


# ---------------------------------------------------------------- films
@pytest.mark.parametrize("name", ["x.gif", "x.webp", "new/x.PNG"])
def test_a_film_has_every_frame(clips, tmp_path, name):
    made = film(clips, clip=1, which="decoder", rate=10, size=64)
    assert made.pictures.shape == (24, 64, 3 * 64 + 2 * 4, 3) and made.save(tmp_path / name) == tmp_path / name
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 24 and image.size == (200, 64)
        shown, durations = [], []
        for frame in range(24):
            image.seek(frame)
            shown.append(np.asarray(image.convert("RGB"), float))
            durations.append(image.info["duration"])
    assert {*durations} == {100}
    assert np.abs(np.stack(shown) - made.pictures).mean() < 8  # 256 colours
    for frame in (0, 9, 23):  # the background is slot 0's, and grey means of the picture's lightness
        ground = made.pictures[frame, :, 136:][clips.segments[24 + frame] == 0]
        assert (np.abs(ground - 0.6 * palette.slot_colours(1) - 0.4 * ground.mean(-1, keepdims=True)).mean(-1) < 50).mean() > 0.8
    bare = AttentionTrace(clips.images, clips.attention, None, clips.keep, about={"frames": 24})
    assert film(bare, size=64).pictures.shape == (24, 64, 2 * 64 + 4, 3)
    assert Image.open(io.BytesIO(made.encoded("GIF"))).info["loop"] == 0 and "data:image/gif" in made._repr_html_()


def test_films_that_cannot_be_made_are_named(clips, tmp_path):
    for options, message in (
        ({"clip": 2}, "no clip 2; it has 2"), ({"which": 3}, "no map 3"), ({"rate": 0}, "rate above 0"), ({"size": 0}, "at least 1 pixel"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            film(clips, **options)
    with pytest.raises(ValueError, match="no clip 0; it has none"):
        frames(some_trace())
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        frames(clips, every=0)
    with pytest.raises(ValueError, match="no map 'first'"):
        frames(clips, which="first")
    with pytest.raises(ValueError, match="saved as .gif, .webp, .png, got 'x.avi'"):
        film(clips, size=16).save(tmp_path / "x.avi")
    assert not list(tmp_path.iterdir())


def test_a_strip_of_frames(clips):
    figure = frames(clips, clip=1, every=10)
    panels = np.array(figure.axes).reshape(3, 3)
    assert [panel.get_title() for panel in panels[0]] == ["frame 1", "frame 11", "frame 21"]
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["image", "true segments", "iteration 3"]
    assert (panels[0, 1].images[0].get_array() == clips.images[34]).all()
    single = AttentionTrace(clips.images[:1], clips.attention[:, :1], clips.decoder_attention[:1], clips.keep[:1], about={"frames": 1})
    assert [axes.get_ylabel() for axes in frames(single, which="decoder").axes] == ["image", "decoder"]
    assert clip_figures.frames is frames and payloads.story is story
