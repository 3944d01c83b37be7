"""Executed notebooks as HTML pages that work with no network, and the gallery's front page.

nbconvert's lab template loads require.js, MathJax and mermaid from the network, and drops plotly's figures. Here the
equations become MathML (latex2mathml), which browsers draw themselves; what it cannot translate stays TeX. Plotly
figures share one copy of plotly.js per gallery, in `assets/`.
"""

import functools
import html
import json
import re
import shutil
from base64 import b64decode
from dataclasses import asdict, dataclass
from pathlib import Path

from dias_lab import runs

PLOTLY = "application/vnd.plotly.v1+json"
MARKS = {"done": "✓", "failed": "✗", "skipped": "–"}
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{{ resources.plotly_script }}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block notebook_css -%}{{ super() }}
<style>@media (prefers-color-scheme: dark) { {{ resources.dark_theme }} }</style>
<style>{{ resources.page_style }}</style>{%- endblock -%}
{%- block body_header -%}<body class="jp-Notebook"><nav class="back"><a href="../index.html">Gallery</a></nav><main>
{%- endblock -%}"""
PAGE_STYLE = """
:root { color-scheme: light dark }
body.jp-Notebook { background: var(--jp-layout-color0); max-width: 1000px; margin: 0 auto; padding: 16px }
.back { font: 14px var(--jp-ui-font-family); padding: 0 0 8px } .back a, .jp-RenderedHTMLCommon a { color: #2f7fd6 }
.plotly-graph-div { background: #fff; border-radius: 4px } .jp-InputPrompt, .jp-OutputPrompt { opacity: .6 }
math { font: 1.1em "STIX Two Math", "Cambria Math", "Latin Modern Math", math, serif }
math[display=block] { margin: .8em 0; overflow-x: auto } code.tex { white-space: pre-wrap }
.failure { border: 2px solid #d33; border-radius: 6px; padding: 8px 14px; color: #d33; scroll-margin-top: 16px }"""


@dataclass
class Entry:
    """One executed notebook of a book."""

    name: str
    state: str  # "done", "failed" or "skipped"
    seconds: float = 0.0
    notebook: Path | None = None  # the executed one
    error: dict | None = None  # the content of error.json
    part: str = "notebook"  # or "ablation"


def publish(site, name: str, options: dict, entries: list[Entry]) -> Path:
    """Write the pages of one book to site/name, all at once, and the front page of all books; gives its path."""
    site = Path(site)
    beside = site / f".{name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    cards = [_card(entry, beside) for entry in entries]
    book = {"name": name, "options": options, "about": runs.about(), "cards": cards}
    runs.write_json(beside / "book.json", book)
    _swap(beside, site / name)
    if any(card["plotly"] for card in cards):
        import plotly.offline

        runs.write_text(site / "assets/plotly.min.js", plotly.offline.get_plotlyjs())
    books = [runs.read_json(path) for path in site.glob("*/book.json")]
    books.sort(key=lambda book: book["about"]["created"], reverse=True)
    runs.write_text(site / "index.html", _front(books))
    return site / "index.html"


def _swap(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _card(entry: Entry, folder: Path) -> dict:
    """Write the entry's page and thumbnail; gives what the front page shows."""
    card = asdict(entry) | {"notebook": None, "title": entry.name, "sentence": "", "thumbnail": None, "page": None}
    card |= {"message": (entry.error or {}).get("message"), "error": None, "plotly": False}
    try:
        import nbformat

        notebook = nbformat.read(entry.notebook, as_version=4)
    except (TypeError, OSError, ValueError):  # skipped, or killed while it was being written
        return card
    card["title"], card["sentence"] = _opening(notebook, entry.name)
    if image := _first_image(notebook):
        card["thumbnail"] = f"{entry.name}.png"
        (folder / card["thumbnail"]).write_bytes(image)
    text = page(notebook, card["title"], entry.error)
    card["page"], card["plotly"] = f"{entry.name}.html", "plotly.min.js" in text
    runs.write_text(folder / card["page"], text)
    return card


def page(notebook, title: str, error: dict | None = None) -> str:
    """The executed notebook (an nbformat node, which is changed) as one HTML page; plotly.js is in ../assets."""
    from markupsafe import Markup
    from plotly.io import to_html

    figures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figure = data.pop(PLOTLY)
                data.pop("text/html", None)
                options = {"full_html": False, "include_plotlyjs": False, "auto_play": False, "validate": False}
                parts = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
                data["text/html"] = to_html(parts, **options)
                figures += 1
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title
    _mark_failure(notebook, error)
    exporter = _exporter()
    theme = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")[0]
    script = '<script src="../assets/plotly.min.js" charset="utf-8"></script>' if figures else ""
    values = {"plotly_script": script, "dark_theme": theme, "page_style": PAGE_STYLE}
    return exporter.from_notebook_node(notebook, {key: Markup(value) for key, value in values.items()})[0]


def _mark_failure(notebook, error: dict | None) -> None:
    """Put the error, with the anchor that the front page links to, before the cell where it happened."""
    import nbformat

    def without(tag):
        return [cell for cell in notebook.cells if tag not in cell.metadata.get("tags", [])]

    notebook.cells = without("papermill-error-cell-tag")
    if error:
        original = [notebook.cells.index(cell) for cell in without("injected-parameters")]
        index = error.get("cell")
        place = original[index] if index is not None and index < len(original) else 0
        box = f'<div class="failure" id="error"><b>Stopped here.</b> {html.escape(error["message"])}</div>'
        notebook.cells.insert(place, nbformat.v4.new_markdown_cell(box))


@functools.cache
def _exporter():
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return math(body, "block")

        def inline_math(self, body: str) -> str:
            return math(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def markdown(source: str) -> str:
        text = MarkdownWithMath(renderer=Renderer(escape=False)).render(source)
        return re.sub(r'href="([\w-]+)\.ipynb', r'href="\1.html', text)  # its neighbours are pages as well

    exporter = HTMLExporter(raw_template=TEMPLATE)
    exporter.register_filter("markdown2html", markdown)
    exporter.log.setLevel("ERROR")
    return exporter


def math(tex: str, display: str) -> str:
    """MathML, with the TeX as its title; the TeX itself where latex2mathml has no translation."""
    from latex2mathml.converter import convert

    source = html.escape(" ".join(tex.split()))
    known = re.sub(r"(begin|end)\{(aligned|align|gathered)\*?\}", r"\1{split}", tex)  # the names it knows
    known = re.sub(r"\\arg\s*\\(min|max)", r"\\arg\1", known.replace(r"\operatorname*", r"\operatorname"))
    known = re.sub(r"\\(begin|end)\{equation\*?\}|\\(label|tag)\{[^}]*\}", "", known)
    try:
        result = convert(known, display=display)
    except Exception:  # noqa: BLE001 - its errors have no base class in common
        result = "\\"
    if re.search(r">[^<]*\\[^<]*<|&(?![#\w]+;)|^\\", result):  # a command or an alignment it does not know
        return f'<code class="tex">{source}</code>'
    return result.replace("<math ", f'<math title="{source}" ', 1)


def _opening(notebook, name: str) -> tuple[str, str]:
    """Title and first sentence: of the first markdown cell with a heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE)):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]|<[^>]+>", r"\1", cell.source[heading.end() :]).strip()
            paragraph = " ".join(text.split("\n\n")[0].split())
            return heading[1].strip(), re.split(r"(?<=[.?!])\s", paragraph)[0]
    return name, ""


def _first_image(notebook) -> bytes | None:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            embedded = re.search(r'src="data:image/png;base64,([^"]+)', "".join(data.get("text/html", "")))
            if text := data.get("image/png") or (embedded and embedded[1]):
                return b64decode(text)
    return None


def _front(books: list[dict]) -> str:
    sections = "".join(_section(book) for book in books)
    return f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>dias_lab gallery</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{FRONT_STYLE}</style></head>
<body><header><h1>dias_lab</h1><p>Executed notebooks, newest book first.</p></header>{sections}</body></html>
"""


def _section(book: dict) -> str:
    about, options = book["about"], book["options"]
    shown = " ".join(f"--{key.replace('_', '-')} {json.dumps(value)}" for key, value in sorted(options.items()))
    when = about["created"][:16].replace("T", " ") + " UTC"
    facts = [when, f"commit {(about['commit'] or 'none')[:12]}", shown or "default options"]
    cards = [card for card in book["cards"] if card["part"] == "notebook"]
    units = [card for card in book["cards"] if card["part"] != "notebook"]
    chips = "".join(
        f'<a class="chip {card["state"]}" {_link(book, card)}>{MARKS[card["state"]]} {html.escape(card["name"])}</a>'
        for card in units
    )
    ablation = f'<p class="units"><b>Ablation runs</b> {chips}</p>' if chips else ""
    return f"""<section><h2>{html.escape(book["name"])}</h2><p class="facts">{html.escape(" · ".join(facts))}</p>
<div class="cards">{"".join(_card_html(book, card) for card in cards)}</div>{ablation}</section>"""


def _link(book: dict, card: dict) -> str:
    anchor = "#error" if card["state"] == "failed" else ""
    return f'href="{book["name"]}/{card["page"]}{anchor}"' if card["page"] else ""


def _card_html(book: dict, card: dict) -> str:
    number = html.escape(card["name"].split("_")[0])
    picture = f'<div class="number">{number}</div>'
    if card["thumbnail"]:
        picture = f'<img alt="first figure of {html.escape(card["name"])}" src="{book["name"]}/{card["thumbnail"]}">'
    text = card["message"] if card["state"] == "failed" else card["sentence"]
    return f"""<a class="card {card["state"]}" {_link(book, card)}><div class="picture">{picture}</div>
<h3>{html.escape(card["title"])}</h3><p>{html.escape(text or "")}</p>
<footer><span class="state">{MARKS[card["state"]]} {card["state"]}</span><span>{html.escape(card["name"])}</span>
<span>{card["seconds"]:.0f} s</span></footer></a>"""


FRONT_STYLE = """
:root { color-scheme: light dark; --back: #f5f6f8; --card: #fff; --text: #1d2230; --dim: #667; --line: #dfe2e8; --red: #c62f2f;
  --green: #23844f; --soft: #e9edf3 }
@media (prefers-color-scheme: dark) { :root { --back: #14161b; --card: #1e2129; --text: #e7e9ee; --dim: #9aa1b0; --line: #313642;
  --red: #ff7b72; --green: #5bc98a; --soft: #272b35 } }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 30px; letter-spacing: -.02em } header p, .facts { margin: 2px 0 0; color: var(--dim) }
h2 { margin: 32px 0 0; font-size: 20px } .facts { font-size: 13px; overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 18px; margin: 16px 0 }
.card { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; color: inherit; text-decoration: none; transition: box-shadow .15s, transform .15s }
.card[href]:hover { box-shadow: 0 6px 20px #0003; transform: translateY(-2px) } .card.failed { border-color: var(--red) }
.picture { height: 160px; background: var(--soft); display: flex; border-bottom: 1px solid var(--line) }
.picture img { width: 100%; height: 100%; object-fit: contain; background: #fff; padding: 8px; box-sizing: border-box }
.skipped { opacity: .6 }
.number { margin: auto; font-size: 56px; font-weight: 700; color: var(--dim); opacity: .45 }
h3 { margin: 12px 16px 4px; font-size: 16px; line-height: 1.3 } .card p { margin: 0 16px 12px; color: var(--dim); font-size: 14px;
  overflow-wrap: anywhere; flex: 1 } .failed p { color: var(--red) }
footer { display: flex; gap: 12px; padding: 8px 16px; border-top: 1px solid var(--line); font-size: 12px; color: var(--dim) }
footer span:last-child { margin-left: auto } .done .state, .chip.done { color: var(--green) }
.failed .state, .chip.failed { color: var(--red) }
.units { font-size: 13px } .chip { display: inline-block; margin: 2px 4px; padding: 1px 10px; border: 1px solid var(--line);
  border-radius: 99px; background: var(--card); text-decoration: none }"""
