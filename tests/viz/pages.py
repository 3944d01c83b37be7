"""What the tests ask of an explorer's page in a browser. Screenshots go to runs/screenshots/."""

import base64
from pathlib import Path

import nbformat
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "runs" / "screenshots"
h, w = 16, 16
KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
SEEN = "document.querySelector('[data-lm-suppress-shortcuts]')?.explorer"  # of JupyterLab's page


def opened_in_lab(browser, lab: str, path: Path, sources: list[str], height: int):
    """A notebook of these cells, written to `path` in the lab's folder and open in its page, whose kernel waits."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    page = browser.new_page(viewport={"width": 1300, "height": height})
    page.goto(f"{lab}/lab/tree/{path.name}?token=abc")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function(f"() => {KERNEL}?.status === 'idle'")
    return page


def run_all(page):
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def ready(page):
    """Wait until what changed is drawn."""
    page.wait_for_function("() => { const e = document.querySelector('#explorer').explorer; return e.picture && !e.waiting.size; }")


def ask(page, code: str, argument=None):
    """The value of JavaScript code, in which `e` is the explorer, once everything is drawn."""
    ready(page)
    return page.evaluate(f"(argument) => {{ const e = document.querySelector('#explorer').explorer; return {code}; }}", argument)


def array(page, code: str) -> np.ndarray:
    """The bytes that JavaScript code gives, uint8 [length]."""
    joined = "let text = ''; for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));"
    return np.frombuffer(base64.b64decode(ask(page, f"((bytes) => {{ {joined} return btoa(text); }})({code})")), np.uint8)


def pixels(page, canvas: str = "e.runs[0].base") -> np.ndarray:
    """What a canvas shows, uint8 [height width 4]."""
    width, height = ask(page, f"[{canvas}.width, {canvas}.height]")
    return array(page, f"{canvas}.getContext('2d').getImageData(0, 0, {width}, {height}).data").reshape(height, width, 4)


def labels(page, run: int = 0) -> np.ndarray:
    """The stage's arg-max segments, uint8 [height width]."""
    raster = f"e.runs[{run}].raster"
    found = array(page, f"({raster}.winners(e.maps({run}, e.state.stop)), {raster}.labels)")
    return found.reshape(ask(page, f"[{raster}.height, {raster}.width]"))


def table(page, run: int = 0, exact: bool = True) -> np.ndarray:
    """The readout, [stops slots]."""
    ready(page)
    cells = page.locator(".run").nth(run).locator("tbody tr")
    take = "(rows) => rows.map((row) => [...row.querySelectorAll('td')].map((td) => Number(td.dataset.value)))"
    values = cells.evaluate_all(take if exact else take.replace("td.dataset.value", "td.textContent"))
    return np.array(values).T


def hover(page, row, column, cells=(h, w), area=".stage", click=False):
    box = page.locator(area).first.bounding_box()
    place = box["x"] + (column + 0.4) / cells[1] * box["width"], box["y"] + (row + 0.6) / cells[0] * box["height"]
    page.mouse.click(*place) if click else page.mouse.move(*place)
    ready(page)


def picture(page, name: str):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    ready(page)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
