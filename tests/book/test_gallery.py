"""The site: pages that need no network, links that all lead somewhere, and nothing from a run that is taken for HTML."""

import html
import re
import shutil
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dias_lab.book import gallery
from dias_lab.book.page import page

PROJECT = Path(__file__).resolve().parents[2]
PLOT = {"application/vnd.plotly.v1+json": {"data": [{"y": [1, 2, 3], "type": "scatter"}], "layout": {}}}
PNG = b"\x89PNG\r\n\x1a\n the first figure"
TITLE = (
    "# Slots\n\nWhat does $s_n$ see? See [next](01_data.ipynb), [docs](../docs/one.md#how-it-works).\n\n"
    "$$\\begin{aligned} a &= \\frac{1}{2} \\\\ b &= 3\\end{aligned}$$"
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAS_LAB_ROOT", str(tmp_path))
    return tmp_path


def write(path, *cells):
    nbformat.write(new_notebook(cells=[new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]), path)
    return path


def shows(data, source="show()"):
    return new_code_cell(source, execution_count=1, outputs=[new_output("display_data", data=data)])


class Addresses(HTMLParser):
    """The addresses and anchors of a page; what stands in its scripts and frames is not of it."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("href", "src") and value is not None]
        self.anchors |= {value for name, value in attributes if name in ("id", "name")}


def dead_links(site: Path) -> list[str]:
    pages = {path: Addresses(path) for path in site.rglob("*.html")}
    dead = []
    for path, found in pages.items():
        for address in found.addresses:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchored = not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
            if not target.is_file() or not anchored:
                dead.append(f"{path.relative_to(site)}: {address}")
    return dead


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_front_page_shows_the_figure_that_is_called_best(root, best):
    images = [PNG + bytes([number]) for number in range(3)]
    cells = [shows({"image/png": b64encode(image).decode()}) for image in images]
    if best:  # without the tag, the first
        cells[best].metadata["tags"] = ["best figure"]
    gallery.publish(root / "site", "a", {}, [gallery.Entry("00_tour", "done", 2, write(root / "00.ipynb", TITLE, *cells))])
    assert (root / "site/a/00_tour.png").read_bytes() == images[best]


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html"></a><a href="#x"></a><p id="y"><a href="#y"></a><img src="c.png">')
    assert dead_links(tmp_path) == ["a.html: b.html", "a.html: #x", "a.html: c.png"]


@pytest.mark.parametrize("names", ["0", "05"])
def test_every_link_of_the_projects_own_site_leads_somewhere(root, names):
    shutil.copytree(PROJECT / "docs", root / "docs")
    notebooks = sorted((PROJECT / "notebooks").glob(f"{names}*.ipynb"))
    gallery.publish(root / "site", "scenes-1", {}, [gallery.Entry(path.stem, "done", 1, path) for path in notebooks])
    assert len(list((root / "site/scenes-1").glob("*.html"))) == len(notebooks)
    assert len(list((root / "site/docs").glob("*.html"))) == len(list((PROJECT / "docs").glob("*.md")))
    assert dead_links(root / "site") == []
    assert 'href="../docs/ablations.html"' in (root / "site/scenes-1/05_ablations.html").read_text()
    assert 'href="../scenes-1/05_ablations.html"' in (root / "site/docs/ablations.html").read_text()


def test_docs_lead_to_the_newest_book_that_has_the_notebook(root, monkeypatch):
    (root / "docs").mkdir()
    text = "# One `two`\n\n[zero](../notebooks/00.ipynb) [one](../notebooks/01.ipynb) [code](../dias_lab/runs.py) [t](t.csv)\n"
    (root / "docs/one.md").write_text(text + "\n![map](map.png) ![lost](lost.png)\n\n## What's new?\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    for name in ("t.csv", "map.png"):
        (root / "docs" / name).write_text("")
    entries = [gallery.Entry(name, "done", 1, write(root / f"{name}.ipynb", f"# {name}")) for name in ("00", "01")]
    for name, created, some in (("old", "2026-01-01", entries), ("new", "2026-01-02", entries[:1])):
        monkeypatch.setattr(gallery.runs, "about", lambda created=created: {"created": created, "commit": None})
        gallery.publish(root / "site", name, {}, some)
    shown = (root / "site/docs/one.html").read_text()
    for words in ("../new/00.html", "../old/01.html", 'href="t.csv"', 'src="map.png"', 'id="whats-new"', "<td>1</td>"):
        assert words in shown
    assert "runs.py" not in shown and "lost.png" not in shown and "code" in shown and "<em>lost</em>" in shown
    index = (root / "site/index.html").read_text()
    assert '<a href="docs/one.html">One `two`</a>' in index and index.index(">new<") < index.index(">old<")
    assert dead_links(root / "site") == []


def test_pages_need_no_network(root):
    (root / "docs").mkdir()
    (root / "docs/one.md").write_text("# How it works")
    entries = [
        gallery.Entry("00_tour", "done", 2, write(root / "00.ipynb", TITLE, shows({"image/png": b64encode(PNG).decode()}), shows(PLOT))),
        gallery.Entry("01_data", "done", 2, write(root / "01.ipynb", "# Data")),
        gallery.Entry("02_method", "skipped"),
    ]
    assert gallery.publish(root / "site", "scenes-1", {"num_slots": 5}, entries) == root / "site/index.html"
    text, index = (root / "site/scenes-1/00_tour.html").read_text(), (root / "site/index.html").read_text()
    for shown in (text, index):
        assert re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?:https?:)?//""", shown) == []
        assert not re.search(r"@import|url\(['\"]?https?:|import\(['\"]https?:", shown)
    assert 'src="../assets/plotly.min.js"' in text and "Plotly.newPlot" in text
    assert (root / "site/assets/plotly.min.js").stat().st_size > 1_000_000
    assert text.count("<math") == 2
    assert 'href="01_data.html"' in text and 'href="../docs/one.html#how-it-works"' in text
    assert len(text) < 500_000
    assert re.search(r"@media \(prefers-color-scheme: dark\) \{[^<]*--jp-layout-color0:", text)
    assert "What does $s_n$ see?" in index and "--num-slots 5" in index
    assert re.search(r'<img alt="[^"]+" src="scenes-1/00_tour.png"', index)
    assert (root / "site/scenes-1/00_tour.png").read_bytes() == PNG
    assert dead_links(root / "site") == []


def test_what_comes_from_a_run_is_escaped(root):
    evil = "<script>alert('$x$')</script>\n\n# & \"more\""
    error = {"cell": 1, "message": evil}
    cells = (f"# {evil}", new_code_cell("x", metadata={"tags": ["injected-parameters"]}), new_code_cell("1/0"))
    entry = gallery.Entry("00_<tour>", "failed", 1, write(root / "00.ipynb", *cells), error)
    unit = gallery.Entry("a=1&b", "failed", 1, write(root / "01.ipynb", "# Unit"), {"cell": None, "message": evil}, "ablation")
    gallery.publish(root / "site", "scenes-1", {"backbone": "<script>"}, [entry, unit])
    index = (root / "site/index.html").read_text()
    shown = (root / "site/scenes-1/00_<tour>.html").read_text()
    assert index.count("<script>") == 1 and "alert(&#39;$x$&#39;)" in index  # the page's own, which searches
    box = re.search(r'<div class="failure" id="error">(.*?)</div>\s*<div class="jp-Cell jp-CodeCell', shown.replace("\n\n", "  "), re.DOTALL)
    assert box and html.unescape(box[1]).endswith('</script>  # & "more"') and "<script" not in box[1]
    assert shown.index('id="error"') > shown.index("jp-MarkdownCell jp-Notebook-cell")
    assert dead_links(root / "site") == []


def test_the_front_page_knows_every_heading(root):
    cells = ("# Slots\n\n```\n## no heading\n```", "## What *they* see\n\n### In `numbers`", new_code_cell("## a comment"))
    gallery.publish(root / "site", "a", {}, [gallery.Entry("00", "done", 1, write(root / "00.ipynb", *cells))])
    index = (root / "site/index.html").read_text()
    for text, anchor in (("Slots", ""), ("What they see", "what-they-see"), ("In numbers", "in-numbers")):
        assert f'["{text}", "Slots", "a/00.html", "{anchor}"]' in index
    assert "no heading" not in index and "a comment" not in index
    assert {"what-they-see", "in-numbers"} <= Addresses(root / "site/a/00.html").anchors


EVIL = [
    "bad\n\n![a](http://evil.example/x.png)", "[b](javascript:alert(1))", "[b](JaVaScRiPt:alert(1))", "[b](data:text/html,x)", "![a](//evil.example/x)",
    "<img src=http://evil.example/y.png onerror=alert(3)>", "<script>alert(2)</script>", "\n\n<iframe src='http://evil.example'></iframe>", "[b](vbscript:x)",
    "[b]: javascript:alert(1)\n\n[b]", "<javascript:alert(1)>", "![a](HTTPS://evil.example/x.png)",
]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_markdown_that_a_run_puts_out_is_no_script_and_asks_no_network(evil):
    notebook = new_notebook(cells=[new_markdown_cell("# One"), shows({"text/markdown": f"before {evil} after"})])
    shown = page(notebook, evil, {"cell": 1, "message": evil})
    shown = shown[shown.index("<main") : shown.index("</main>")]
    assert not re.search(r"<(script|iframe)|<[^>]*(javascript|vbscript|data:text|onerror)|<img[^>]*evil", shown, re.IGNORECASE)
    assert "before" in shown and "after" in shown


def test_links_and_pictures_of_the_author_stay():
    cells = [new_markdown_cell("[a](https://arxiv.org) [b](mailto:a@b.c) ![c](data:image/png;base64,xx) <b>bold</b>"), shows({"text/markdown": "[d](https://arxiv.org)"})]
    shown = page(new_notebook(cells=cells), "T")
    for words in ('href="https://arxiv.org">a', 'href="mailto:a@b.c"', 'src="data:image/png;base64,xx"', "<b>bold</b>", 'href="https://arxiv.org">d'):
        assert words in shown


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"name": "b", "about": 3, "cards": [], "options": {}}', '{"name": "b", "about": {"created": "x"}, "options": {}, "cards": [3]}', '{"name": "b", "about": {"created": "x"}, "options": 7, "cards": []}'])
def test_one_damaged_book_does_not_stop_the_others(root, content, capsys):
    entry = gallery.Entry("00", "done", 1, write(root / "00.ipynb", "# A"))
    gallery.publish(root / "site", "good", {}, [entry])
    (root / "site/bad").mkdir()
    (root / "site/bad/book.json").write_text(content)
    index = gallery.publish(root / "site", "newer", {}, [entry]).read_text()
    assert ">good<" in index and ">newer<" in index and ">b<" not in index
    assert "left out of the gallery: site/bad/book.json is damaged" in capsys.readouterr().out


def test_an_older_book_is_replaced_at_once_and_a_page_may_stand_alone(root):
    first = gallery.Entry("00", "done", 1, write(root / "00.ipynb", "# A\n\n[b](01.ipynb#Part-two) and [here](#Part-two)\n\n## Part two"))
    gallery.publish(root / "site", "scenes-1", {}, [first, gallery.Entry("01", "done", 1, write(root / "01.ipynb", "## Part two"))])
    assert 'href="01.html#part-two"' in (root / "site/scenes-1/00.html").read_text()
    (root / "cut.ipynb").write_text('{"cells": [')
    gallery.publish(root / "site", "scenes-1", {}, [first, gallery.Entry("01", "failed", 1, root / "cut.ipynb", {"message": "killed"})])
    assert sorted(path.name for path in (root / "site/scenes-1").iterdir()) == ["00.html", "book.json"]
    assert "killed" in (root / "site/index.html").read_text()
    assert dead_links(root / "site") == []
    alone = page(nbformat.read(root / "00.ipynb", 4), "00")
    assert "01.html" not in alone and 'href="#part-two"' in alone and "Gallery" not in alone
