"""A store's records under one identity: what was found for other inputs is never read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwloop.measure.store import Store


class Scope:
    """Records by (kind, key), the run's inputs being part of every kind.

    Args:
        identity: digest of the inputs; see :func:`hwloop.run.identity.key_of`.
    """

    def __init__(self, store: Store, identity: str) -> None:
        self._store = store
        self._identity = identity

    def get(self, kind: str, key: str, parse: Callable[[Any], Any]) -> Any:
        """As ``parse`` returns the value, or None; see :meth:`hwloop.measure.store.Store.get`."""
        return self._store.get(self._scoped(kind), key, parse)

    def all(self, kind: str, parse: Callable[[Any], Any]) -> dict[str, Any]:
        """Every value of a kind by key, in key order, as ``parse`` returns it."""
        return self._store.all(self._scoped(kind), parse)

    def add(self, kind: str, key: str, value: Any) -> None:
        """Store a value unless the key has one already."""
        self._store.add(self._scoped(kind), key, value)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store a value, replacing an older one."""
        self._store.put(self._scoped(kind), key, value)

    def _scoped(self, kind: str) -> str:
        return f"{kind}/{self._identity}"
