"""Makes docs/explorer-*.png: test scenes and the shipped model in the explorer. Needs chromium. Usage: python docs/explorer.py"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from dias_lab import shipped
from dias_lab.data.scenes import SPLITS, scene
from dias_lab.viz import explore

SCENES = (4, 0, 1, 2, 5, 7)
PICTURES = {  # name: window, colour scheme, keys, the place to lock as shares of width and height
    "light": ((1160, 900), "light", "", (0.4, 0.4)),
    "dark": ((1160, 900), "dark", "st", None),
    "narrow": ((400, 900), "light", "", (0.4, 0.4)),
}

images, segments = map(np.stack, zip(*(scene(SPLITS["test"] + number) for number in SCENES), strict=True))
names = [f"test scene {number}" for number in SCENES]
pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
trace = shipped().trace(pictures, torch.from_numpy(segments), names=names, about={"run": "shipped"})
with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
    address = explore(trace, stop="decoder").to_html(Path(folder) / "page.html").as_uri()
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    for name, ((width, height), scheme, keys, place) in PICTURES.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(address)
        page.wait_for_selector(".tile .cursor", state="attached")
        for key in keys:
            page.keyboard.press(key)
        if place:
            box = page.locator(".stage").bounding_box()
            page.mouse.click(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
            page.mouse.move(1, 1)
        page.wait_for_timeout(500)
        path = Path(__file__).with_name(f"explorer-{name}.png")
        Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB").save(path, optimize=True)
        print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")
    browser.close()
