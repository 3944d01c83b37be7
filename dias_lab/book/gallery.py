"""The site: the executed notebooks of every book, the docs, and a front page (`gallery.html.j2`), with no network.

`page.py` makes a page. Links lead to pages of the site, and what the site does not have becomes text. Plotly figures share
one copy of plotly.js, in `assets/`.
"""

import contextlib
import re
import shutil
from base64 import b64decode
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from dias_lab import runs
from dias_lab.book import parameters
from dias_lab.book.page import Link, linker, outputs, page, slug


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
    """Write the pages of one book to site/name, all at once, the docs, and the front page; gives its path."""
    site, docs = Path(site), [path for path in sorted(runs.resolve("docs").glob("*")) if path.is_file()]
    new, old = (site / f".{name}.{state}" for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    places = {f"docs/{path.name}": f"docs/{_page_name(path)}" for path in docs}
    notebooks = {entry.name: notebook for entry in entries if (notebook := _read(entry.notebook))}
    here = {f"notebooks/{key}.ipynb": f"{name}/{key}.html" for key in notebooks}
    link = linker("notebooks", name, places | here)
    cards = [_card(entry, notebooks.get(entry.name), new, link) for entry in entries]
    runs.write_json(new / "book.json", {"name": name, "options": options, "about": runs.about(), "cards": cards})
    shutil.rmtree(old, ignore_errors=True)
    if (site / name).exists():
        (site / name).rename(old)
    new.rename(site / name)
    shutil.rmtree(old, ignore_errors=True)
    if any(card["plotly"] for card in cards):
        write_plotly(site)

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    front, books = environment.get_template("gallery.html.j2"), []
    for path in site.glob("*/book.json"):
        try:
            book = runs.read_json(path)
            pages = [(card["name"], f"{book['name']}/{card['page']}") for card in book["cards"] if card["page"]]
            front.render(books=[book])
            books.append((str(book["about"]["created"]), str(path), book, pages))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one book, the others are shown
            print(f"left out of the gallery: {runs.short(path)} is damaged ({type(error).__name__}: {error})")
    books.sort(key=lambda found: found[:2])
    for *_, pages in books:  # the newest last: the docs lead to its pages
        places |= {f"notebooks/{key}.ipynb": page for key, page in pages}
    titles = _write_docs(docs, site / "docs", linker("docs", "docs", places))
    runs.write_text(site / "index.html", front.render(books=[found[2] for found in books[::-1]], docs=titles))
    return site / "index.html"


def _page_name(path: Path) -> str:
    return f"{path.stem}.html" if path.suffix == ".md" else path.name


def write_plotly(folder: Path) -> None:
    """What pages with plotly's figures, in the folders of this one, load."""
    import plotly.offline

    runs.write_text(folder / "assets/plotly.min.js", plotly.offline.get_plotlyjs())


def _read(path: Path | None):
    with contextlib.suppress(parameters.Refused):  # killed while it was being written
        return path and parameters.read(path)


def _card(entry: Entry, notebook, folder: Path, link: Link) -> dict:
    """Write the entry's page and thumbnail; gives what the front page shows."""
    card = asdict(entry) | {"notebook": None, "title": entry.name, "sentence": "", "thumbnail": None, "page": None}
    card |= {"message": (entry.error or {}).get("message"), "error": None, "plotly": False}
    if notebook is None:
        return card
    card["title"], card["sentence"], card["contents"] = _opening(notebook, entry.name)
    if image := _best_image(notebook):
        card["thumbnail"] = f"{entry.name}.png"
        (folder / card["thumbnail"]).write_bytes(image)
    text = page(notebook, card["title"], entry.error, link)
    card["page"], card["plotly"] = f"{entry.name}.html", "plotly.min.js" in text
    runs.write_text(folder / card["page"], text)
    return card


def _write_docs(docs: list[Path], folder: Path, link: Link) -> dict[str, tuple[str, list]]:
    """Pages and what lies beside them; gives titles and contents. Nothing is deleted, since older books' pages lead there."""
    from nbformat.v4 import new_markdown_cell, new_notebook

    folder.mkdir(exist_ok=True)
    titles = {}
    for path in docs:
        name = _page_name(path)
        if path.suffix == ".md":
            notebook = new_notebook(cells=[new_markdown_cell(path.read_text(encoding="utf-8"))])
            titles[name] = _opening(notebook, path.stem)[::2]
            runs.write_text(folder / name, page(notebook, titles[name][0], link=link))
        else:
            shutil.copy(path, folder)
    return titles


def _opening(notebook, name: str) -> tuple[str, str, list]:
    """Title and first sentence, of the first Markdown cell with a heading; and all headings below, each with its anchor."""
    texts = [re.sub(r"(?ms)^```.*?^```", "", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [re.sub(r"[*`]", "", heading).strip() for text in texts for heading in re.findall(r"(?m)^##+ (.+)$", text)]
    for text in texts:
        if heading := re.search(r"^#+\s+(.+)$", text, re.MULTILINE):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]|<[^>]+>", r"\1", text[heading.end() :]).strip()
            sentence = re.split(r"(?<=[.?!])\s", " ".join(text.split("\n\n")[0].split()))[0]
            return heading[1].strip(), sentence, [(one, slug(one)) for one in found]
    return name, "", []


def _best_image(notebook) -> bytes | None:
    """The first image of the cell with the tag "best figure", else of all."""
    best = [cell for cell in notebook.cells if "best figure" in cell.metadata.get("tags", [])]
    for data in outputs([*best, *notebook.cells]):
        embedded = re.search(r'src="data:image/png;base64,([^"]+)', "".join(data.get("text/html", "")))
        if text := data.get("image/png") or (embedded and embedded[1]):
            return b64decode(text)
    return None
