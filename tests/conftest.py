"""``--target NAME``: run what only real hardware can tell; see docs/on-hardware.md."""

from __future__ import annotations

import fcntl
import os
import sys
import threading

# The networks of the tests are so small that a second thread costs more than it brings, and very
# much more where several tests run at once. Before torch is imported; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import pytest
from board import Board, board

from hwloop.measure import transport, worker
from hwloop.measure.session import DeviceSession

LONG = ("test_resume.py",)
"""Files of a minute and more; the last process to end would be alone with one of them."""

UNTRACED = (
    *("test_beside", "test_choice", "test_exit_codes", "test_extending", "test_faults"),
    *("test_fuzz", "test_goldens", "test_help", "test_identity", "test_methods", "test_proof"),
    *("test_reachable", "test_remote", "test_remote_commands", "test_remote_link", "test_rounds"),
    *("test_search_methods", "test_wirings"),
)
"""Files that take long by whole runs or large networks, of lines that others trace as well.

The tracer takes a quarter of the time of such files.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", metavar="NAME", help="Also run the tests marked hardware on it.")
    parser.addoption("--host", metavar="USER@HOST", help="Where that target is.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _deal(items)
    if config.getoption("--target"):
        return
    for item in items:
        if item.get_closest_marker("hardware"):
            what = (getattr(item, "function", None).__doc__ or "").strip().splitlines()[0]
            reason = f"would verify on hardware: {what} (make test-target TARGET=cuda)"
            item.add_marker(pytest.mark.skip(reason=reason))


def _deal(items: list[pytest.Item]) -> None:
    """To processes that test side by side: what has to wait for each other to the same one.

    Files stay whole, those with the board are one group, and what takes long comes first.
    """
    with_board = {item.path for item in items if "there" in getattr(item, "fixturenames", ())}
    for item in items:
        group = "board" if item.path in with_board else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (item.path.name not in LONG, item.path not in with_board))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Without a tracer where :data:`UNTRACED` says so.

    ``no_cover`` of pytest-cov 7 stops one of two tracers that a process of pytest-xdist has.
    """
    before = sys.gettrace(), threading.gettrace()
    if item.path.stem in UNTRACED:
        sys.settrace(None)
        threading.settrace(None)
    yield
    sys.settrace(before[0])
    threading.settrace(before[1])


@pytest.fixture(autouse=True, scope="module")
def subnormal_numbers() -> Iterator[None]:
    """OpenVINO flushes them to zero in the thread that runs a graph, and leaves it like that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board on loopback, one for each file of tests; of two processes that test, one waits."""
    # Their boards are one machine, on which one worker at a time may measure.
    with (tmp_path_factory.getbasetemp().parent / "hwloop-board").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with board(tmp_path_factory.mktemp("board")) as made:
            yield made


@pytest.fixture
def reachable(there: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's ``ssh`` finds the board, and no worker is left on it afterwards."""
    monkeypatch.setenv("PATH", str(there.folder / "bin"), prepend=":")
    yield
    assert there.gone_within(10), "a worker was left on the board"


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is started and no target is asked for anything."""

    def touched(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a target was touched")

    monkeypatch.setattr(DeviceSession, "__enter__", touched)
    monkeypatch.setattr(worker, "open_link", touched)
    monkeypatch.setattr(transport, "started", touched)
