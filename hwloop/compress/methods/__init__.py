"""One file per compression method; :data:`METHODS` fixes their order."""

from __future__ import annotations

from hwloop.compress.methods.drop import Drop
from hwloop.compress.methods.lowrank import LowRank
from hwloop.compress.methods.method import Keep, Method
from hwloop.compress.methods.prune import Prune
from hwloop.compress.methods.resize import Resize
from hwloop.compress.methods.sparse import Sparse
from hwloop.records import Action

METHODS: tuple[Method, ...] = (Keep(), Resize(), Drop(), Prune(), LowRank(), Sparse())
"""In the order of the menu, in which they are also applied."""


def method_of(action: Action) -> Method:
    """The method that an action belongs to. Raises KeyError for a kind that none has."""
    for method in METHODS:
        if method.kind == action.kind:
            return method
    raise KeyError(action.kind)


def describe(action: Action) -> str:
    """An action in words: ``prune to 50%, int8``."""
    words = method_of(action).describe(action)
    return words if action.precision == "base" else f"{words}, {action.precision}"
