"""A digest of user code: what a function computes, whatever its comments, layout and docstrings.

Followed from a function are the user's own functions and classes that it names, what decorators
wrap, the values of its closure, defaults and module globals, and the user's modules that it uses.
Installed packages are taken as they are: their versions stand in the run's configuration.
"""

from __future__ import annotations

import collections
import decimal
import enum
import fractions
import functools
import hashlib
import inspect
import pathlib
import re
import sys
import types
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from hwloop.tasks.calls import is_users
from hwloop.tasks.codetext import file_of, file_source, held, names_in, source_of

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)
SHOWN = (
    *(np.generic, torch.dtype, torch.device, torch.Size, range, slice, enum.Enum, re.Pattern),
    *(decimal.Decimal, fractions.Fraction, pathlib.PurePath, type(Ellipsis)),
)
"""Values whose repr is all that there is to them."""

STORED_NAMES = {
    "hwloop.tasks.protocol": "hwloop.task",
    "hwloop.tasks.splits": "hwloop.splits",
    "hwloop.tasks.demo": "hwloop.demo",
}
"""Digests hold the names of the package's classes that a user's code builds on: they outlive a move
of these modules, or every run from before would be refused."""

MOST_OBJECTS = 20_000
MOST_DEPTH = 60
# How hwloop.tasks.spec names the modules of the user's files: anew with every comment in them.
OWN_NAMES = re.compile(r"hwloop_user_\w+_[0-9a-f]{12}")


def code_digest(*objects: Any, owner: Any = None) -> str:
    """SHA-256 of what ``objects`` compute, in hexadecimal.

    Args:
        objects: functions, classes, callables, plain values, arrays, tensors.
        owner: the object whose methods they are: what they read from ``self`` is followed.
    """
    walk = _Walk(owner)
    for item in objects:
        walk.add(item)
    return walk.hash.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The values of a tensor of any type and layout, in order; nothing where it holds none."""
    if tensor.is_meta:
        return b""
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    plain = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return bytes(plain.view(torch.uint8).numpy())


def _stored_name(module: str) -> str:
    """The module by the name under which runs were stored, wherever it stands today."""
    for now, before in STORED_NAMES.items():
        if module == now or module.startswith(f"{now}."):
            return before + module.removeprefix(now)
    return module


class _Walk:
    """Everything that is reached, in the order of the code, each object once."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, Any]] = {}  # an id is unique only while its object lives
        self._depth = 0

    def add(self, item: Any) -> None:
        if isinstance(item, PLAIN):
            self._text("value", repr(item))
        elif id(item) in self._seen:
            self._text("again", str(self._seen[id(item)][0]))
        elif len(self._seen) >= MOST_OBJECTS or self._depth >= MOST_DEPTH:
            self._text("beyond", type(item).__qualname__)
        else:
            self._seen[id(item)] = (len(self._seen), item)
            self._depth += 1
            self._object(item)
            self._depth -= 1

    def _object(self, item: Any) -> None:
        if isinstance(item, torch.Tensor):
            self._text("tensor", f"{item.dtype} {tuple(item.shape)}")
            self.hash.update(tensor_bytes(item))
        elif isinstance(item, np.ndarray):
            self._array(item)
        elif isinstance(item, SHOWN):
            self._text(type(item).__qualname__, repr(item))
        elif isinstance(item, CONTAINERS):
            self._container(item)
        elif isinstance(item, ModuleType):
            self._module(item)
        elif isinstance(item, FunctionType):
            self._function(item)
        elif inspect.isclass(item):
            self._class(item)
        else:
            self._callable(item)

    def _text(self, kind: str, text: str) -> None:
        text = OWN_NAMES.sub("", text)
        self.hash.update(f"{kind}:{len(text)}:{text};".encode("utf-8", "surrogatepass"))

    def _array(self, array: Any) -> None:
        self._text("array", f"{array.dtype} {array.shape}")
        if array.dtype.hasobject:
            self.add(array.tolist())
        else:
            self.hash.update(np.ascontiguousarray(array).tobytes())

    def _container(self, item: Any) -> None:
        self._text("container", f"{type(item).__name__} {len(item)}")
        if isinstance(item, dict):
            for key, value in item.items():
                self.add(key)
                self.add(value)
        elif isinstance(item, (set, frozenset)):  # their order differs from process to process
            self._text("set", " ".join(sorted(code_digest(v, owner=self.owner) for v in item)))
        else:
            for value in item:
                self.add(value)

    def _module(self, module: ModuleType) -> None:
        file = getattr(module, "__file__", None)
        self._text("module", module.__name__ if file is None else Path(file).stem)
        if file is not None and is_users(file, typed=True):
            self._text("source", file_source(file))

    def _function(self, function: FunctionType) -> None:
        self._text("function", function.__qualname__)
        self.add(vars(function).get("__wrapped__"))
        names = list(names_in(function.__code__))
        if is_users(function.__code__.co_filename, typed=True):
            self._code(function)
            self.add(function.__defaults__)
            self.add(function.__kwdefaults__)
            for name in names:
                if name in function.__globals__ and not name.startswith("__"):
                    self._named(function.__globals__[name], names)
        for cell in function.__closure__ or ():  # also of a package's decorator around the user's
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        for name in names:
            self._member(name)

    def _named(self, found: Any, names: list[str]) -> None:
        """What a global name stands for, and of a user's module what the function takes from it."""
        is_new = id(found) not in self._seen
        self.add(found)
        file = getattr(found, "__file__", None) if isinstance(found, ModuleType) else None
        if file is not None and is_users(file, typed=True) and is_new:
            for name in names:
                if name in vars(found) and not name.startswith("__"):
                    self._named(vars(found)[name], names)

    def _code(self, function: FunctionType) -> None:
        source = source_of(function)
        if source:
            self._text("source", source)
        else:
            self._compiled(function.__code__)

    def _compiled(self, code: CodeType) -> None:
        self._text("code", f"{code.co_code.hex()} {code.co_names} {code.co_varnames}")
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._compiled(constant)
            else:
                self.add(constant)

    def _member(self, name: str) -> None:
        """What ``self.name`` is, where the function belongs to the owner."""
        if self.owner is None or name.startswith("__") or name == "training":
            return
        found = vars(self.owner).get(name, inspect.getattr_static(type(self.owner), name, None))
        if found is not None:
            self._text("member", name)
            self.add(found)

    def _class(self, kind: type) -> None:
        self._text("class", kind.__qualname__)
        for base in kind.__mro__[:-1]:
            if not is_users(file_of(base), typed=True):
                self._text("base", f"{_stored_name(base.__module__)}.{base.__qualname__}")
                continue
            self._text("source", source_of(base) or base.__qualname__)
            for name, member in vars(base).items():
                if isinstance(member, (FunctionType, staticmethod, classmethod, property)):
                    self.add(member)
                elif _is_value(member) and not name.startswith("__"):
                    self._text("attribute", name)
                    self.add(member)

    def _callable(self, item: Any) -> None:
        if isinstance(item, functools.partial):
            for part in (item.func, item.args, item.keywords):
                self.add(part)
        elif isinstance(item, (staticmethod, classmethod, MethodType)):
            self.add(item.__func__)
        elif isinstance(item, property):
            self.add(item.fget)
        elif isinstance(item, (BuiltinFunctionType, np.ufunc)):
            name = getattr(item, "__qualname__", item.__name__)
            self._text("built-in", f"{getattr(item, '__module__', '')}.{name}")
        else:
            self.add(held(item).get("__wrapped__"))  # what functools.cache and its kin keep
            self._instance(item)

    def _instance(self, item: Any) -> None:
        self._text("instance", type(item).__qualname__)
        self.add(type(item))
        package = type(item).__module__.partition(".")[0]
        is_pythons = package in sys.stdlib_module_names and package != "__main__"
        if is_pythons and not isinstance(item, types.SimpleNamespace):
            return  # a logger, the environment, a lock: what they hold is the process's own
        for name, value in sorted(held(item).items()):
            if not name.startswith("__"):
                self._text("attribute", name)
                self.add(value)


def _is_value(item: Any) -> bool:
    return isinstance(item, (*PLAIN, *SHOWN, *CONTAINERS, np.ndarray, torch.Tensor))
