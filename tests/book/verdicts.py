"""What a notebook's verdicts say about numbers that a test chooses: cells with the tag "verdict"."""

import ast
import contextlib
import io

from dias_lab import runs
from dias_lab.book import parameters


def verdict_cells(notebook: str) -> list:
    """The notebook's cells that say what numbers mean, in their order; `notebook`: how its file's name begins, "04"."""
    (path,) = runs.resolve("notebooks").glob(f"{notebook}_*.ipynb")
    return [cell for cell in parameters.read(path).cells if "verdict" in cell.metadata.get("tags", [])]


def said(notebook: str, number: int, **names) -> str:
    """What verdict cell `number` prints and shows, where these are the names that it reads."""
    tree = ast.parse(verdict_cells(notebook)[number].source)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign(targets=[ast.Name("shown", ast.Store())], value=tree.body[-1].value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.fix_missing_locations(tree), f"{notebook}, verdict {number}", "exec"), names)
    shown = names.get("shown")
    return printed.getvalue() + ("" if shown is None else str(getattr(shown, "data", shown)))
