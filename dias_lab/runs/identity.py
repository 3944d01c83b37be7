"""What a run's result depends on, as two short hashes: the notebook's code, and the code of the package behind it.

Together with its parameters they are the run's identity, which book/unit.py writes down and compares.

The second follows the imports of the notebook's code cells through the package, at any depth, inside functions too: names
that `dias_lab` resolves on first use, attributes of imported packages (`data.store.open`), and strings that name a module
("dias_lab.methods.dias:DIAS"; in the tables of a package, "dias" as well), though none that are put together at run time.
Where methods are reached, so are those from outside: what the entry points of the groups "dias_lab.methods" and
"dias_lab.fields" name, and what that imports of its own top-level package. How results are shown and started (LEFT_OUT) is
passed through, and not counted itself. What counts is the syntax tree: no comment, docstring or formatting changes a hash.
"""

import ast
import collections
import functools
import importlib.util
import re
from importlib.metadata import entry_points
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from dias_lab.files import checksum, read_object
from dias_lab.runs.places import PACKAGE

LEFT_OUT = ("viz", "book", "shell", "__main__")
TRAINING = "from dias_lab import build, fit"
DOTTED = re.compile(r"(?<![\w.])\w+(?:\.\w+)+")  # a name and its attributes, or a module that a string names
IN_A_TABLE = re.compile(r": '(\w+)'")
IPYTHON = re.compile(r"^\s*[%!].*$", re.MULTILINE)  # lines that are no Python


class Code(NamedTuple):
    tree: str  # as text; the source where it is no Python
    names: frozenset[str]  # dotted: what it imports, and what it uses of that; "*" where nobody can tell


def notebook_hash(notebook) -> str:
    """12 hexadecimal digits that change with the code, or the tags, of any code cell; outputs and text do not matter."""
    return checksum([[_code(source).tree, tags] for source, tags in _cells(notebook)], 12)


def code_hash(notebook=None, package: Path = PACKAGE) -> str:
    """12 hexadecimal digits that change with the code that the notebook reaches; without a notebook, that a training does."""
    return checksum(reached([TRAINING] if notebook is None else [source for source, _ in _cells(notebook)], package), 12)


def reached(cells: list[str], package: Path = PACKAGE) -> dict[str, str]:
    """Module -> its syntax tree, of all that counts among what the cells import, directly and indirectly."""
    top, files = package.name, _files(package.name, package)
    table = re.findall(r'"(\w+)": "([\w.]+)', files[top].read_text(encoding="utf-8"))
    first_use = {f"{top}.{name}": place for name, place in table}  # where the package finds a name
    points = [*entry_points(group=f"{top}.methods"), *entry_points(group=f"{top}.fields")]
    outside = {point.module: f"{point.value} {point.dist and point.dist.version}" for point in points}
    for module in outside:
        files |= _files_outside(module.partition(".")[0])
    found, names = {}, {name for source in cells for name in _code(source).names}
    while names:
        parts = {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}
        parts |= {first_use[part] for part in parts & first_use.keys()}
        new = (set(files) if "*" in names else parts & files.keys()) - found.keys()
        for module in new:
            package = module if files[module].stem == "__init__" else module.rpartition(".")[0]
            found[module] = _code(files[module].read_text(encoding="utf-8"), package, tables=module != top)
        names = {name for module in new for name in found[module].names}
        if f"{top}.methods" in new:
            names |= outside.keys()
    left_out = tuple(f"{top}.{name}." for name in LEFT_OUT)
    counted = {module: code.tree for module, code in found.items() if not f"{module}.".startswith(left_out)}
    return (outside if f"{top}.methods" in found else {}) | counted  # of a method without source, the version


def _cells(notebook) -> list[tuple[str, list[str]]]:
    """Source and tags of the code cells."""
    cells = [cell for cell in read_object(notebook, {"cells": list})["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def _files(top: str, folder: Path) -> dict[str, Path]:
    """Module -> file, of a whole package."""
    parts = {path: [top, *path.relative_to(folder).with_suffix("").parts] for path in folder.rglob("*.py")}
    return {".".join(names).removesuffix(".__init__"): path for path, names in parts.items()}


def _files_outside(top: str) -> dict[str, Path]:
    """The same of an installed package, or of the single file that it is; nothing is imported."""
    spec = importlib.util.find_spec(top)
    places = spec and spec.submodule_search_locations
    if places:
        return {module: path for place in places for module, path in _files(top, Path(place)).items()}
    return {top: Path(spec.origin)} if spec and spec.origin and spec.origin.endswith(".py") else {}


@functools.lru_cache(maxsize=1000)  # by what is in the file: an edit is seen
def _code(source: str, package: str = "__main__", tables: bool = True) -> Code:
    """package: where relative imports start, and modules that tables name. tables: whether what is assigned counts."""
    try:
        tree = _WithoutDocstrings().visit(ast.parse(source))
    except SyntaxError:
        plain = IPYTHON.sub("", source)
        return Code(source, _code(plain).names if plain != source else frozenset("*"))
    tree.body = [node for node in tree.body if tables or not isinstance(node, ast.Assign)]
    imported = collections.defaultdict(set)  # name in this file -> what it may stand for
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            relative = "." * getattr(node, "level", 0) + (getattr(node, "module", None) or "")
            base = importlib.util.resolve_name(relative, package)
            for alias in node.names:
                imported[alias.asname or alias.name].add(f"{base}.{alias.name}".removeprefix("."))
    text = ast.unparse(tree)
    names = {package}.union(DOTTED.findall(text), *imported.values())
    names |= {f"{package}.{value}" for value in IN_A_TABLE.findall(text)}
    for first, _, rest in [dotted.partition(".") for dotted in DOTTED.findall(text)]:
        names |= {f"{name}.{rest}" for name in imported[first]}
    return Code(_text(tree), frozenset(names))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node):
        """Any string that stands alone."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _text(node) -> str:
    """A syntax tree as text that, unlike ast.dump's and ast.unparse's, is the same for every version of Python."""
    if isinstance(node, list):
        return f"[{' '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({' '.join(fields)})"
