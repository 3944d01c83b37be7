"""The explorer's data, page and widget, without a browser; test_browser.py drives it in one."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
import traitlets
from PIL import Image
from traces import HOSTILE, B, H, N, T, W, h, run, some_trace, some_training, w

from dias_lab.data.scenes import item
from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import explore, explorer, overlay, payload
from dias_lab.viz.payload import expected_bytes


@pytest.fixture
def trace():
    return some_trace(names=["apple", "bowl", "cup"], about={"run": "a run", "method": "dias", "seed": 3})


def from_page(page: str, name: str = "data") -> dict:
    (text,) = re.findall(f'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def numbers(text: str, kind) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_holds_the_trace_bit_for_bit(trace):
    data = from_page(explore(trace).html())
    (run,) = data["runs"]
    assert (run["slots"], run["keep"], run["name"]) == (N, trace.keep.tolist(), "a run · dias · seed 3")
    for image in range(B):
        maps = numbers(run["attention"]["images"][image], "<f2").reshape(T, N, h, w)
        np.testing.assert_array_equal(maps, trace.attention[:, image])
        maps = numbers(run["decoder"]["images"][image], "<f2").reshape(N, h, w)
        np.testing.assert_array_equal(maps, trace.decoder_attention[image])
        shown = data["images"][image]
        labels = np.frombuffer(zlib.decompress(base64.b64decode(shown["segments"]["deflated"])), np.uint8).reshape(H, W)
        np.testing.assert_array_equal(labels, trace.segments[image])
        assert (shown["name"], shown["width"], shown["height"]) == (trace.names[image], W, H)


def test_the_page_of_a_training_holds_every_step():
    """The last one as any trace's, those before in bytes."""
    trace = some_training()
    data = from_page(explore(trace).html())
    (run,), plain = data["runs"], from_page(explore(trace.at(200)).html())["runs"][0]
    assert {name: run[name] for name in ("attention", "decoder", "keep", "slots")} == {
        name: plain[name] for name in ("attention", "decoder", "keep", "slots")
    }
    earlier = run["training"]
    assert earlier["steps"] == [0, 50, 200] and earlier["keep"] == trace.training_keep[:2].tolist()
    assert (earlier["attention"]["stops"], earlier["decoder"]["stops"]) == (2 * T, 2)
    for image in range(B):
        maps = numbers(earlier["attention"]["images"][image], np.uint8).reshape(2, T, N, h, w) / 255
        np.testing.assert_allclose(maps, trace.training_attention[:2, :, image], atol=0.5 / 255 + 1e-6)
        maps = numbers(earlier["decoder"]["images"][image], np.uint8).reshape(2, N, h, w) / 255
        np.testing.assert_allclose(maps, trace.training_decoder_attention[:2, image], atol=0.5 / 255 + 1e-6)
    assert plain["training"] is None and plain["name"] == "training step 200"


def test_eight_pictures_at_eleven_steps_take_little(tmp_path):
    sizes = dict(images=8, iterations=4, slots=7, cells=(12, 12))
    pages = [explore(one).to_html(tmp_path / "page.html").stat().st_size for one in (some_trace(**sizes), some_training(range(11), **sizes))]
    print(f"a page of 8 pictures, 5 maps of 7 slots at 12 x 12: {pages[0] / 1e6:.2f} MB; at 11 training steps {pages[1] / 1e6:.2f} MB")
    assert pages[1] - pages[0] < 0.6e6 < 2e6 - pages[0]


def test_a_page_that_is_too_large_is_refused_before_anything_is_encoded(monkeypatch):
    scenes = [item(number).image for number in range(6)]
    photos = np.stack([overlay.resize(scene, 500, 400) for scene in scenes])
    sizes = {
        "maps": some_trace(images=40, slots=30, cells=(16, 16)), "pictures": some_trace(images=6, size=(400, 500), pictures=photos, segments=None),
        "training": some_training(steps=range(9), images=8, cells=(12, 12)), "two": [some_trace(images=30), some_trace(images=30, slots=25)],
    }  # fmt: skip
    for what in sizes.values():
        size = len(explore(what).html()) / 1e6
        estimate = expected_bytes(what if isinstance(what, list) else [what]) / 1e6
        assert 0.6 * size - 0.15 < estimate < 1.7 * size  # 0.15: the script
        explore(what, limit_mb=estimate * 1.01)
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"images would have about .* MB, over .*trace\[:100\].*limit_mb="):
            patch.setattr(explorer, "payload", None)
            explore(what, limit_mb=estimate * 0.99)
    many = some_trace(images=1)
    shapes = {"images": (1000, 128, 128, 3), "attention": (3, 1000, 200, 16, 16), "decoder_attention": (1000, 200, 16, 16)}
    for name, shape in shapes.items():  # by shape alone: all its values are one
        object.__setattr__(many, name, np.broadcast_to(np.zeros((), np.float16), shape))
    object.__setattr__(many, "names", ["x"] * 1000)
    assert 350e6 < expected_bytes([many]) < 700e6


def test_the_shell_refuses_a_page_that_is_too_large(tmp_path, monkeypatch, capsys):
    some_trace().save(tmp_path / "x.npz")
    monkeypatch.setattr(explorer, "expected_bytes", lambda traces: 411e6)
    assert run("explore", tmp_path / "x.npz", "--out", tmp_path / "page.html") == 2
    assert "about 411 MB" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_steps_of_a_training_are_told_and_checked(trace):
    training = some_training()
    assert from_page(explore(training).html(), "start")["step"] == 200
    assert from_page(explore(training, step=50).html(), "start")["step"] == 50
    one = explore(AttentionTrace.over_training({7: some_trace()}), live=True)
    assert one.step == 7 and one.data["runs"][0]["training"]["attention"]["images"] == [""] * B
    for what, step, message in ((training, 100, "one of 0, 50, 200; got 100"), (trace, 3, "None: the trace has no maps .* got 3")):
        with pytest.raises(ValueError, match=f"step must be {message}"):
            explore(what, step=step)
    live = explore(training, live=True)
    with pytest.raises(traitlets.TraitError, match="step must be one of 0, 50, 200"):
        live.step = 100
    assert live.step == 200


def test_the_widget_shows_more_of_a_training(trace):
    """The page goes on to the last step, as test_browser.py has it; Python alone moves where it must."""
    live = explore(some_training((0,)), live=True, image=1, stop="decoder")
    live.show(some_training((0, 50)))
    assert (live.step, live.image, live.stop) == (0, 1, T)
    live.show(some_training((10, 50)))
    assert live.step == 50
    live.show(trace)
    assert live.step is None
    live.show(some_training())
    assert live.step == 200


def test_what_is_optional_is_null(trace):
    bare = AttentionTrace(trace.images, trace.attention, None, trace.keep)
    data = from_page(explore(bare).html())
    assert data["runs"][0]["decoder"] is None and data["images"][0]["segments"] is None
    assert data["runs"][0]["name"] == "" and data["images"][2]["name"] == "2"


def test_any_array_with_an_image_is_one_line(trace):
    data = from_page(explore(trace.images[0], np.asarray(trace.attention[:, 0], np.float64)).html())
    np.testing.assert_array_equal(numbers(data["runs"][0]["attention"]["images"][0], "<f2"), trace.attention[:, 0].ravel())


def test_two_runs_share_the_pictures(trace):
    other = some_trace(iterations=4, slots=3, cells=(3, 3), seed=5, images=B, names=trace.names, segments=None)
    data = from_page(explore([trace, other]).html())
    assert len(data["images"]) == B and data["images"][0]["segments"]
    assert [run["slots"] for run in data["runs"]] == [N, 3]
    assert [run["attention"]["stops"] for run in data["runs"]] == [T, 4]


@pytest.mark.parametrize(
    "what, message",
    [
        (lambda t: (t.images[0],), r"an image \[H W 3\] and its attention maps \[T N h w\]"),
        (lambda t: ("x.npz",), "explore takes a trace"),
        (lambda t: (t, t.attention), "has its own attention"),
        (lambda t: ([t, t, t],), "one trace, or two side by side"),
        (lambda t: ([t, t.images],), "one trace, or two"),
        (lambda t: ([],), "explore takes a trace"),
        (lambda t: (t.images, t.attention[:, 0]), r"image must be uint8 \[H W 3\], got uint8 \[3, 20, 24, 3\]"),
        (lambda t: (t.images[0] / 255, t.attention[:, 0]), "image must be uint8"),
        (lambda t: (t.images[0], t.attention[0, 0]), r"\[T N h w\].*got \[4, 5, 6\]; one map alone is attention\[None\]"),
        (lambda t: (t.images[0], t.attention), r"\[T N h w\] \(iterations, slots, rows, columns\)"),
        (lambda t: (t.images[0], t.attention[:, 0, :0]), r"none of them 0, got \[2, 0, 5, 6\]"),
        (lambda t: (t.images[0], t.attention[:, 0] / 2), "must sum to 1 over slots"),
        (lambda t: (t.images[0], t.attention[:, 0] * np.nan), "finite"),
        (lambda t: (t.images[0], np.ones((1, 1, 2, 2), int)), "must be floats"),
        (lambda t: ([t, t[:2]],), "same images.*3 and 2 images"),
        (lambda t: ([t, some_trace(seed=1, names=t.names, size=(20, 20))],), "same shape"),
        (lambda t: ([t, some_trace(names=t.names, pictures=t.images[::-1])],), "different images"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_says_what_is_expected(trace, what, message):
    with pytest.raises(ValueError, match=message):
        explore(*what(trace))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": 3}, "image must be an integer from 0 to 2, got 3"),
        ({"stop": 3}, "stop must be an integer from 0 to 2"),
        ({"stop": "last"}, "stop must be an integer"),
        ({"slot": -1}, "slot must be an integer from 0 to 3"),
        ({"view": "heatmap"}, "overlay, heat, masked, segments, difference"),
    ],
)
def test_wrong_places_to_open_at_are_named(trace, options, message):
    for live in (False, True):
        with pytest.raises(ValueError, match=message):
            explore(trace, live=live, **options)


def test_it_opens_where_it_is_told_to(trace):
    assert from_page(explore(trace).html(), "start")["stop"] == T - 1
    page = explore(trace, image=1, stop="decoder", slot=2, view="heat").html()
    assert from_page(page, "start") == {"image": 1, "stop": T, "location": None, "slot": 2, "view": "heat", "step": None}


def test_html_in_names_is_no_markup(trace):
    hostile = AttentionTrace(trace.images[:1], trace.attention[:, :1], None, trace.keep[:1], names=[HOSTILE], about={"run": HOSTILE})
    page = explore(hostile).html()
    assert from_page(page)["images"][0]["name"] == HOSTILE
    assert page.count("<script") == page.count("</script>") == 3 and "<img" not in page
    assert "\u2028" not in page.partition('id="data"')[2]
    frame = explore(hostile)._repr_html_()
    assert frame.count("<") == frame.count(">") == 2  # the iframe alone: its srcdoc is one attribute


def test_the_page_asks_nothing_of_the_network(trace):
    page = explore(trace).html()
    assert not re.search(r"<link|\b(src|href)=", page)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert set(re.findall(r"https?://[^\s\"'`]+", page)) == {"http://www.w3.org/2000/svg"}  # a namespace


def test_the_module_is_readable():
    """Of two parts: what holds of every trace, and what of clips alone."""
    text, parts = explorer.MODULE, [(explorer.FOLDER / name).read_text() for name in ("explorer.js", "clips.js")]
    assert text == "\n".join(parts) and [len(part.splitlines()) <= most for part, most in zip(parts, (1180, 260))] == [True, True]
    assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|innerHTML|\beval\(|XMLHttpRequest|</script|<!--", text, re.MULTILINE)
    assert "export default { render }" in text


def test_the_page_is_written_whole_or_not_at_all(trace, tmp_path, monkeypatch):
    path = tmp_path / "new" / "page.html"
    assert explore(trace).to_html(path) == path
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        explore(trace[:1]).to_html(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def smooth(height, width):
    """A picture of one gradient, uint8 [1 H W 3]."""
    down, across = np.mgrid[:height, :width]
    return np.stack([255 * down / height, 255 * across / width, 128 + 0 * down], axis=-1).astype(np.uint8)[None]


@pytest.mark.parametrize(
    "size, shown_size", [((400, 2000), [768, 154]), ((2000, 400), [154, 768]), ((600, 600), [600, 600]), ((1, 5000), [768, 1])]
)
def test_large_images_are_drawn_smaller(size, shown_size):
    trace = some_trace(images=1, size=size, pictures=smooth(*size))
    (shown,) = payload.payload([trace])["images"]
    assert (shown["width"], shown["height"], shown["shown"]) == (*size[::-1], shown_size)
    assert [shown["segments"]["width"], shown["segments"]["height"]] == shown_size


def test_a_picture_that_takes_much_is_drawn_smaller_still():
    """Noise, which nothing compresses; never below 256 pixels a side, whatever it takes."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 768, 768, 3), dtype=np.uint8)
    soft = np.stack([overlay.resize(overlay.resize(one, 96, 96), 768, 768) for one in noise])
    sides = []
    for pictures in (noise[:1], soft[:1], smooth(768, 768), noise, soft):
        trace = some_trace(images=len(pictures), size=(768, 768), pictures=pictures, segments=None)
        shown = payload.payload([trace])["images"]
        for one in shown:
            assert len(one["picture"]) <= 1_300_000 / len(shown) or max(one["shown"]) == 256
        sides.append(shown[0]["shown"][0])
    assert sides[0] == sides[1] == sides[2] == sides[4] == 768 and 256 <= sides[3] < 768


@pytest.mark.parametrize("order, slots", [([2, 0, 3, 1], 4), ([3, 2, 1, 0], 4), ([3, 4, 0, 1, 2, 5], 6)])
def test_slots_of_a_second_run_take_the_colours_of_those_they_match(order, slots):
    """The same segments under other numbers; those that only the second run has get colours that the first has not."""
    random = np.random.default_rng(2)
    labels = random.integers(0, 3, (3, 4))
    labels[:2, :2] = 3
    maps = np.eye(4)[labels].transpose(2, 0, 1)[:, None].repeat(2, 1)  # [N B h w]
    second = np.zeros((1, 2, slots, 3, 4))
    for place, slot in enumerate(order):
        if slot < 4:
            second[0, :, place] = maps[slot]
    images = np.zeros((2, 30, 40, 3), np.uint8)
    first = AttentionTrace(images, maps.transpose(1, 0, 2, 3)[None], None, np.ones((2, 4), bool))
    other = AttentionTrace(images, second, None, np.ones((2, slots), bool))
    ours, theirs = payload.payload([first, other])["runs"]
    assert ours["colours"] is None
    shared = [slot for slot in order if slot < 4]
    for colours in theirs["colours"]:
        assert [colour for colour in colours if colour < 4] == shared and len({*colours}) == slots


def test_slots_without_an_overlap_are_not_matched():
    first = np.zeros((2, 4, 4))
    first[0, :, :2], first[1, :, 2:] = 1, 1
    second = np.zeros((3, 4, 4))
    second[1] = 1  # half of each: the first of them wins, the other has no partner
    assert payload.matches(first, second) == {1: 0}
    many = np.random.default_rng(0).dirichlet(np.ones(200), (8, 8)).transpose(2, 0, 1)
    assert payload.matches(many, many[::-1]) == {199 - slot: slot for slot in set(upsample(many, 96, 96).argmax(0).ravel().tolist())}


def test_leaders_are_told(trace):
    leader = np.broadcast_to(np.arange(N), (T, B, N)).copy()
    assert from_page(explore(trace).html())["runs"][0]["leader"] is None
    leader[-1, 0, N - 1] = 1
    told = AttentionTrace(**{**vars(trace), "leader": leader})
    assert from_page(explore(told).html())["runs"][0]["leader"] == leader.tolist()
    assert from_page(explore(told[1:]).html())["runs"][0]["leader"] == leader[:, 1:].tolist()


def test_twelve_photos_take_less_than_two_megabytes(real_data, tmp_path):
    photos = sorted((real_data / "coco" / "val2017").glob("*.jpg"))[:12]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((768, 768))) for path in photos])
    segments = np.kron(np.random.default_rng(0).integers(0, 9, (12, 64, 64), dtype=np.uint8), np.ones((1, 12, 12), np.uint8))
    trace = some_trace(images=12, iterations=3, slots=7, cells=(16, 16), pictures=images, segments=segments)
    size = explore(trace).to_html(tmp_path / "page.html").stat().st_size
    print(f"a page of 12 photos at 768 x 768, 4 maps of 7 slots at 16 x 16: {size / 1e6:.2f} MB")
    assert size < 2_000_000


def test_the_widget_tells_and_is_told(trace):
    live, heard = explore(trace, live=True, stop=0), []
    live.observe(lambda change: heard.append(change["new"]), names=["location"])
    live.location, live.slot, live.stop, live.view, live.image = [4, 5], 3, T, "heat", 2
    assert heard == [[4, 5]]
    start = from_page(live.page.html(), "start")
    assert start == {"image": 2, "stop": T, "location": [4, 5], "slot": 3, "view": "heat", "step": None}
    for name, wrong in (("location", [5, 0]), ("location", [1]), ("slot", N), ("stop", T + 1), ("image", -1), ("view", "x")):
        with pytest.raises(traitlets.TraitError, match=name):
            setattr(live, name, wrong)
    assert (live.location, live.slot) == ([4, 5], 3)
    live.location = None


def test_the_widget_shows_another_trace_and_stays_where_it_can(trace):
    live = explore(trace, live=True, image=2, slot=3, view="segments")
    live.location = [4, 5]
    live.show(some_trace(images=1, iterations=1, slots=5, cells=(3, 9)))
    assert (live.image, live.slot, live.stop, live.location, live.view) == (0, 3, 1, None, "segments")
    assert live.data["runs"][0]["slots"] == 5
    with pytest.raises(ValueError, match="explore takes"):
        live.show(3)


def test_an_exported_widget_is_a_page(trace):
    live = explore(trace, live=True)
    live.location = [1, 2]
    bundle, _ = live._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "[1,2]" in bundle["text/html"]


def test_the_command_writes_a_page(trace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace.save("a.npz")
    some_trace(seed=4, names=trace.names).save("b.npz")
    assert run("explore", "a.npz", "--out", "pages/one.html") == 0
    assert "wrote pages/one.html: 3 images, 0." in capsys.readouterr().out
    assert run("explore", "a.npz", "b.npz", "--out", "two.html") == 0
    assert len(from_page((tmp_path / "two.html").read_text())["runs"]) == 2
    some_training().save("training.npz")
    assert run("explore", "training.npz", "--out", "training.html") == 0
    assert from_page((tmp_path / "training.html").read_text(), "start")["step"] == 200


class Executed:
    def __reduce__(self):
        return open, ("executed", "w")


def test_the_commands_refuse_what_they_cannot_read(trace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace.save("good.npz")
    with np.load("good.npz") as file:
        arrays = dict(file)
    newer = json.dumps({"schema": 4}).encode()
    np.savez("newer.npz", **{**arrays, "about": np.frombuffer(newer, np.uint8)})
    np.savez("hostile.npz", **{**arrays, "keep": np.array([Executed()], object)})
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.iterdir())
    for command in ("explore", "segments"):
        for words, status, message in (
            (["none.npz"], 2, "none.npz"),
            (["newer.npz"], 2, "schema is 4"),
            (["hostile.npz"], 2, "hostile.npz is not a trace"),
            ([], 2, ""),
        ):
            assert run(command, *words, "--out", "x") == status, (command, words)
            assert message in capsys.readouterr().err
    assert run("explore", "good.npz", "good.npz", "good.npz", "--out", "x") == 2
    assert run("explore", "good.npz", "--out", "folder.html") == 1
    assert "folder.html" in capsys.readouterr().err
    assert run("segments", "good.npz", "--out", "x", "--map", "4") == 2
    assert "it has 1, 2, decoder" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before  # nothing written, nothing executed
