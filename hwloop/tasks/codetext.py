"""What can be read of user code: its source, the names in it, the file that it stands in."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


def normalised(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            body[:1] = [ast.Pass()] if len(body) == 1 else []
    return ast.unparse(tree)


def names_in(code: CodeType) -> Iterator[str]:
    """Every global and attribute that the code and the functions within it name."""
    yield from dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def source_of(item: Any) -> str:
    """Normalised source, or nothing where there is none (typed at a prompt) or none of its own."""
    try:
        return normalised(inspect.getsource(item))
    except (OSError, TypeError, SyntaxError, ValueError):  # a lambda's line may be half a call
        return ""


def file_source(file: str) -> str:
    """Normalised source of a file, or its name where it cannot be read."""
    try:
        return normalised(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return file


def file_of(kind: type) -> str:
    """Where a class was written; its methods tell it where its module has no file."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is not None:
        return str(file)
    for member in vars(kind).values():
        if isinstance(member, FunctionType):
            innermost: Any = inspect.unwrap(member)
            return str(innermost.__code__.co_filename)
    return "" if kind.__module__ in sys.modules and kind.__module__ != "__main__" else "<stdin>"


def held(item: Any) -> dict[str, Any]:
    """An instance's attributes, without asking a ``__getattr__`` of the user's."""
    try:
        found = dict(object.__getattribute__(item, "__dict__"))
    except AttributeError:
        found = {}
    for base in type(item).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                found.setdefault(name, object.__getattribute__(item, name))
            except AttributeError:  # not set yet, or mangled
                continue
    return found


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
