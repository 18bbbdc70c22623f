"""Reaching the user's code: a SPEC names an object, and :func:`call_user` runs what it names.

A SPEC is ``package.module:attr`` or ``file.py:attr``; dotted attributes are allowed, and either may
be called with literals: ``torchvision.models:resnet18(weights="DEFAULT")``. It is parsed, never
evaluated. Whatever the user's code raises becomes a UsageError that names the user's line.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hwloop.errors import HwloopError, UsageError, closest

FORMS = (
    "write package.module:attr or file.py:attr, or either called with literals: "
    'torchvision.models:resnet18(weights="DEFAULT")'
)
# A module path first, so that a colon or ".py" inside the call's literals is left alone; the
# look-ahead keeps the drive letter of a Windows path from being taken for a module.
PATTERN = re.compile(r"(?P<where>(?![A-Za-z]:[\\/])[\w.]+|.+?\.py):(?P<what>.+)", re.DOTALL)
HERE = str(Path(__file__).resolve().parents[1]) + os.sep
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
INSTALLED = ("site-packages", "dist-packages")
LONGEST_MESSAGE = 500
LONGEST_REPR = 60

Result = TypeVar("Result")


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


def call_user(function: Callable[..., Result], /, *args: Any, what: str, **kwargs: Any) -> Result:
    """Run user code; whatever it raises becomes a UsageError with the user's file and line.

    Args:
        function: the user's function, class or method; ``args`` and ``kwargs`` are passed on.
        what: what was running, as the message begins: "metric() of the task shapes".

    Raises:
        UsageError: names the exception and the innermost line that belongs to the user.
        HwloopError: one that the code raised on purpose passes unchanged.
    """
    try:
        return function(*args, **kwargs)
    except HwloopError:
        raise
    except SystemExit as error:
        raise UsageError(
            f"{what} ended the program at {_user_line(error, function)}",
            'put what runs as a script under: if __name__ == "__main__":',
        ) from error
    except Exception as error:  # the boundary: user code may raise anything
        text = " ".join(str(error).split())[:LONGEST_MESSAGE]
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        line = _user_line(error, function)
        raise UsageError(f"{what} raised {cause} (at {line})", _advice(error, line)) from error


def call_factory(factory: Callable[..., Result], /, *, what: str, spec: str | None) -> Result:
    """Call a class or a function of the user's without arguments, as :func:`call_user` does.

    Args:
        what: what it makes, as the message begins: "the model my.py:net".
        spec: the SPEC that named it, or None when it was given as an object.

    Raises:
        UsageError: it needs arguments: they are named, and the hint shows how to give them.
    """
    missing = needed_arguments(factory)
    if missing:
        some = "an argument" if len(missing) == 1 else f"{len(missing)} arguments"
        name = spec or getattr(factory, "__name__", type(factory).__name__)
        call = f"{name}({', '.join(f'{argument}=...' for argument in missing)})"
        hint = f"write a literal for each ...: '{call}'" if spec else f"give what {call} returns"
        raise UsageError(f"{what} needs {some}: {', '.join(missing)}", hint)
    return call_user(factory, what=what)


def shown(found: Any) -> str:
    """What was given as an object, in few words: its name, or the beginning of its repr."""
    name = getattr(found, "__qualname__", None)
    try:
        return str(name or repr(found)[:LONGEST_REPR])
    except Exception:  # the boundary: a repr is the user's code, and huge integers have none
        return f"a {type(found).__name__}"


def needed_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that every call must give; empty where no signature says it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some functions written in C have none to show
        return ()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind not in optional and p.default is p.empty)


def _advice(error: BaseException, line: str) -> str:
    if isinstance(error, ModuleNotFoundError):
        # The file's folder is on the import path only while the file itself is loaded.
        return f"install {error.name!r}, or import it at the top of the file if it is your own"
    if _is_library(line):
        return "a library raised it: check the shapes and values that it was given"
    return f"correct the code at {line}"


def _user_line(error: BaseException, function: Callable[..., Any]) -> str:
    """``file:line`` of the innermost frame in the user's code, or else the nearest thing to it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", HERE))
    ]
    users = [frame for frame in frames if not _is_library(frame.filename)]
    if users or frames:
        innermost = (users or frames)[-1]
        return f"{innermost.filename}:{innermost.lineno}"
    target = inspect.unwrap(function)
    code = getattr(getattr(target, "__func__", target), "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    return getattr(target, "__qualname__", repr(target))


def is_users(filename: str) -> bool:
    """Whether a file is the user's own: neither a library's nor one of ours."""
    return not filename.startswith(HERE) and not _is_library(filename)


def _is_library(filename: str) -> bool:
    return filename.startswith(("<", *LIBRARIES)) or any(part in filename for part in INSTALLED)


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
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None, "a .py file always has a spec"
    assert found.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their own module up while it is executed
    try:
        with _importable(file.parent):
            run = functools.partial(found.loader.exec_module, module)
            call_user(run, what=f"{what}: loading {path}")
    except HwloopError:
        del sys.modules[name]
        raise
    return module
