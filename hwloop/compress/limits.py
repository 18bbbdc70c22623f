"""An end to what might never come to one, the same on machines of any speed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hwloop.errors import UsageError


@contextmanager
def at_most_calls(count: int, *, what: str) -> Iterator[None]:
    """Ends a block that calls more functions than it may.

    Raises:
        UsageError: it does.
    """
    left, before = count, sys.getprofile()

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(before)
            raise UsageError(f"{what} takes too long", "write that part in a simpler way")

    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(before)
