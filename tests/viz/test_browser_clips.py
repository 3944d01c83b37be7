"""Clips in a real browser: slider, keys, strip, films, streams, two traces in step. Needs chromium on the PATH."""

import re

import numpy as np
import pytest
from pages import KERNEL, SCREENSHOTS, SEEN, array, ask, hover, opened_in_lab, picture, pixels, ready, run_all, table
from playwright.sync_api import expect
from traces import some_clips, some_training

from dias_lab.trace import AttentionTrace
from dias_lab.viz import Stream, explore

pytestmark = pytest.mark.xdist_group("browser")  # one browser at a time
F = 24
FRAME = "[e.clip, e.state.frame, e.state.image]"


@pytest.fixture(scope="module")
def clips() -> AttentionTrace:
    return some_clips()


def strip_at(page, frame: int, frames=F, strip=0):
    """The place of a frame on a strip."""
    page.locator(".strip").nth(strip).scroll_into_view_if_needed()
    box = page.locator(".strip").nth(strip).bounding_box()
    return box["x"] + (frame + 0.5) / frames * box["width"], box["y"] + 0.5 * box["height"]


def marked(page, frame: int, strip=0, frames=F) -> tuple[bool, bool]:
    """Whether a strip has marks above and below the areas at a frame."""
    shown = pixels(page, f"e.runs[{strip}].strip.canvas")[..., 3] > 0
    cell = shown.shape[1] / frames
    column = shown[:, int(frame * cell) : int((frame + 1) * cell) + 1]
    return bool(column[:10].any()), bool(column[-10:].any())


def test_every_frame_is_shown(visit, clips):
    """Slider, ticks, keys, strip and chooser move the picture; table, tiles and the address follow."""
    page = visit(explore(clips))
    slider = page.get_by_role("slider", name="frame")
    moved, shown = [], pixels(page)
    for key, expected in (("k", 1), ("k", 2), ("j", 1), ("k", 2)):
        page.keyboard.press(key)
        assert ask(page, FRAME) == [0, expected, expected]
        expect(page.locator("[role=status]")).to_have_text(f"frame {expected + 1}")
        assert slider.get_attribute("aria-valuetext") == f"frame {expected + 1}"
        expect(page.locator(".about")).to_contain_text(f"frame {expected + 1} of 24 · 7 slots")
        np.testing.assert_allclose(table(page)[2], clips.attention[2, expected].astype(float).mean((1, 2)), atol=1e-6)
        moved.append((pixels(page) != shown).any())
        shown = pixels(page)
    assert all(moved) and page.get_by_role("slider", name="iteration").input_value() == "2"
    own = array(page, "e.runs[0].raster.colours").reshape(384, 384, 4)[1::3, 1::3, :3].astype(float)  # the picture itself
    assert np.abs(own - clips.images[2]).mean() < 8 < np.abs(own - clips.images[8]).mean()  # WebP, and noise
    for _ in range(4):
        page.keyboard.press("j")
    assert ask(page, FRAME) == [0, 0, 0]
    slider.press("End")
    slider.press("ArrowRight")
    assert ask(page, FRAME) == [0, 23, 23]
    page.keyboard.press("k")
    assert ask(page, FRAME) == [0, 23, 23]
    page.locator(".ticks button", has_text="frame 1").click()
    assert ask(page, FRAME) == [0, 0, 0]
    page.mouse.click(*strip_at(page, 8))
    assert ask(page, FRAME) == [0, 8, 8]
    page.mouse.down()
    page.mouse.move(*strip_at(page, 15), steps=4)
    assert ask(page, FRAME) == [0, 15, 15]
    page.mouse.move(strip_at(page, 20)[0], 5)  # dragged off it
    assert ask(page, FRAME) == [0, 20, 20]
    page.mouse.up()
    page.mouse.move(*strip_at(page, 3))
    assert ask(page, FRAME) == [0, 20, 20]

    # the other clip, at the same frame, by its thumbnail and by its key
    assert page.locator(".film button").count() == 2
    page.get_by_role("button", name="clip 2: discs 1").click()
    assert ask(page, FRAME) == [1, 20, 44]
    expect(page.locator("h1")).to_have_text("discs 1")
    expect(page.locator("[role=status]")).to_have_text("clip 2 of 2: discs 1")
    np.testing.assert_allclose(table(page)[2], clips.attention[2, 44].astype(float).mean((1, 2)), atol=1e-6)
    page.keyboard.press("]")
    assert ask(page, FRAME) == [0, 20, 20] and page.locator(".film [aria-current=true]").get_attribute("title") == "discs 0"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("previous, next frame")
    expect(page.get_by_role("dialog")).to_contain_text("previous, next clip")
    expect(page.get_by_role("dialog")).not_to_contain_text("previous, next picture")


def test_frames_play_and_iterations_play(visit, clips):
    page = visit(explore(clips, stop=0))
    at = lambda name, value: page.wait_for_function(f"() => document.querySelector('#explorer').explorer.state.{name} === {value}", timeout=8000)  # noqa: E731
    page.keyboard.press("f")
    expect(page.get_by_role("button", name="Pause (f)")).to_be_visible()
    at("frame", 3)
    page.keyboard.press(" ")  # pauses what plays
    expect(page.get_by_role("button", name="Play the clip (f)")).to_be_visible()
    stood = ask(page, "e.state.frame")
    page.wait_for_timeout(400)
    assert ask(page, "[e.state.frame, e.state.stop]") == [stood, 0]
    page.get_by_role("button", name="Play the clip (f)").click()
    page.get_by_role("button", name="Play (space)").click()  # both at once
    at("stop", 2)
    assert ask(page, "Object.keys(e.timers).sort()") == ["frame", "stop"] and ask(page, "e.state.frame") != stood
    page.keyboard.press("f")
    assert ask(page, "Object.keys(e.timers)") == ["stop"]
    page.locator("h1").click()
    page.keyboard.press(" ")
    assert ask(page, "Object.keys(e.timers)") == []
    page.evaluate("() => { const e = document.querySelector('#explorer').explorer; e.set({ frame: 22 }); e.play('frame'); }")
    at("frame", 2)  # round and round


def test_a_lock_and_a_slot_hold_over_frames(visit, clips):
    page = visit(explore(clips))
    hover(page, 8, 5, click=True)
    page.keyboard.press("4")
    for frame in (1, 2):
        page.keyboard.press("k")
        assert ask(page, "[e.state.location, e.state.chosen, e.state.frame]") == [[8, 5], [4], frame]
        np.testing.assert_allclose(table(page), np.concatenate([clips.attention, clips.decoder_attention[None]])[:, frame, :, 8, 5], atol=1e-6)
        expect(page.locator(".readout p")).to_contain_text("locked")
        assert page.locator(".tile").nth(4).get_attribute("aria-pressed") == "true"
    faded = pixels(page, "e.runs[0].strip.canvas")
    page.keyboard.press("Escape")
    assert (pixels(page, "e.runs[0].strip.canvas") != faded).any() and ask(page, "e.state.frame") == 2


def test_what_happens_is_marked_where_it_happens(visit, clips):
    page = visit(explore(clips, stop="decoder"))
    told = page.locator(".story")
    expect(told).to_have_text("◆ 3 identity switches (frames 9, 17) · ▼ slot 6 merged (frame 1) · ▲ slot 6 revived (frame 13)")
    assert {frame for frame in range(F) if marked(page, frame)[0]} <= {7, 8, 9, 15, 16, 17}
    assert all(marked(page, frame)[0] for frame in (8, 16))
    assert [marked(page, frame)[1] for frame in (0, 12, 6, 18)] == [True, True, False, False]
    page.mouse.move(*strip_at(page, 8))
    assert page.locator(".strip").get_attribute("title") == "frame 9; object 1 goes from slot 1 to slot 2; object 2 goes from slot 2 to slot 1"
    page.mouse.move(*strip_at(page, 0))
    assert page.locator(".strip").get_attribute("title") == "frame 1; slot 6 is merged into slot 0"
    page.mouse.click(*strip_at(page, 12))
    ready(page)
    assert page.locator(".strip").get_attribute("aria-label").endswith("frame 13; slot 6 is revived")
    # the areas stand where the shares are: at the frame's middle, from the bottom, slot after slot
    shown, shares = pixels(page, "e.runs[0].strip.canvas"), clips.decoder_attention[5].astype(float).mean((1, 2))
    column, high = shown[:, int(5.5 / F * shown.shape[1])], shown.shape[0] - 2 * 13
    for slot in np.flatnonzero(shares * high > 4):
        y = 13 + high * (1 - shares[:slot].sum() - shares[slot] / 2)
        wanted = ask(page, f"e.colours[{slot}]")
        assert np.abs(column[int(y), :3].astype(int) - wanted).max() < 30, slot
    bare = AttentionTrace(clips.images, clips.attention, None, np.ones_like(clips.keep), about={"frames": 12})
    page = visit(explore(bare, image=13))
    expect(page.locator(".story")).to_have_text("")  # nobody knows
    assert ask(page, FRAME) == [1, 1, 13] and page.locator(".film button").count() == 4
    still = AttentionTrace(clips.images[:8], clips.attention[:, :8], None, np.ones_like(clips.keep[:8]), clips.segments[:8], about={"frames": 8})
    page = visit(explore(still))
    expect(page.locator(".story")).to_have_text("◆ no identity switches")


def test_two_traces_stay_in_step(visit, clips):
    order = [3, 0, 6, 1, 2, 5, 4]
    other = AttentionTrace(clips.images, clips.attention[:2, :, order], None, clips.keep[:, order], clips.segments, clips.names, clips.about | {"run": "other"})
    page = visit(explore([clips, other], stop=2))
    page.keyboard.press("k")
    page.mouse.click(*strip_at(page, 9, strip=1))  # either strip moves both
    assert ask(page, FRAME) == [0, 9, 9]
    for run, trace, stop in ((0, clips, 2), (1, other, 1)):
        np.testing.assert_allclose(table(page, run)[stop], trace.attention[stop, 9].astype(float).mean((1, 2)), atol=1e-6)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    np.testing.assert_allclose(table(page, 1)[0], other.attention[0, 9].astype(float).mean((1, 2)), atol=1e-6)
    assert page.get_by_role("slider", name="frame").count() == 1 and page.locator(".strip").count() == 2
    first, second = (ask(page, f"e.paints({run})") for run in range(2))
    assert [colour for colour, slot in zip(second, order) if slot != 6] == [first[slot] for slot in order if slot != 6]  # 6 has no place
    page.keyboard.press("k")
    assert ask(page, "e.paints(1)") == second


def test_an_address_restores_clip_and_frame(visit, clips, tmp_path):
    path = explore(clips).to_html(tmp_path / "page.html")
    page = visit(path)
    standing = "[e.state.image, e.state.stop, e.state.location]"
    for address, expected in (
        ("clip=1&frame=7&stop=1&at=5,6", [31, 1, [5, 6]]), ("frame=7", [7, 2, None]), ("clip=1", [24, 2, None]), ("image=30", [30, 2, None]),
        ("clip=2&frame=24", [0, 2, None]), ("clip=1&frame=-1", [24, 2, None]),
    ):  # fmt: skip
        page.goto("about:blank")
        page.goto(f"{path.as_uri()}#{address}")
        assert ask(page, standing) == expected, address
    page.keyboard.press("k")
    page.wait_for_function("() => location.hash.includes('clip=1&frame=1&stop=2')")
    page.evaluate("() => { location.hash = '#clip=0&frame=3'; }")
    page.wait_for_function("() => document.querySelector('#explorer').explorer.state.image === 3")
    assert ask(page, FRAME) == [0, 3, 3]


def test_a_film_is_saved(visit, tmp_path):
    clip = some_clips(clips=1, frames=5, size=64)
    page = visit(explore(clip))
    page.keyboard.press("k")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save a film (v)").click()
    name = download.value.suggested_filename
    download.value.save_as(tmp_path / name)
    assert name == "discs-0-overlay.webm" and (tmp_path / name).read_bytes()[:4] == b"\x1aE\xdf\xa3"  # EBML, as WebM is
    expect(page.locator("[role=status]")).to_contain_text(re.compile("saved as|frame 2"))
    page.wait_for_function("() => !document.querySelector('#explorer').explorer.filming")
    assert ask(page, FRAME) == [0, 1, 1]  # where it stood
    played = page.context.new_page().evaluate(PLAYED, list((tmp_path / name).read_bytes()))
    print(f"a film of 5 frames: {played}")
    assert played["width"] >= 600 and played["changes"] >= 3 and 0.4 < played["seconds"] < 3, played


PLAYED = """async (bytes) => {
  const film = document.createElement("video"), pen = new OffscreenCanvas(32, 32).getContext("2d", { willReadFrequently: true });
  const source = new MediaSource(), opened = new Promise((done) => (source.onsourceopen = done));
  film.muted = true;
  film.src = URL.createObjectURL(source);
  await Promise.race([opened, new Promise((done) => setTimeout(done, 2000))]);
  const buffer = source.addSourceBuffer('video/webm; codecs="vp9"'), filled = new Promise((done) => (buffer.onupdateend = done));
  buffer.appendBuffer(new Uint8Array(bytes));
  await filled;
  source.endOfStream();
  const seen = new Set();
  await film.play();
  while (!film.ended) {
    pen.drawImage(film, 0, 0, 32, 32);
    seen.add(pen.getImageData(0, 0, 32, 26).data.join());
    await new Promise((done) => setTimeout(done, 20));
  }
  return { width: film.videoWidth, seconds: film.duration, changes: seen.size };
}"""


def test_without_a_recorder_the_button_says_so(visit, browser, clips, tmp_path):
    path, page = explore(clips).to_html(tmp_path / "page.html"), browser.new_page()
    page.add_init_script("delete window.MediaRecorder")
    page.goto(path.as_uri())
    button = page.get_by_role("button", name="This browser records no films")
    expect(button).to_be_disabled()
    assert "viz.film(trace).save('x.gif')" in button.get_attribute("title")
    page.keyboard.press("v")
    page.wait_for_timeout(200)
    assert not ask(page, "e.filming")
    page.close()


def test_images_have_neither_strip_nor_second_slider(visit, clips):
    page = visit(explore(clips[:3]))
    assert page.locator(".strip, .story").count() == 0 and page.get_by_role("slider", name="frame").count() == 0
    assert page.get_by_role("button", name="film").count() == 0
    for key in "jkfv":
        page.keyboard.press(key)
    assert ask(page, "[e.state.image, Object.keys(e.timers).length, e.filming ?? false]") == [0, 0, False]
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).not_to_contain_text("frame")


def test_a_clip_of_one_frame(visit, clips):
    one = AttentionTrace(clips.images[:1], clips.attention[:, :1], None, clips.keep[:1], clips.segments[:1], about={"frames": 1})
    page = visit(explore(one))
    for key in "kjf":
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    page.mouse.click(*strip_at(page, 0, frames=1))
    assert ask(page, FRAME) == [0, 0, 0]
    expect(page.locator(".about")).to_contain_text("frame 1 of 1")
    expect(page.locator(".story")).to_have_text("◆ no identity switches · ▼ slot 6 merged (frame 1)")


def test_a_training_of_clips_has_three_sliders(visit):
    over = some_training((0, 50), images=4, slots=4, about={"frames": 2})
    page = visit(explore(over))
    assert [one.get_attribute("aria-label") for one in page.locator(".track input").all()] == ["frame", "iteration", "training step"]
    expect(page.locator(".strip")).to_be_visible()
    page.keyboard.press(",")
    page.keyboard.press("k")
    assert ask(page, FRAME) == [0, 1, 1]
    expect(page.locator(".over-time")).to_be_hidden()  # it tells of the last step
    np.testing.assert_allclose(table(page)[0], over.at(0).attention[0, 1].astype(float).mean((1, 2)), atol=0.51 / 255)


@pytest.mark.parametrize("width, scheme", [(1160, "light"), (1160, "dark"), (640, "light"), (400, "light")])
def test_clips_fit_and_can_be_read(visit, clips, width, scheme):
    page = visit(explore(clips, image=9), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hover(page, 9, 5, click=True)
    box, stage = page.locator(".strip").bounding_box(), page.locator(".stage").bounding_box()
    assert box["y"] > stage["y"] + stage["height"] and abs(box["width"] - page.locator(".left").bounding_box()["width"]) < 1
    picture(page, f"clip {scheme} {width}")


# ---------------------------------------------------------------- streams
def test_a_stream_grows_in_its_window(visit):
    """The widget's page without a kernel: the frames that Python sends, one by one."""
    clip, window = some_clips(clips=1, frames=9, size=64), 5
    stream, sent = Stream(window=window), []
    for frame in range(9):
        stream.add(clip.images[frame], clip.attention[:, frame], clip.keep[frame])
        sent.append(stream.latest)
        if frame == 0:
            page = visit(stream.page)
    send = "(e.model.set('latest', argument), e.incoming.busy ? 1 : 0)"
    settled = "() => { const e = document.querySelector('#explorer').explorer; return !e.incoming.queue.length && !e.incoming.busy; }"
    for frame in range(1, 4):
        ask(page, send, sent[frame])
        page.wait_for_function(settled)
        assert ask(page, "[e.frames, e.state.frame]") == [frame + 1, frame]
        np.testing.assert_allclose(table(page)[1], clip.attention[1, frame].astype(float).mean((1, 2)), atol=1e-6)
    page.keyboard.press("j")
    page.keyboard.press("j")  # somebody looks back: at the second of four
    for one in sent[4:8]:
        ask(page, send, one)
    ask(page, send, sent[7])  # a second view tells it again
    page.wait_for_function(settled)
    expect(page.locator(".about")).to_contain_text("frame 4 of 8 ·")  # its own has left the window: the first there is
    assert ask(page, "[e.frames, e.state.frame, e.data.clips.first, e.data.images.length]") == [5, 0, 3, 5]
    np.testing.assert_allclose(table(page)[1], clip.attention[1, 3].astype(float).mean((1, 2)), atol=1e-6)
    page.get_by_role("slider", name="frame").press("End")
    ask(page, send, sent[8])
    page.wait_for_function(settled)
    expect(page.locator(".about")).to_contain_text("frame 9 of 9 ·")
    expected = stream.data["runs"][0]["story"]
    assert ask(page, "e.data.runs[0].story") == expected and ask(page, "e.data.clips") == stream.data["clips"]
    ticks = page.locator(".timeline").first.locator(".ticks button:not([hidden])").all_text_contents()
    assert ticks[0] == "frame 5" and ticks[-1] == "9"
    ask(page, send, sent[8] | {"number": 20})  # eleven were missed
    page.wait_for_function(settled)
    expect(page.locator(".about")).to_contain_text("frame 21 of 21 ·")
    assert ask(page, "[e.frames, e.data.images.length, e.data.runs[0].story.merged]") == [1, 1, []]
    ask(page, send, sent[8] | {"number": 21})
    page.wait_for_function(settled)
    assert ask(page, "[e.frames, e.state.frame]") == [2, 1]
    picture(page, "stream")


LOOP = """import numpy as np, time
from dias_lab.trace import AttentionTrace
from dias_lab.viz import Stream
from IPython.display import display
trace = AttentionTrace.load('clip.npz')
stream = Stream(window=12)
display(stream)
with stream:
    for number in range(100_000):  # endless, as a camera is
        frame = number % len(trace)
        stream.add(trace.images[frame], trace.attention[:, frame], trace.keep[frame])
        time.sleep(0.05)
        if stream.stopped:
            break
print('ENDED after', stream.number, 'frames')"""


@pytest.mark.slow
def test_a_stream_in_jupyterlab_is_stopped_by_its_button_and_by_the_kernels(browser, lab, tmp_path):
    some_clips(clips=1).save(tmp_path / "clip.npz")
    page = opened_in_lab(browser, lab, tmp_path / "stream.ipynb", [LOOP, "print('WENT ON')"], height=2000)
    cell = page.locator(".jp-CodeCell").first
    for stop in ("button", "kernel"):
        run_all(page)
        page.wait_for_function(f"() => {SEEN}?.picture && {SEEN}.data.clips.first >= 4", timeout=60_000)  # the window is full, and goes on
        expect(cell.locator(".jp-InputPrompt")).to_have_text("[*]:")
        assert page.evaluate(f"() => [{SEEN}.frames, {SEEN}.state.frame]") == [12, 11]
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "stream in jupyterlab.png")
        if stop == "button":
            page.locator("[data-lm-suppress-shortcuts] .stop").click()
        else:
            page.evaluate(f"async () => {{ await {KERNEL}.interrupt(); }}")
        expect(cell).to_contain_text(re.compile(r"ENDED after \d+ frames"), timeout=30_000)
        expect(page.locator(".jp-CodeCell").nth(1)).to_contain_text("WENT ON")
        expect(page.locator("[data-lm-suppress-shortcuts] .stop")).to_have_text("stopped")
        assert "Traceback" not in cell.inner_text()
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs'); }")
    page.close()


# ---------------------------------------------------------------- time
@pytest.mark.parametrize("size", [128, 256])
def test_time_of_a_frame(visit, size):
    """Printed, not asserted."""
    page = visit(explore(some_clips(clips=1, size=size)))
    for view in ("overlay", "segments"):
        step, frame = page.evaluate(FRAME_TIME, view)
        print(f"24 frames of 7 slots at {size} x {size}, {view}: {step:.1f} ms a frame, {frame:.1f} ms between frames (medians of 24)")
        assert step > 0


FRAME_TIME = """async (view) => {
  const e = document.querySelector("#explorer").explorer, steps = [], between = [];
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1], frame = () => new Promise(requestAnimationFrame);
  e.set({ view });
  for (let frame = 0; frame < e.frames; frame++) await e.load(frame);
  for (let i = 0; i < e.frames; i++) {
    const start = performance.now();
    await e.set({ frame: i + 1 < e.frames ? i + 1 : 0 });
    e.drawNow();
    e.runs[0].base.getContext("2d").getImageData(0, 0, 1, 1); // what was recorded is carried out
    e.root.getBoundingClientRect();
    steps.push(performance.now() - start);
    await frame();
  }
  for (let i = 0, last = await frame(); i < e.frames; i++) {
    e.set({ frame: i + 1 < e.frames ? i + 1 : 0 });
    const now = await frame();
    between.push(now - last);
    last = now;
  }
  return [median(steps), median(between)];
}"""
