"""Reaching the user's code: a SPEC names an object.

A SPEC is ``package.module:attr`` or ``file.py:attr``; dotted attributes are allowed, and either may
be called with literals: ``torchvision.models:resnet18(weights="DEFAULT")``. It is parsed, never
evaluated; what it names runs by :func:`hwloop.tasks.calls.call_user`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hwloop.errors import HwloopError, UsageError, closest
from hwloop.tasks.calls import call_user

FORMS = (
    "write package.module:attr or file.py:attr, or either called with literals: "
    'torchvision.models:resnet18(weights="DEFAULT")'
)
# A module path first, so that a colon or ".py" inside the call's literals is left alone; the
# look-ahead keeps the drive letter of a Windows path from being taken for a module.
PATTERN = re.compile(r"(?P<where>(?![A-Za-z]:[\\/])[\w.]+|.+?\.py):(?P<what>.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parsed SPEC.

    Attributes:
        where: a dotted module path, or the path of a ``.py`` file.
        attributes: the dotted attribute, one part each.
        arguments, keywords: literals of the call; both None when the attribute is not called.
    """

    where: str
    attributes: tuple[str, ...]
    arguments: tuple[Any, ...] | None = None
    keywords: dict[str, Any] | None = None


def load_object(spec: str, *, what: str) -> Any:
    """The object that a SPEC names, or the result of the call in it.

    Args:
        spec: see the module's text.
        what: what it is for, as the message begins: "the model", "the task".

    Raises:
        UsageError: the SPEC is malformed, the file, module or attribute does not exist (the closest
            name is given), the arguments do not fit, or the user's code raises.
    """
    parsed = parse_spec(spec, what=what)
    is_file = parsed.where.endswith(".py")
    module = _load_file(parsed.where, what) if is_file else _load_module(parsed.where, what)
    found: Any = module
    for depth, attribute in enumerate(parsed.attributes):
        if not call_user(hasattr, found, attribute, what=f"{what} {spec}"):
            owner = ".".join((parsed.where, *parsed.attributes[:depth]))
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UsageError(f"{what}: {owner} has no {attribute!r}", closest(attribute, public))
        found = getattr(found, attribute)
    if parsed.arguments is None or parsed.keywords is None:
        return found
    _check_arguments(found, parsed, what)
    return call_user(found, *parsed.arguments, what=f"{what} {spec}", **parsed.keywords)


def parse_spec(spec: str, *, what: str) -> Spec:
    """Split a SPEC into its parts without running anything; UsageError when it is malformed."""
    match = PATTERN.fullmatch(spec.strip())
    if match is None:
        raise UsageError(f"{what}: {spec!r} does not say which attribute to take", FORMS)
    try:
        node = ast.parse(match["what"].strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            return Spec(where=match["where"], attributes=_dotted(node))
        return Spec(
            where=match["where"],
            attributes=_dotted(node.func),
            arguments=tuple(ast.literal_eval(argument) for argument in node.args),
            keywords=_keywords(node),
        )
    except (SyntaxError, ValueError, TypeError) as error:
        raise UsageError(f"{what}: cannot read {match['what']!r} in {spec!r}", FORMS) from error


def relocated(spec: str, moved: Callable[[str], str]) -> str:
    """The same SPEC with the path of its file replaced; others have none and stay as they are."""
    match = PATTERN.fullmatch(spec.strip())
    if match is None or not match["where"].endswith(".py"):
        return spec
    return f"{moved(match['where'])}:{match['what']}"


def _dotted(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_dotted(node.value), node.attr)
    raise ValueError("not a dotted name")


def _keywords(call: ast.Call) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise ValueError("** and repeated names are refused")
        values[keyword.arg] = ast.literal_eval(keyword.value)
    return values


def _check_arguments(function: Any, spec: Spec, what: str) -> None:
    """Refuse arguments that do not fit before the user's code runs, and show the signature."""
    name = ".".join(spec.attributes)
    if not callable(function):
        kind = type(function).__name__
        raise UsageError(
            f"{what}: {spec.where}:{name} is a {kind} and cannot be called",
            f"leave the parentheses out: {spec.where}:{name}",
        )
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions written in C have none to show
        return
    try:
        signature.bind(*spec.arguments or (), **spec.keywords or {})
    except TypeError as error:
        raise UsageError(
            f"{what}: the arguments do not fit {spec.where}:{name}: {error}",
            f"its signature is {name}{signature}",
        ) from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path for a moment, as ``python file.py`` does for good."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(str(folder))


def _load_module(path: str, what: str) -> ModuleType:
    parts = path.split(".")
    module: ModuleType | None = None
    importlib.invalidate_caches()
    with _importable(Path.cwd()):
        for depth, part in enumerate(parts):
            name = ".".join(parts[: depth + 1])
            inside = None if module is None else list(getattr(module, "__path__", []))
            doing = f"{what}: importing {name}"
            find = functools.partial(call_user, importlib.util.find_spec, name, what=doing)
            # os.path is no file inside a package, but it is there once os was imported
            if name not in sys.modules and (not part or inside == [] or find() is None):
                siblings = [found.name for found in pkgutil.iter_modules(inside)]
                where = f" in {module.__name__}" if module else ""
                hint = closest(part, siblings)
                if not hint.startswith("did you mean"):  # a list of all modules helps nobody
                    hint = f"install it, or run in the folder that holds it; or {FORMS}"
                raise UsageError(f"{what}: no module {part!r}{where} (from {path!r})", hint)
            module = call_user(importlib.import_module, name, what=doing)
    assert module is not None, "a path has at least one part"
    return module


class _AsItStands(importlib.machinery.SourceFileLoader):
    """Runs the file that was digested; of two edits in one second, bytecode may be of the first."""

    def path_stats(self, path: Any) -> dict[str, Any]:
        """Without them bytecode is neither taken nor left behind."""
        raise OSError("bytecode is not used")


def _load_file(path: str, what: str) -> ModuleType:
    file = Path(os.path.expanduser(path)).resolve()  # unlike Path's, it takes unknown users
    if not file.is_file():
        beside = [found.name for found in file.parent.glob("*.py")] if file.parent.is_dir() else []
        hint = closest(file.name, beside) if beside else "give the path of a .py file that exists"
        raise UsageError(f"{what}: there is no file {path}", hint)
    # One name per file and content: two SPECs into one file share its classes, and a file that
    # was edited in between is loaded anew.
    content = hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()
    name = f"hwloop_user_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{content[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _AsItStands(name, str(file))
    found = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert found is not None, "a .py file always has a spec"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their own module up while it is executed
    try:
        with _importable(file.parent):
            run = functools.partial(loader.exec_module, module)
            call_user(run, what=f"{what}: loading {path}")
    except HwloopError:
        del sys.modules[name]
        raise
    return module
