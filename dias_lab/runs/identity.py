"""What a run's result depends on, as two short hashes: the notebook's code, and the code of the package behind it.

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
import importlib.metadata
import importlib.util
import itertools
import re
from pathlib import Path
from typing import NamedTuple

from dias_lab.files import checksum, read_json
from dias_lab.runs.places import PACKAGE

LEFT_OUT = ("viz", "book", "shell", "__main__")
TRAINING = "from dias_lab import build, fit"
A_MODULE = re.compile(r"\w+(\.\w+)+(:\w+)?")
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
    lazy, found, outside = _lazy_names(files[top], top), {}, {}
    new = _located({name for source in cells for name in _code(source).names}, files, lazy)
    while new:
        found |= (codes := {module: _read(files[module], module, lazily=module == top) for module in new})
        names = {name for code in codes.values() for name in code.names}
        if f"{top}.methods" in new:
            points = [importlib.metadata.entry_points(group=f"{top}.{kind}") for kind in ("methods", "fields")]
            for entry in itertools.chain(*points):
                outside[entry.module] = f"{entry.value} {entry.dist and entry.dist.version}"
                files |= _files_outside(entry.module.partition(".")[0])
            names |= outside.keys()
        new = _located(names, files, lazy) - found.keys()
    counted = {module: code.tree for module, code in found.items() if not _left_out(module, top)}
    return outside | counted  # of a method without source, its version counts


def _left_out(module: str, top: str) -> bool:
    return module.startswith(f"{top}.") and module.split(".")[1] in LEFT_OUT


def _cells(notebook) -> list[tuple[str, list[str]]]:
    """Source and tags of the code cells."""
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def _files(top: str, folder: Path) -> dict[str, Path]:
    """Module -> file, of a whole package."""
    parts = {path: path.relative_to(folder).with_suffix("").parts for path in folder.rglob("*.py")}
    return {".".join([top, *(names[:-1] if names[-1] == "__init__" else names)]): path for path, names in parts.items()}


def _files_outside(top: str) -> dict[str, Path]:
    """The same of an installed package, or of the single file that it is; nothing is imported."""
    spec = importlib.util.find_spec(top)
    if spec is None or spec.submodule_search_locations is None:
        return {top: Path(spec.origin)} if spec and spec.origin and spec.origin.endswith(".py") else {}
    return {module: path for place in spec.submodule_search_locations for module, path in _files(top, Path(place)).items()}


def _lazy_names(path: Path, top: str) -> dict[str, str]:
    """What the package resolves on first use, dotted name -> where it is, by the tables of its __init__."""
    tables = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Dict)]
    pairs = [(key, value) for table in tables for key, value in zip(table.keys, table.values)]
    strings = [[str(getattr(node, "value", "")).replace(":", ".") for node in pair] for pair in pairs]
    return {f"{top}.{key}": value for key, value in strings}


def _located(names: set[str], files: dict[str, Path], lazy: dict[str, str]) -> set[str]:
    """The modules that the names, or their beginnings, name, and the packages around them."""
    found = set(files) if "*" in names else set()
    for name in names | {lazy.get(".".join(name.split(".")[:2]), "") for name in names}:
        parts = name.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & files.keys()
    return found


def _read(path: Path, module: str, lazily: bool) -> Code:
    """A file's code; of one that resolves names on first use, without the tables that it does that by."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    return _code(path.read_text(encoding="utf-8"), package, module == package, lazily)


@functools.lru_cache(maxsize=1000)  # by what is in the file: an edit is seen
def _code(source: str, package: str = "", init: bool = False, lazily: bool = False) -> Code:
    """package: where relative imports start, and its __init__'s names of modules."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        plain = IPYTHON.sub("", source)
        return Code(source, _code(plain).names if plain != source else frozenset("*"))
    nodes, text = [], []
    _write([node for node in body if not (lazily and isinstance(node, ast.Assign))], text, nodes)
    names, bound = set(), collections.defaultdict(set)
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            level, module = getattr(node, "level", 0), getattr(node, "module", None)
            base = [*package.split(".")[: package.count(".") + 2 - level], *([module] if module else [])] if level else [module]
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                names.add(name := ".".join([*filter(None, base), alias.name]))
                bound[local].add(name if alias.asname or module or level else local)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and A_MODULE.fullmatch(node.value):
            names.add(node.value.partition(":")[0])
        elif isinstance(node, ast.Dict) and init:
            names |= {f"{package}.{value.value}" for value in node.values if isinstance(value, ast.Constant)}
    for node in (node for node in nodes if isinstance(node, ast.Attribute)):
        parts = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name) and node.id in bound:
            names |= {".".join([name, *parts]) for name in bound[node.id]}
    return Code(" ".join(text), frozenset(names))


def _write(node, text: list[str], nodes: list[ast.AST]) -> None:
    """A syntax tree as text that is the same for every version of Python, and its nodes; without strings that stand alone."""
    if isinstance(node, ast.AST):
        nodes.append(node)
        text.append(type(node).__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if field != "ctx" and value is not None and value != []:
                text.append(field)
                _write(value, text, nodes)
        text.append(")")
    elif type(node) is list:
        for item in node:
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)):
                _write(item, text, nodes)
        text.append("]")
    else:
        text.append(repr(node))
