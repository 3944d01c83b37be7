"""The explorer in a real browser: every control, readouts against numpy, no network; and live in JupyterLab.

Needs chromium on the PATH (.ci/run installs it).
"""

import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from pages import (
    KERNEL,
    ROOT,
    SCREENSHOTS,
    SEEN,
    array,
    ask,
    hover,
    labels,
    opened_in_lab,
    picture,
    pixels,
    ready,
    run_all,
    table,
)  # fmt: skip
from PIL import Image, ImageOps
from playwright.sync_api import expect
from traces import HOSTILE, some_trace, some_training

from dias_lab.data.scenes import scene
from dias_lab.trace import AttentionTrace, upsample
from dias_lab.viz import explore, overlay, palette
from dias_lab.viz.payload import payload

pytestmark = pytest.mark.xdist_group("browser")  # one browser at a time
B, T, N, h, w = 3, 3, 7, 16, 16


@pytest.fixture(scope="module")
def scenes() -> AttentionTrace:
    """Scenes whose maps come to follow the true segments; slots 4 and 6 are merged away in the end."""
    random = np.random.default_rng(0)
    pictures, true = map(np.stack, zip(*(scene(20_000_000 + number, "shapes") for number in range(B)), strict=True))
    slots = random.permutation(N)[:6][np.minimum(true, 5)]
    wanted = np.eye(N, dtype=np.float32)[slots].reshape(B, h, 128 // h, w, 128 // w, N).mean((2, 4)).transpose(0, 3, 1, 2)
    logits = np.stack([sharpness * wanted + 0.6 * random.standard_normal(wanted.shape) for sharpness in (1, 2.5, 5, 9)])
    maps = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)  # [T+1 B N h w]
    keep = np.ones((B, N), bool)
    unused = [slot for slot in range(N) if not (slots == slot).any()]
    keep[:, unused] = False
    maps[-2:, :, unused] = 0
    maps[-2:] /= maps[-2:].sum(axis=2, keepdims=True)
    names = [f"scene {number}" for number in range(B)]
    return AttentionTrace(pictures, maps[:-1], maps[-1], keep, true, names, {"run": "drawn by hand", "seed": 0})


def test_readouts_equal_numpy(visit, scenes):
    page = visit(explore(scenes, image=1))
    maps = np.concatenate([scenes.attention, scenes.decoder_attention[None]])[:, 1].astype(np.float32)  # [T+1 N h w]
    page.mouse.move(5, 5)
    np.testing.assert_allclose(table(page), maps.mean(axis=(2, 3)), atol=1e-6)
    expect(page.locator(".readout h3")).to_have_text("Share of the whole picture")
    for row, column in ((0, 0), (5, 11), (15, 3)):
        hover(page, row, column)
        np.testing.assert_allclose(table(page), maps[:, :, row, column], atol=1e-7)
        np.testing.assert_allclose(table(page, exact=False), maps[:, :, row, column], atol=0.00501)
        expect(page.locator(".readout h3")).to_have_text(f"Row {row}, column {column} of 16 × 16")
        x, y = (column * 8 + 3, row * 8 + 4)  # at .4 and .6 of a cell of 8 pixels
        true = scenes.segments[1, y, x]
        expect(page.locator(".readout p")).to_have_text(f"pixel {x}, {y} · true: {f'segment {true}' if true else 'background'}")
        tiles = [float(text) for text in page.locator(".tile .value").all_text_contents()]
        np.testing.assert_allclose(tiles, maps[T - 1, :, row, column], atol=0.00501)


@pytest.mark.parametrize("size, cells, exact", [((128, 128), (16, 16), 3), ((150, 210), (9, 14), 1)])
def test_segments_equal_numpy(visit, size, cells, exact):
    trace = some_trace(images=1, iterations=2, slots=6, cells=cells, size=size)
    page = visit(explore(trace, view="segments", stop=0))
    for stop in range(3):
        expected = trace.segments_of(trace.stops[stop])[0]
        shown = labels(page)[exact // 2 :: exact, exact // 2 :: exact]  # small pictures are drawn three times as large
        assert shown.shape == expected.shape and (shown == expected).mean() > 0.9999
        page.keyboard.press("ArrowRight")


def test_what_is_painted_equals_numpy(visit):
    size = (200, 260)
    trace = some_trace(images=1, iterations=2, slots=5, cells=(7, 9), size=size)
    page = visit(explore(trace, slot=2, stop=1))
    maps = upsample(trace.attention[:, 0], *size)  # [T N H W]
    grey = array(page, "e.runs[0].raster.grey").reshape(size).astype(float)
    entropy = upsample(trace.entropy_of(1), *size)[0]
    colours = palette.slot_colours(5).astype(float)

    def check(expected):
        difference = np.abs(pixels(page)[..., :3].astype(float) - expected)
        assert difference.mean() < 0.6 and np.quantile(difference, 0.999) < 2.5

    def share(values, colour):
        return grey[..., None] + (colour - grey[..., None]) * values[..., None]

    ask(page, "e.set({ opacity: { overlay: 1, heat: 1, segments: 1, difference: 1 } })")
    check(share(maps[1, 2], colours[2]))
    page.keyboard.press("h")
    check(overlay.heat_map(maps[1, 2]).astype(float))
    page.keyboard.press("d")
    gain = maps[1, 2] - maps[0, 2]
    check(np.where(gain[..., None] > 0, share(gain, np.array([213, 94, 0])), share(-gain, np.array([0, 114, 178]))))
    page.keyboard.press("Escape")  # all slots
    moved = np.abs(trace.attention[1, 0].astype(np.float32) - trace.attention[0, 0]).sum(axis=0) / 2
    check(overlay.heat_map(upsample(moved[None, None], *size)[0, 0]).astype(float))
    page.keyboard.press("h")
    check(overlay.heat_map(maps[1].max(axis=0)).astype(float))
    page.keyboard.press("o")
    check(np.einsum("nyx,nc->yxc", maps[1], colours))
    page.keyboard.press("m")
    own = array(page, "e.runs[0].raster.colours").reshape(*size, 4)[..., :3].astype(float)
    check(255 + (own - 255) * maps[1].max(axis=0)[..., None])
    page.keyboard.press("s")
    winners = maps[1].argmax(axis=0)
    inside = overlay.draw_outlines(np.zeros((*winners.shape, 3), np.uint8), winners)[..., 0] == 0
    shown, expected = pixels(page)[..., :3].astype(float), share(1 - entropy, colours[winners])
    assert np.abs(shown - expected)[inside].mean() < 0.6


def test_every_control(visit, scenes):
    page = visit(explore(scenes, stop=0))
    state = lambda name: ask(page, f"e.state.{name}")  # noqa: E731
    button = lambda name: page.get_by_role("button", name=name, exact=True)  # noqa: E731

    def changes(action, what=pixels):
        before = what(page)
        action()
        assert not np.array_equal(before, what(page))

    # iterations: slider, its ticks, the table's heads, arrow keys from anywhere, play
    slider = page.get_by_role("slider", name="iteration")
    changes(lambda: slider.press("ArrowRight"))
    assert state("stop") == 1 and slider.get_attribute("aria-valuetext") == "iteration 2"
    page.locator(".ticks button", has_text="decoder").click()
    assert state("stop") == T and slider.get_attribute("aria-valuetext") == "decoder"
    page.locator("thead button", has_text="2").click()
    assert state("stop") == 1
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert state("stop") == T
    expect(page.locator("[role=status]")).to_have_text("decoder")
    button("Play (space)").click()
    page.wait_for_function("() => document.querySelector('#explorer').explorer.state.stop === 1", timeout=6000)
    page.locator("h1").click()
    page.keyboard.press(" ")
    expect(button("Play (space)")).to_be_visible()

    # views, by button and by key, and their options
    for key, name in zip("hmsdo", ("Heat map", "Masked", "Segments", "Difference", "Overlay"), strict=True):
        changes(lambda key=key: page.keyboard.press(key))
        expect(button(name)).to_have_attribute("aria-pressed", "true")
        caption = page.locator("figcaption").inner_text()
        assert caption and "#" not in caption and "@" not in caption
    changes(button("Segments").click)
    changes(page.get_by_label("fade by entropy").uncheck)
    changes(lambda: page.get_by_label("opacity").press("ArrowLeft"))
    page.get_by_label("numbers").uncheck()
    assert state("numbers") is False
    changes(button("Difference").click)
    changes(lambda: page.get_by_label("since").select_option("decoder"))
    assert "since decoder" in page.locator("figcaption").inner_text()
    assert not pixels(page, "e.runs[0].marks").any()
    page.get_by_label("true outlines").check()
    assert pixels(page, "e.runs[0].marks").any()
    page.keyboard.press("t")
    assert not pixels(page, "e.runs[0].marks").any()
    button("Overlay").click()

    # one slot alone: its tile, its row, its digit
    changes(page.locator(".tile").nth(3).click)
    assert state("chosen") == [3] and page.locator(".tile").nth(3).get_attribute("aria-pressed") == "true"
    page.locator(".tile").nth(3).click()
    assert state("chosen") == [None]
    page.locator("tbody th button").nth(2).click()
    assert state("chosen") == [2]
    page.keyboard.press("5")
    assert state("chosen") == [5]
    page.keyboard.press("9")  # there is none
    assert state("chosen") == [5]

    # lock: hovering changes nothing, Escape frees; keys move the cursor
    hover(page, 4, 9, click=True)
    assert state("location") == [4, 9] and "locked" in page.locator(".readout p").inner_text()
    values = table(page)
    hover(page, 12, 2)
    np.testing.assert_array_equal(table(page), values)
    page.locator(".stage").focus()
    page.keyboard.press("Shift+ArrowDown")
    assert state("location") == [5, 9]
    expect(page.locator("[role=status]")).to_have_text(re.compile(r"locked row 5, column 9: slot \d 0\.\d\d, "))
    page.keyboard.press("Enter")
    assert state("location") is None
    hover(page, 4, 9, click=True)
    hover(page, 4, 9, click=True)
    assert state("location") is None
    page.keyboard.press("Escape")
    assert state("chosen") == [None]
    hover(page, 3, 2, area=".tile .small")  # tiles share the cursor
    expect(page.locator(".readout h3")).to_have_text("Row 3, column 2 of 16 × 16")
    assert page.locator(".stage .cursor").evaluate("(cursor) => [cursor.style.left, cursor.style.top]") == ["12.5%", "18.75%"]

    # zoom by button, key and wheel, shared by tiles; drag
    before = pixels(page, "e.runs[0].tiles[0].picture")
    page.locator(".stage").hover()
    changes(button("Zoom in (+)").click)
    assert state("seen.size") == 0.5 and (pixels(page, "e.runs[0].tiles[0].picture") != before).any()
    changes(lambda: page.keyboard.press("+"))
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    left = state("seen.x")
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 200, steps=3)
    page.mouse.up()
    assert state("seen.x") == pytest.approx(min(left + 100 / box["width"] * 0.25, 0.75)) and state("location") is None
    expected = upsample_window(scenes.attention[1, 0], *(state(f"seen.{name}") for name in ("x", "y", "size")), 384)
    assert (labels(page) == expected.argmax(axis=0)).mean() > 0.999
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    assert state("seen.size") == pytest.approx(0.2)
    button("Whole picture (r)").click()
    assert state("seen.size") == 1

    # pictures
    button("picture 3: scene 2").click()
    expect(page.locator("h1")).to_have_text("scene 2")
    page.keyboard.press("]")
    expect(page.locator("h1")).to_have_text("scene 0")
    page.keyboard.press("[")
    expect(page.locator("h1")).to_have_text("scene 2")
    np.testing.assert_allclose(table(page)[0], scenes.attention[0, 2].astype(float).mean(axis=(1, 2)), atol=1e-6)

    # help, theme
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    picture(page, "help")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    button("Light or dark (l)").click()
    assert ask(page, "getComputedStyle(e.root).color") == "rgb(232, 234, 237)"
    page.keyboard.press("l")
    assert ask(page, "e.dark") is False


TRAINING = dict(images=2, iterations=2, slots=7, cells=(6, 6), size=(64, 64))


def test_every_training_step_is_shown(visit):
    """Slider, ticks, keys and play; table, tiles, hover and kept slots follow."""
    trace = some_training((0, 50, 200, 1000), **TRAINING)
    trace = AttentionTrace.over_training({step: trace.at(step) for step in (0, 50, 200, 1000)} | {50: whole(trace.at(50))})
    page = visit(explore(trace, stop="decoder"))
    slider, state = page.get_by_role("slider", name="training step"), lambda name: ask(page, f"e.state.{name}")
    table_of = lambda step: np.concatenate([trace.at(step).attention, trace.at(step).decoder_attention[None]])[:, 0].astype(float)  # noqa: E731
    np.testing.assert_allclose(table(page), table_of(1000).mean(axis=(2, 3)), atol=1e-6)
    expect(page.locator(".about")).to_contain_text("7 slots, 6 after iteration 1")
    before = pixels(page, "e.runs[0].tiles[0].picture")
    for step, key in ((200, ","), (50, ","), (0, ",")):
        page.keyboard.press(key)
        expect(page.locator("[role=status]")).to_have_text(f"training step {step}")
        assert slider.get_attribute("aria-valuetext") == f"training step {step}" and ask(page, "e.model.get('step')") == step
        np.testing.assert_allclose(table(page), table_of(step).mean(axis=(2, 3)), atol=0.51 / 255)
        hover(page, 2, 4, cells=(6, 6))
        np.testing.assert_allclose(table(page), table_of(step)[:, :, 2, 4], atol=0.51 / 255)
        shown = labels(page)[1::3, 1::3]
        assert (shown == trace.at(step).segments_of("decoder")[0]).mean() > 0.97  # bytes: a border moves by less than a pixel
        kept = trace.at(step).keep[0].sum()
        expect(page.locator(".about")).to_contain_text(f"7 slots, {kept} after iteration 1" if kept < 7 else "7 slots ·")
        assert page.locator(".tile.merged").count() == 7 - kept
        page.mouse.move(5, 5)
    assert (pixels(page, "e.runs[0].tiles[0].picture") != before).any() and state("stop") == 2
    page.keyboard.press(",")
    assert state("step") == 0
    page.locator(".ticks button", has_text="1,000").click()
    assert state("step") == 3 and slider.input_value() == "3"
    slider.press("ArrowLeft")
    assert state("step") == 2 and page.get_by_role("slider", name="iteration").input_value() == "2"
    page.keyboard.press("]")
    np.testing.assert_allclose(table(page)[-1], trace.at(200).decoder_attention[1].astype(float).mean(axis=(1, 2)), atol=0.51 / 255)
    page.get_by_role("button", name="Difference", exact=True).click()
    page.get_by_label("since").select_option("training step 0")
    expect(page.locator("figcaption")).to_contain_text("since training step 0")
    assert pixels(page).any()
    page.locator("h1").click()
    page.keyboard.press("p")
    page.wait_for_function("() => document.querySelector('#explorer').explorer.state.step === 0", timeout=6000)
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Play the training (p)")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("previous, next training step")


def test_the_page_goes_on_with_a_training_unless_somebody_looks_back(visit):
    """What `show` does in JupyterLab: other data in the same place."""
    page = visit(explore(some_training((0, 50), **TRAINING)))
    renew = "(e.model.set('data', argument), 0)"
    page.keyboard.press("l")
    dark = ask(page, "e.dark")
    ask(page, renew, payload([some_training((0, 50, 200), **TRAINING)]))
    assert ask(page, "[e.steps[e.state.step], e.model.get('step'), e.dark]") == [200, 200, dark]
    page.keyboard.press(",")
    ask(page, renew, payload([some_training((0, 50, 200, 1000), **TRAINING)]))
    assert ask(page, "[e.steps[e.state.step], e.model.get('step')]") == [50, 50]
    ask(page, renew, payload([some_trace(**TRAINING)]))
    assert ask(page, "[e.steps, e.model.get('step')]") == [[], 50]


def whole(trace: AttentionTrace) -> AttentionTrace:
    """The same with every slot kept."""
    return replace(trace, keep=np.ones_like(trace.keep))


MERGES = {3: 1, 5: 1, 6: 2}


def with_merging(iterations=4, merges=MERGES, after=3, slots=7, images=2, told=True, size=(64, 64)) -> AttentionTrace:
    """Random maps; in the first image the slots of `merges` go into others after so many iterations."""
    whole_one = some_trace(images=images, iterations=iterations, slots=slots, cells=(6, 6), size=size, keep=np.ones((images, slots), bool))
    maps = np.concatenate([whole_one.attention, whole_one.decoder_attention[None]]).astype(float)  # [T+1 B N h w]
    maps += 0.01 * (maps.sum(axis=(3, 4), keepdims=True) == 0)  # some_trace has merged one by itself
    keep, leader = np.ones((images, slots), bool), np.broadcast_to(np.arange(slots), (iterations, images, slots)).copy()
    for slot, into in merges.items():
        maps[after:, 0, slot], keep[0, slot], leader[after:, 0, slot] = 0, False, into
    maps /= maps.sum(axis=2, keepdims=True)
    return replace(whole_one, attention=maps[:-1], decoder_attention=maps[-1], keep=keep, leader=leader if told else None)


@pytest.mark.parametrize(
    "fields, gone, tags, took, about",
    [
        ({}, [3, 5, 6], ["in 1", "in 1", "in 2"], {1: "+ 3, 5", 2: "+ 6"}, "7 slots, 4 after iteration 3"),
        ({"merges": {1: 0}, "after": 1}, [1], ["in 0"], {0: "+ 1"}, "7 slots, 6 after iteration 1"),
        ({"merges": {11: 10}, "slots": 13, "after": 2}, [11], ["in 10"], {10: "+ 11"}, "13 slots, 12 after iteration 2"),
        ({"told": False}, [3, 5, 6], ["merged"] * 3, {}, "7 slots, 4 after iteration 3"),
        ({"merges": {4: 0}, "after": 4}, [4], ["in 0"], {}, "7 slots, 6 after iteration 4"),  # only the decoder's map is empty
        ({"merges": {4: 0}, "after": 0, "told": False}, [4], ["left out"], {}, "6 of 7 slots kept"),
    ],
)
def test_a_slot_is_gone_from_the_iteration_on_at_which_it_is(visit, fields, gone, tags, took, about):
    after = fields.get("after", 3)
    if after == 4:
        trace = with_merging(**fields | {"told": False})
        tags = ["merged"]
    else:
        trace = with_merging(**fields)
    page = visit(explore(trace, stop=0))
    expect(page.locator(".about")).to_contain_text(about)
    tiles, rows = page.locator(".tile"), page.locator("tbody tr")
    for stop in range(5):
        ready(page)
        for kind in (tiles, rows):
            greyed = kind.evaluate_all("all => all.flatMap((one, slot) => one.classList.contains('merged') ? [slot] : [])")
            assert greyed == (gone if stop >= after else []), stop
        shown = tiles.locator(".tag").all_inner_texts()
        expected = dict(zip(gone, tags)) | took if stop >= after else {}
        assert shown == [expected.get(slot, "") for slot in range(trace.num_slots)], stop
        page.keyboard.press("ArrowRight")
    title = tiles.nth(gone[0]).get_attribute("title")
    words = {"in": f"merged into slot {tags[0].split()[-1]}", "merged": "merged into another", "left": "left out from the start"}
    assert title == words[tags[0].split()[0]] and words[tags[0].split()[0]] in tiles.nth(gone[0]).get_attribute("aria-label")
    for slot in took:
        assert tiles.nth(slot).get_attribute("title") == f"with what was slot {took[slot][2:]}"
    page.keyboard.press("]")  # nothing is merged in the second image
    expect(page.locator("h1")).to_have_text("1")
    assert page.locator(".tile.merged").count() == 0


def test_a_cluster_has_one_colour_at_every_iteration(visit):
    trace, colours = with_merging(), palette.slot_colours(7).astype(float)
    page = visit(explore(trace, stop=0))
    of = lambda kind: page.locator(kind).evaluate_all("all => all.map((one) => one.style.getPropertyValue('--slot'))")  # noqa: E731
    box = page.get_by_label("one colour a cluster")
    ask(page, "e.set({ opacity: { ...e.state.opacity, overlay: 1 } })")
    for clustered, numbers in ((True, [0, 1, 2, 1, 4, 1, 2]), (False, range(7)), (True, [0, 1, 2, 1, 4, 1, 2])):
        if box.is_checked() != clustered:
            page.keyboard.press("g")
        for stop in range(5):
            ask(page, "e.set({ stop: argument })", stop)
            assert of(".tile") == of("tbody tr") == [f"rgb({','.join(map(str, palette.slot_colours(7)[number]))})" for number in numbers]
            maps = upsample(trace.maps_of(trace.stops[stop])[0], 64, 64)
            mixed = np.einsum("nyx,nc->yxc", maps, colours[list(numbers)])
            assert np.abs(pixels(page)[1::3, 1::3, :3] - mixed).mean() < 0.6
    page.keyboard.press("]")  # nothing is merged here: there is nothing to choose
    expect(page.locator("h1")).to_have_text("1")
    ready(page)
    assert box.is_hidden() and len({*of(".tile")}) == 7


def test_slots_of_two_runs_that_match_have_one_colour(visit, scenes):
    order = np.random.default_rng(3).permutation(N)
    maps = {"attention": scenes.attention[:, :, order], "decoder_attention": scenes.decoder_attention[:, order]}
    other = replace(scenes, **maps, keep=scenes.keep[:, order], about={"run": "the same under other numbers"})
    page = visit(explore([scenes, other], stop="decoder", view="segments"))
    first, second = (
        page.locator(".run").nth(run).locator(".tile").evaluate_all("all => all.map((one) => one.style.getPropertyValue('--slot'))")
        for run in (0, 1)
    )
    kept = scenes.keep[0, order]
    assert [colour for colour, keep in zip(second, kept) if keep] == [first[slot] for slot, keep in zip(order, kept) if keep]
    assert len({*second}) == N and (pixels(page, "e.runs[0].base") == pixels(page, "e.runs[1].base")).mean() > 0.999
    slot = int(kept.argmax())
    assert page.locator(".run").nth(1).locator(".tile").nth(slot).get_attribute("title") == f"like slot {order[slot]} of the first run"


@pytest.mark.parametrize("width", [400, 404, 864])  # a narrow window, and notebook columns: the panel has 368 to 380 pixels
@pytest.mark.parametrize("iterations, slots", [(3, 7), (8, 7), (11, 13), (6, 24)])
def test_the_whole_table_fits_a_narrow_panel_and_ticks_stand_apart(visit, width, iterations, slots):
    merges, told = {3: 1, slots - 1: slots - 2}, iterations != 8  # of 8 iterations it is not known into whom slots are merged
    trace = with_merging(iterations=iterations, slots=slots, merges=merges, after=iterations - 1, told=told)
    page = visit(explore(trace), width=width)
    ready(page)
    sizes = page.locator(".scroll").evaluate("one => [one.clientWidth, one.scrollWidth]")
    assert 340 < sizes[0] <= 380 and sizes[1] <= sizes[0]
    cut = "all => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => [one.textContent, one.scrollWidth, one.clientWidth])"
    assert page.locator("td, tbody th, thead th").evaluate_all(cut) == []
    assert page.locator("tbody .tag").evaluate_all(cut) == []
    np.testing.assert_allclose(table(page, exact=False), table(page), atol=0.00501)
    for stop in range(iterations + 1):
        ask(page, "e.set({ stop: argument })", stop)
        ready(page)
        ticks = page.locator(".ticks button:not([hidden])")
        boxes = ticks.evaluate_all("all => all.map((one) => one.getBoundingClientRect().toJSON())")
        assert len(boxes) >= 3 and all(one["right"] <= other["left"] + 1 for one, other in zip(boxes, boxes[1:])), stop
        assert ticks.evaluate_all("all => all.filter((one) => one.classList.contains('now')).length") == 1
    picture(page, f"panel {width} {iterations + 1} stops")


def test_an_address_restores_the_view(visit, scenes, tmp_path):
    path = explore(scenes, slot=1).to_html(tmp_path / "page.html")
    page = visit(path)
    standing = "[e.state.image, e.state.stop, e.state.chosen[0], e.state.view, e.state.location]"
    page.goto(f"{path.as_uri()}#image=2&stop=3&slot=4&view=segments&at=5,6")
    assert ask(page, standing) == [2, 3, 4, "segments", [5, 6]]
    expect(page.locator(".readout h3")).to_have_text("Row 5, column 6 of 16 × 16")
    page.keyboard.press("Escape")  # another view, another address; and back by it
    page.keyboard.press("[")
    page.keyboard.press("h")
    page.wait_for_function("() => location.hash === '#image=1&stop=3&view=heat'")
    page.reload()
    assert ask(page, standing) == [1, 3, None, "heat", None]
    page.evaluate("() => { location.hash = '#image=0&at=15,15'; }")  # typed into the page that is open
    page.wait_for_function("() => document.querySelector('#explorer').explorer.state.location?.join() === '15,15'")
    assert ask(page, standing) == [0, 3, None, "heat", [15, 15]]


def test_in_a_frame_the_address_is_the_notebooks_own(visit, scenes, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<h1>A notebook</h1>{explore(scenes)._repr_html_()}")
    page = visit(path)
    page.goto(f"{path.as_uri()}#image=2&stop=0")
    page.reload()
    frame = frame_of(page)
    assert frame.evaluate("() => document.querySelector('#explorer').explorer.state.image") == 0
    frame.locator(".film button").nth(1).click()
    expect(frame.locator("h1")).to_have_text("scene 1")
    page.wait_for_timeout(400)  # longer than a page of its own would wait
    assert page.url.endswith("#image=2&stop=0") and frame.url == "about:srcdoc"


@pytest.mark.parametrize(
    "address, expected",
    [
        ("image=3&stop=4&slot=7&view=nothing&at=16,0", [0, 2, 1, "overlay", None]),  # each one too far
        ("image=-1&stop=1.5&slot=x&view=&at=5&step=0", [0, 2, 1, "overlay", None]),
        ("image=1&stop=99&at=5,6,7&view=<img src=x onerror=alert(1)>", [1, 2, None, "overlay", None]),
        ("some-heading", [0, 2, 1, "overlay", None]),
        ("image=2&image=1&at=%35,6&view=__proto__", [2, 2, None, "overlay", [5, 6]]),
    ],
)
def test_wrong_values_in_an_address_are_ignored(visit, scenes, tmp_path, address, expected):
    path = explore(scenes, slot=1).to_html(tmp_path / "page.html")
    page = visit(path, strict=False)
    page.goto("about:blank")
    page.goto(f"{path.as_uri()}#{address}")
    assert ask(page, "[e.state.image, e.state.stop, e.state.chosen[0], e.state.view, e.state.location]") == expected


@pytest.mark.parametrize("size, runs", [((64, 64), 1), ((60, 96), 2), ((300, 200), 1)])
def test_a_png_for_print(visit, size, runs, tmp_path):
    trace = with_merging(size=size)
    page = visit(explore([trace] * runs if runs > 1 else trace, view="overlay"))
    with page.expect_download() as download:
        page.keyboard.press("e")
    assert download.value.suggested_filename == "0-iteration-4-overlay.png"
    download.value.save_as(tmp_path / "print.png")
    with Image.open(tmp_path / "print.png") as image:
        (width, height), picture_width = image.size, (image.width + 24) // runs - 24
        assert 2000 <= width <= 2500 and abs(height - 112 // runs - picture_width * size[0] / size[1]) < 2
        shown = np.asarray(image.convert("RGB"), float)[: round(picture_width * size[0] / size[1]), :picture_width]
    small = pixels(page)[..., :3].astype(float)
    reduced = np.asarray(Image.fromarray(shown.astype(np.uint8)).resize(small.shape[1::-1], Image.Resampling.BOX), float)
    assert np.corrcoef(reduced.ravel(), small.ravel())[0, 1] > 0.95  # the same picture, drawn finer
    expect(page.locator("[role=status]")).to_contain_text("saved as 0-iteration-4-overlay.png")


def test_a_trace_of_one_step_has_no_second_slider(visit, scenes):
    page = visit(explore(AttentionTrace.over_training({7: scenes})))
    assert page.get_by_role("slider", name="training step").count() == 0
    for key in ",.p":
        page.keyboard.press(key)
    assert ask(page, "e.model.get('step')") == 7


def test_two_trainings_share_the_slider(visit):
    first, second = (some_training(steps, **TRAINING) for steps in ((0, 100, 200), (0, 50, 200, 300)))
    page = visit(explore([first, second]))
    titles = page.locator("h2 span")
    expect(titles).to_have_text(["iteration 2 · training step 200", "iteration 2 · training step 300"])
    for steps in ((200, 200), (100, 50), (0, 50), (0, 0)):  # each has the last of its own so far
        page.keyboard.press(",")
        expect(titles).to_have_text([f"iteration 2 · training step {step}" for step in steps])
        for run, (trace, step) in enumerate(zip((first, second), steps, strict=True)):
            expected = trace.at(step).attention[:, 0].astype(float).mean(axis=(2, 3))
            np.testing.assert_allclose(table(page, run)[:2], expected, atol=0.51 / 255)


def test_a_training_in_a_narrow_window_and_in_the_dark(visit):
    trace = some_training(range(0, 110_000, 10_000), **TRAINING)
    page = visit(explore(trace), width=400, height=800, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for key in ".,,,,":
        ticks = page.locator(".timeline").nth(1).locator(".ticks button:not([hidden])")
        boxes = ticks.evaluate_all("all => all.map((one) => one.getBoundingClientRect().toJSON()).filter((one) => one.width)")
        assert len(boxes) >= 3 and all(one["x"] + one["width"] <= other["x"] + 1 for one, other in zip(boxes, boxes[1:]))
        page.keyboard.press(key)
        page.wait_for_timeout(300)  # the page draws when the browser does
    assert min(ratio for _, ratio in page.evaluate(CONTRAST)) > 4.5
    picture(page, "training narrow")


def upsample_window(maps, x, y, size, pixels):
    """Maps [N h w] in a window of the picture, [N pixels pixels]: the definition, by its own arithmetic."""

    def weights(count, start):
        place = ((start + (np.arange(pixels) + 0.5) / pixels * size) * count - 0.5).clip(0, count - 1)
        return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0)

    return weights(maps.shape[1], y) @ maps.astype(float) @ weights(maps.shape[2], x).T


def test_copy_as_png(visit, scenes, tmp_path):
    page = visit(explore(scenes))
    hover(page, 4, 9, click=True)
    page.evaluate("() => { navigator.clipboard.write = () => Promise.reject(new Error('closed')); }")  # as in many iframes
    with page.expect_download() as download:
        page.keyboard.press("c")
    download.value.save_as(tmp_path / "copied.png")
    with Image.open(tmp_path / "copied.png") as image:
        assert image.size == (128 * 8, 128 * 8 + 56)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 200
    keep = "async (items) => { window.copied = (await items[0].getType('image/png')).size; }"
    page.evaluate(f"() => {{ navigator.clipboard.write = {keep}; }}")
    page.get_by_role("button", name="Copy as PNG (c)").click()
    page.wait_for_function("() => window.copied > 10000")
    expect(page.locator("[role=status]")).to_have_text("copied as PNG")


def test_two_runs_are_linked(visit, scenes):
    other = some_trace(images=B, iterations=5, slots=4, cells=(9, 9), size=(128, 128), pictures=scenes.images, names=scenes.names, about={"run": "other"})
    page = visit(explore([scenes, other], stop="decoder"))
    hover(page, 8, 8, click=True)
    np.testing.assert_allclose(table(page, 0)[-1], scenes.decoder_attention[0, :, 8, 8].astype(float), atol=1e-7)
    np.testing.assert_allclose(table(page, 1)[-1], other.decoder_attention[0, :, 4, 4].astype(float), atol=1e-7)
    assert ask(page, "e.model.get('location')") == [8, 8]
    page.locator(".run").nth(1).locator(".tile").nth(2).click()
    assert ask(page, "e.state.chosen") == [None, 2] and ask(page, "e.model.get('slot')") is None
    page.get_by_role("slider", name="iteration").press("ArrowLeft")
    expect(page.locator("h2 span")).to_have_text(["iteration 3", "iteration 5"])  # the first has no more
    assert (labels(page, 1)[1::3, 1::3] == other.segments_of(4)[0]).mean() > 0.9999
    assert page.locator(".stage .cursor").count() == 2
    picture(page, "two runs")


def test_names_are_text(visit, scenes):
    trace = AttentionTrace(scenes.images[:2], scenes.attention[:, :2], None, scenes.keep[:2], names=[HOSTILE, "b"], about={"run": HOSTILE})
    page = visit(explore(trace))
    expect(page.locator("h1")).to_have_text(HOSTILE, use_inner_text=False)
    assert page.locator("img").count() == 2  # the film strip's
    assert page.evaluate("document.scripts.length") == 3


def test_the_page_forbids_the_network_and_other_scripts(browser, scenes, tmp_path):
    """Not by `visit`, which has no network and fails on errors."""
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page()
        page.goto(explore(scenes).to_html(tmp_path / "x.html").as_uri())
        page.evaluate(
            """(address) => { const add = (tag, properties) => document.body.append(Object.assign(document.createElement(tag), properties));
            add("script", { textContent: "window.executed = 1" }); add("script", { src: address }); add("img", { src: address });
            add("iframe", { src: address }); add("p", { innerHTML: "<b onclick='window.executed = 1'>x</b>" });
            document.querySelector("b").click(); }""",
            address,
        )
        blocked = page.evaluate("(address) => fetch(address, { mode: 'no-cors' }).then(() => 'open', (error) => String(error))", address)
        assert "TypeError" in blocked and page.evaluate("window.executed") is None and asked == []
        page.goto(address, wait_until="commit")
        assert "/" in asked  # it would have been heard
        page.close()
        server.shutdown()


def test_large_images_are_read_in_their_own_pixels(visit):
    trace = some_trace(images=1, iterations=1, slots=3, cells=(12, 16), size=(3000, 4000))
    page = visit(explore(trace))
    expect(page.locator(".about")).to_contain_text("4000 × 3000 pixels · drawn at 19 % of its size")
    hover(page, 11, 15, cells=(12, 16))
    x, y = map(int, re.search(r"pixel (\d+), (\d+)", page.locator(".readout p").inner_text()).groups())
    assert abs(x - 15.4 / 16 * 4000) < 8 and abs(y - 11.6 / 12 * 3000) < 8  # a pixel of the screen is 7 of the image
    np.testing.assert_allclose(table(page)[0], trace.attention[0, 0, :, 11, 15].astype(float), atol=1e-7)


def test_many_slots_and_iterations_fit(visit):
    trace = some_trace(images=1, iterations=20, slots=200, cells=(8, 8), size=(64, 64))
    page = visit(explore(trace, stop=0), width=700)
    assert page.locator(".tile").count() == 200 and table(page).shape == (21, 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    hover(page, 2, 2, cells=(8, 8))
    picture(page, "200 slots")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_controls_have_names(visit, scenes, scheme):
    page = visit(explore(scenes, view="segments", stop="decoder"), color_scheme=scheme)
    page.keyboard.press("t")
    hover(page, 4, 9, click=True)
    picture(page, f"scene {scheme}")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme
    ratios = page.evaluate(CONTRAST)
    assert ratios and min(ratio for _, ratio in ratios) > 4.5, sorted(ratios, key=lambda pair: pair[1])[:3]
    unnamed = "(all) => all.filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"
    assert page.locator("button, input, select, [tabindex='0'], [role]").evaluate_all(unnamed) == []
    seen = []
    for _ in range(60):  # Tab reaches every kind of control
        page.keyboard.press("Tab")
        seen.append(page.evaluate("(() => { const one = document.querySelector('#explorer').shadowRoot.activeElement; return one && (one.ariaLabel || one.className || one.textContent); })()"))
    assert {"iteration", "Copy as PNG (c)", "Play (space)"} <= set(seen) and any("shift and arrow keys" in str(one) for one in seen)
    assert any("show it alone" in str(one) for one in seen)


CONTRAST = """() => {
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const root = document.querySelector("#explorer").shadowRoot, result = [];
  for (const one of root.querySelectorAll("h1, h3, p, button, label, th, figcaption, .tag, .value")) {
    if (!one.textContent.trim() || !one.checkVisibility() || one.closest(".zoom, dialog")) continue;
    let ground = one;
    while (ground && /, 0\\)$|transparent/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
    const [a, b] = [light(getComputedStyle(one).color), light(getComputedStyle(ground).backgroundColor)];
    result.push([one.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return result;
}"""


def test_a_narrow_window(visit, scenes):
    page = visit(explore(scenes), width=400, height=800)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    stage, tiles = page.locator(".stage").bounding_box(), page.locator(".tiles").bounding_box()
    assert stage["width"] > 340 and tiles["y"] > stage["y"] + stage["height"]
    hover(page, 4, 9, click=True)
    picture(page, "narrow")


def test_photos(visit, real_data):
    """Photos, and maps by likeness of colour and place to seven cells; sharper with every iteration."""
    random, photos = np.random.default_rng(0), []
    for path in sorted((real_data / "coco" / "val2017").glob("*.jpg"))[:12]:
        with Image.open(path) as photo:
            photos.append(np.asarray(ImageOps.fit(photo.convert("RGB"), (256, 256))))
    photos = np.stack(photos)
    colours = photos.reshape(12, h, 16, w, 16, 3).mean((2, 4)) / 60
    cells = np.concatenate([colours, np.broadcast_to(np.stack(np.mgrid[:h, :w], -1) / 5, (12, h, w, 2))], -1).reshape(12, h * w, 5)
    centres = cells[:, random.choice(h * w, N, replace=False)]  # [12 N 5]
    likeness = -((cells[:, None] - centres[:, :, None]) ** 2).sum(-1).reshape(12, N, h, w)
    maps = np.exp([sharpness * likeness for sharpness in (0.2, 0.6, 1.5, 3)])
    maps = maps / maps.sum(axis=2, keepdims=True)
    page = visit(explore(AttentionTrace(photos, maps[:-1], maps[-1], np.ones((12, N), bool))))
    page.keyboard.press("]")
    hover(page, 6, 8, click=True)
    np.testing.assert_allclose(table(page), maps[:, 1, :, 6, 8], atol=1e-3)
    picture(page, "photos")


def test_time_of_a_step(visit):
    """Printed, not asserted."""
    trace = some_trace(images=1, iterations=3, slots=24, cells=(16, 16), size=(256, 256))
    page = visit(explore(trace))
    for view in ("overlay", "heat", "masked", "segments", "difference"):
        step, frame = page.evaluate(STEP_TIME, view)
        print(f"24 slots at 256 x 256, {view}: {step:.1f} ms a step, {frame:.1f} ms between frames (medians of 30)")
        assert step > 0
    picture(page, "24 slots")


STEP_TIME = """async (view) => {
  const e = document.querySelector("#explorer").explorer, steps = [], frames = [];
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1], frame = () => new Promise(requestAnimationFrame);
  e.set({ view });
  for (const stop of e.stops.keys()) { e.set({ stop }); await frame(); }
  for (let i = 0; i < 30; i++) {
    let start = performance.now();
    e.set({ stop: i % e.stops.length });
    e.drawNow();
    e.runs[0].base.getContext("2d").getImageData(0, 0, 1, 1); // what was recorded is carried out
    e.root.getBoundingClientRect();
    steps.push(performance.now() - start);
    await frame();
  }
  for (let i = 0, last = await frame(); i < 30; i++) {
    e.set({ stop: i % e.stops.length });
    const now = await frame();
    frames.push(now - last);
    last = now;
  }
  return [median(steps), median(frames)];
}"""


# ---------------------------------------------------------------- notebooks

CELLS = (
    "from dias_lab.trace import AttentionTrace\nfrom dias_lab.viz import explore\ntrace = AttentionTrace.load('trace.npz')",
    "explore(trace)",
    "live, heard = explore(trace, live=True), []\nlive.observe(lambda change: heard.append(change['new']), names=['location'])\nlive",
    "print('HEARD', heard, live.slot, live.stop)\nlive.location, live.stop, live.view = [2, 3], 0, 'heat'",
)


@pytest.fixture
def notebook(tmp_path, scenes) -> Path:
    scenes.save(tmp_path / "trace.npz")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "explore.ipynb")
    return tmp_path / "explore.ipynb"


def frame_of(page):
    """The explorer in the first iframe: its frame, once it is drawn."""
    element = page.locator("iframe").first
    element.scroll_into_view_if_needed()
    frame = element.element_handle().content_frame()
    frame.wait_for_function("() => document.querySelector('#explorer')?.explorer?.picture")
    return frame


def check_frame(page, scenes):
    """The explorer in an iframe moves and reads."""
    frame = frame_of(page)
    slider = frame.get_by_role("slider", name="iteration")
    slider.focus()
    slider.press("Home")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "iteration 2")
    frame.locator(".stage").click(position={"x": 5, "y": 5})
    expect(frame.locator(".readout h3")).to_have_text("Row 0, column 0 of 16 × 16")
    value = frame.locator("tbody tr").nth(1).locator("td").nth(1).get_attribute("data-value")
    assert float(value) == pytest.approx(float(scenes.attention[1, 0, 1, 0, 0]), abs=1e-7)
    height = page.locator("iframe").first.evaluate("(frame) => [frame.clientHeight, frame.contentDocument.body.offsetHeight]")
    assert height[0] == height[1]  # no scroll bar inside


def test_executed_notebooks_keep_it_alive_as_html(visit, notebook, scenes):
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    from dias_lab.book import gallery

    executed = nbformat.read(notebook, as_version=4)
    del executed.cells[2:]
    NotebookClient(executed, resources={"metadata": {"path": str(notebook.parent)}}, store_widget_state=False).execute()
    assert len(json.dumps(executed)) < 1_000_000
    path = notebook.with_suffix(".html")
    path.write_text(HTMLExporter().from_notebook_node(executed)[0])
    page = visit(path, strict=False)  # nbconvert's own page asks the network for scripts, and does not need them
    check_frame(page, scenes)
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'false'; }")  # JupyterLab's dark theme
    expect(frame_of(page).locator(".explorer")).to_have_class(re.compile(r"\bdark\b"))
    path.write_text(gallery.page(executed, "explore"))
    check_frame(visit(path), scenes)


BEFORE_TRAINING = """import torch
from IPython.display import display
from dias_lab import Config, fit, runs
from dias_lab.viz import Watch
torch.set_num_threads(1)
live, run_dir = True, {run_dir!r}
config = Config(**{config!r})"""


@pytest.mark.slow
def test_a_training_is_watched_in_jupyterlab_and_stops(browser, lab, tmp_path, small_config):
    """The cell of notebook 03, with a training that would take hours."""
    run_dir = tmp_path / "run"
    config = small_config.replace(steps=1_000_000, evaluate_every=25, trace_images=3).to_dict()
    notebook = nbformat.read(ROOT / "notebooks" / "03_training.ipynb", as_version=4)
    (cell,) = (cell.source for cell in notebook.cells if "watch=watch" in cell.source)
    first = BEFORE_TRAINING.format(run_dir=str(run_dir), config=config)
    page = opened_in_lab(browser, lab, tmp_path / "watch.ipynb", [first, cell, "print('went on')"], height=1700)
    run_all(page)
    page.wait_for_function(f"() => {SEEN}?.picture && {SEEN}.steps.length >= 4", timeout=120_000)
    training = page.locator(".jp-CodeCell").nth(1)
    expect(training.locator(".jp-InputPrompt")).to_have_text("[*]:")
    page.locator("[data-lm-suppress-shortcuts] .stage").focus()
    for _ in range(40):
        page.keyboard.press(",")
    page.wait_for_function(f"() => {SEEN}?.steps[{SEEN}.state.step] === 0")  # looked at while it trains
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "training in jupyterlab.png")
    page.wait_for_function(f"(count) => {SEEN}?.steps.length > count", arg=page.evaluate(f"() => {SEEN}.steps.length"), timeout=60_000)
    page.wait_for_function(f"() => {SEEN}?.picture && {SEEN}.steps[{SEEN}.state.step] === 0")  # and stays there
    page.evaluate(f"async () => {{ await {KERNEL}.interrupt(); }}")
    expect(training).to_contain_text("SystemExit: stopped: run this cell again to go on", timeout=60_000)
    expect(training.locator(".jp-InputPrompt")).to_have_text("[2]:")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "training stopped.png")
    assert "Traceback" not in training.inner_text()
    assert page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").count() == 0  # the queue ends as well
    assert (run_dir / "checkpoints").is_dir() and not (run_dir / "error.json").exists()
    page.close()


def test_live_in_jupyterlab(browser, lab, notebook, scenes):
    context = browser.new_context(viewport={"width": 1500, "height": 3600})
    context.route(lambda url: not url.startswith(lab), lambda route: route.abort())  # the network is off
    page = context.new_page()
    page.goto(f"{lab}/lab/tree/{notebook.name}?token=abc")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    run_one = "async () => { await window.jupyterapp.commands.execute('notebook:run-cell-and-select-next'); }"
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.locator(".jp-CodeCell").first.locator(".jp-InputPrompt").click()
    for _ in range(3):
        page.evaluate(run_one)
    host = page.locator("[data-lm-suppress-shortcuts]").first
    host.wait_for()
    asked = lambda code: host.evaluate(f"(host) => {{ const e = host.explorer; return {code}; }}")  # noqa: E731
    page.wait_for_function("() => document.querySelector('[data-lm-suppress-shortcuts]').explorer?.picture")

    # the user locks a place, chooses a slot, and moves; the notebook's own keys stay out of it
    stage = host.locator(".stage")
    box = stage.bounding_box()
    page.mouse.click(box["x"] + (9 + 0.4) / w * box["width"], box["y"] + (4 + 0.6) / h * box["height"])
    host.locator(".tile").nth(3).click()
    stage.focus()
    for key in ("ArrowRight", "d", "d", "o"):
        page.keyboard.press(key)
    assert asked("[e.state.location, e.state.chosen, e.state.stop, e.state.view]") == [[4, 9], [3], T, "overlay"]
    assert page.locator(".jp-CodeCell").count() == len(CELLS)
    value = host.locator("tbody tr").nth(3).locator("td").nth(T).get_attribute("data-value")
    assert float(value) == pytest.approx(float(scenes.decoder_attention[0, 3, 4, 9]), abs=1e-7)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "jupyterlab.png")

    # Python saw it, and moves it
    page.locator(".jp-CodeCell").nth(3).locator(".jp-InputPrompt").click()
    page.evaluate(run_one)
    expect(page.locator(".jp-CodeCell").nth(3).locator(".jp-OutputArea-output")).to_contain_text(f"HEARD [[4, 9]] 3 {T}")
    page.wait_for_function("() => document.querySelector('[data-lm-suppress-shortcuts]').explorer.state.view === 'heat'")
    assert asked("[e.state.location, e.state.stop]") == [[2, 3], 0]

    # the kernel starts anew: the page in the iframe does not need it
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    check_frame(page, scenes)
    context.close()


CLOUD = """import pandas as pd
from dias_lab.trace import AttentionTrace
from dias_lab.viz.charts import score_cloud
from dias_lab.viz.controls import Clickable
trace = AttentionTrace.load("images.npz")
scores = pd.DataFrame({"first.ari": [0.1, 0.5, 0.9], "last.ari": [0.3, 0.6, 0.8]})
Clickable(score_cloud({"last over first": ("first", "last")}, scores, trace.names), trace)"""


@pytest.mark.slow
def test_a_click_on_a_point_opens_its_picture_in_jupyterlab(browser, lab, tmp_path):
    trace = some_trace(images=3)
    trace.save(tmp_path / "images.npz")
    page = opened_in_lab(browser, lab, tmp_path / "cloud.ipynb", [CLOUD], height=1600)
    run_all(page)
    points = page.locator(".scatterlayer .points path")
    expect(points).to_have_count(3, timeout=60_000)
    for number in (1, 2):
        box = points.nth(number).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator(".hovertext")).to_contain_text(trace.names[number])
        page.mouse.down()
        page.mouse.up()
        page.wait_for_function(f"(name) => {SEEN}?.data.images[0].name === name", arg=trace.names[number], timeout=30_000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "click in jupyterlab.png")
    page.close()
