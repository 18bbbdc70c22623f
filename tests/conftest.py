"""``--target NAME``: run what only real hardware can tell; see docs/on-hardware.md."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", metavar="NAME", help="Also run the tests marked hardware on it.")
    parser.addoption("--host", metavar="USER@HOST", help="Where that target is.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--target"):
        return
    for item in items:
        if item.get_closest_marker("hardware"):
            what = (getattr(item, "function", None).__doc__ or "").strip().splitlines()[0]
            reason = f"would verify on hardware: {what} (make test-target TARGET=cuda)"
            item.add_marker(pytest.mark.skip(reason=reason))
