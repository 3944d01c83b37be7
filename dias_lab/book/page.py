"""One page of the site: an executed notebook, or a page of docs (a notebook with one cell of Markdown), with no network.

`gallery_page.html.j2` is nbconvert's lab template without what it loads from the network (require.js, MathJax, mermaid).
Equations become MathML (latex2mathml), which browsers draw themselves; what it cannot translate stays TeX.
"""

import functools
import html
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import jinja2

PLOTLY = "application/vnd.plotly.v1+json"
Link = Callable[[str], str | None]  # from an address in Markdown to its address on the page; None leads nowhere


def page(notebook, title: str, error: dict | None = None, link: Link | None = None) -> str:
    """The notebook (an nbformat node, which is changed) as one HTML page; plotly.js is in ../assets.

    error: the content of error.json. Without `link` the page stands alone: it leads to no other page.
    """
    from plotly.io import to_html

    figures = [data for data in outputs(notebook.cells) if PLOTLY in data]
    for data in figures:
        figure = data.pop(PLOTLY)
        parts = {key: figure[key] for key in ("data", "layout", "frames") if key in figure}
        data["text/html"] = to_html(parts, full_html=False, include_plotlyjs=False, auto_play=False, validate=False)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = title
    notebook.cells = _without("papermill-error-cell-tag", notebook.cells)
    if error and (cells := _without("injected-parameters", notebook.cells)):
        index = error.get("cell") or 0
        cells[index if index < len(cells) else 0].metadata["failure"] = error.get("message") or str(error)  # shown above
    resources = {"plotly": figures, "link": link or linker("", "", {}), "alone": link is None}
    return _exporter().from_notebook_node(notebook, resources)[0]


def _without(tag: str, cells: list) -> list:
    return [cell for cell in cells if tag not in cell.metadata.get("tags", [])]


def outputs(cells) -> list[dict]:
    """What the cells show, each by media type."""
    return [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]


def linker(source: str, place: str, places: dict[str, str]) -> Link:
    """For texts of the repository's folder `source` that are shown in the site's folder `place`.

    places: the repository's files that the site shows, each with its path in the site. All other links lead nowhere.
    """

    def link(address: str) -> str | None:
        path, _, anchor = address.partition("#")
        anchor = f"#{slug(unquote(anchor))}" if anchor else ""
        if re.match(r"https?://|mailto:|attachment:|data:image/", address) or not path:  # no other scheme: javascript: is one
            return address if path else anchor
        found = places.get(posixpath.normpath(posixpath.join(source, unquote(path))))
        return found and quote(posixpath.relpath(found, place)) + anchor

    return link


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@functools.cache
def _exporter():
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def __init__(self, address: Link, cell):  # what a cell puts out comes from a run, and no HTML in it is meant
            super().__init__(escape=cell["cell_type"] == "code", attachments=cell.get("attachments", {}))
            self.address = address

        def link(self, text: str, url: str, title: str | None = None) -> str:
            address = self.address(url)
            return super().link(text, address, title) if address else text

        def image(self, text: str, url: str, title: str | None = None) -> str:
            address = None if url.lower().startswith("http") else self.address(url)  # a page asks no network
            return super().image(text, address, title) if address else f"<em>{html.escape(text)}</em>"

        def heading(self, text: str, level: int, **attributes) -> str:
            anchor = slug(html.unescape(re.sub(r"<[^>]+>", "", text)))
            return f'<h{level} id="{anchor}">{text}<a class="anchor-link" href="#{anchor}">¶</a></h{level}>\n'

        def block_math(self, body: str) -> str:
            return math(body, "block")

        def inline_math(self, body: str) -> str:
            return math(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    @jinja2.pass_context
    def markdown(context, source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(context["resources"]["link"], context["cell"])).render(source)

    exporter = HTMLExporter(raw_template=Path(__file__).with_name("gallery_page.html.j2").read_text(encoding="utf-8"))
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
