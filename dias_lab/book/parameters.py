"""What a notebook's parameters cell takes, checked before anything starts.

papermill injects an unknown name with a warning and runs the notebook's own defaults (its issue 818), turns a tuple into
text, and fails on a Path only when it saves. So names, types and JSON are checked here, and Config checks its fields.
"""

import ast
import os
import sys

from dias_lab.config import Config, nearest

LEFT_OUT = {"rfc3987_syntax", "rfc3986_validator", "isoduration"} - set(sys.modules)
sys.modules |= dict.fromkeys(LEFT_OUT)  # nbformat's validator would read them for formats that notebooks do not have, and
import nbformat  # noqa: E402             one compiles a grammar for seconds; to it, they are optional

for name in LEFT_OUT:
    del sys.modules[name]

TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


class Refused(ValueError):
    """Wrong before anything started: no such notebook, an unknown or ill-typed parameter."""


def declared(notebook) -> dict[str, tuple[ast.expr | None, object]]:
    """The names in the notebook's parameters cell, each with its annotation and its default value."""
    cells = [cell for cell in read(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise Refused(f"{notebook} has {len(cells)} cells with the tag 'parameters'; it needs exactly one")
    found = {}
    try:
        for node in ast.parse(cells[0].source).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                found[node.target.id] = (node.annotation, ast.literal_eval(node.value))
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = (None, ast.literal_eval(node.value))
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # a docstring may stay
                raise ValueError(f"line {node.lineno} is not `name: type = value`")
    except (SyntaxError, ValueError) as error:
        raise Refused(f"{notebook}: the parameters cell may hold literal values only: {error}") from None
    return found


def takes_config(notebook) -> bool:
    """Whether the notebook builds its Config from its parameters; then every field of Config is a parameter."""
    return any("from_parameters(globals())" in cell.source for cell in read(notebook).cells if cell.cell_type == "code")


def check(notebook, parameters: dict | None = None) -> dict:
    """The parameters, if the notebook can take them; else Refused, with the name, the reason and the way out."""
    kernel, info = (read(notebook).metadata.get(name, {}) for name in ("kernelspec", "language_info"))
    language = info.get("name") or kernel.get("language") or {"ir": "R"}.get(kernel.get("name"), "python")
    if "python" not in str(language).lower():
        raise Refused(f"{notebook} is written in {language}, and only notebooks in Python are executed")
    parameters, known = dict(parameters or {}), declared(notebook)
    fields = Config.field_names() if takes_config(notebook) else []
    for name, value in parameters.items():
        if name not in [*known, *fields]:
            raise Refused(f"{notebook} has no parameter {name!r}{nearest(name, {*known, *fields})}")
        _check_json(f"{notebook}: parameter {name!r}", value)
        annotation = None if name in fields else known[name][0]
        if annotation is not None and value is not None and not _fits(value, annotation):
            text = ast.unparse(annotation)
            raise Refused(f"{notebook}: parameter {name!r} must be {text}, got {value!r} ({type(value).__name__})")
    if fields:
        try:
            Config.from_parameters({name: default for name, (_, default) in known.items()} | parameters)
        except ValueError as error:
            raise Refused(f"{notebook}: {error}") from None
    return parameters


def read(notebook):
    try:
        found = nbformat.read(notebook, as_version=4)
        for number, cell in enumerate(found.cells, start=1):  # nbformat only warns
            parts = cell.source, cell.metadata.get("tags", []), cell.get("outputs", [])
            if not all(map(isinstance, parts, (str, list, list))):
                raise ValueError(f"source, tags or outputs of cell {number} are of another type")
        return found
    except FileNotFoundError:
        raise Refused(f"there is no notebook {notebook}") from None
    except Exception as error:  # noqa: BLE001 - nbformat has none of its own for what is no notebook
        raise Refused(f"{notebook} cannot be read as a notebook: {type(error).__name__}: {error}") from None


def first_line(cell) -> str:
    return cell.source.strip().partition("\n")[0]


def _check_json(place: str, value) -> None:
    if type(value) is list:
        for index, item in enumerate(value):
            _check_json(f"{place}[{index}]", item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise Refused(f"{place} has the key {key!r}; keys must be text")
            _check_json(f"{place}[{key!r}]", item)
    elif type(value) is float and not abs(value) < float("inf"):
        raise Refused(f"{place} is {value!r}, which JSON cannot hold; pass None, or text")
    elif value is not None and type(value) not in (bool, int, float, str):
        way = "list(...)" if isinstance(value, tuple) else "str(...)" if isinstance(value, os.PathLike) else ".item()"
        raise Refused(
            f"{place} is {value!r} ({type(value).__name__}); a notebook takes None, bool, int, float, str, list "
            f"and dict only. Convert it with {way}"
        )


def _fits(value, annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.BinOp):  # int | None
        return _fits(value, annotation.left) or _fits(value, annotation.right)
    if isinstance(annotation, ast.Constant):  # None
        return value is annotation.value
    if isinstance(annotation, ast.Subscript):  # list[int], Literal["a", "b"]
        if ast.unparse(annotation.value).endswith("Literal"):
            choices = ast.literal_eval(annotation.slice)
            return value in (choices if isinstance(choices, tuple) else (choices,))
        annotation = annotation.value
    kind = TYPES.get(ast.unparse(annotation), object)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, TYPES["float"]))
