"""Running the user's code: whatever it raises becomes a UsageError that names the user's line."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hwloop.errors import HwloopError, UsageError

HERE = str(Path(__file__).resolve().parents[1]) + os.sep
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
INSTALLED = ("site-packages", "dist-packages")
LONGEST_MESSAGE = 500
LONGEST_REPR = 60

Result = TypeVar("Result")


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


def is_users(filename: str, *, typed: bool = False) -> bool:
    """Whether code from there is the user's: no part of Python, of hwloop or of a package.

    Args:
        typed: whether code that was typed at a prompt, which has a name like ``<stdin>`` and no
            line to point at, counts as the user's.
    """
    if filename.startswith("<"):
        return typed and not filename.startswith("<frozen")
    return bool(filename) and not filename.startswith(HERE) and not _is_library(filename)


def _is_library(filename: str) -> bool:
    return filename.startswith(("<", *LIBRARIES)) or any(part in filename for part in INSTALLED)
