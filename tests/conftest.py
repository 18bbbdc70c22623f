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
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from board import Board, board

from hwloop.measure import transport, worker
from hwloop.measure.session import DeviceSession

BOARD = "board"
LONG = ("test_resume.py", "test_wirings.py")
"""Files of a minute and more; the last process to end would be alone with one of them."""

UNTRACED = (
    *("test_beside", "test_branches", "test_choice", "test_commands", "test_dry_run"),
    *("test_exit_codes", "test_extending", "test_faults", "test_finish", "test_fuzz"),
    *("test_goldens", "test_help", "test_hostile_candidates", "test_hostile_runs"),
    *("test_hostile_stores", "test_identity", "test_methods", "test_proof", "test_reachable"),
    *("test_remote", "test_remote_commands", "test_remote_link", "test_rounds"),
    *("test_rowkinds", "test_search_methods", "test_simulate", "test_wirings"),
)
"""Files that take long by whole runs or large networks, of lines that others trace as well.

The tracer takes a quarter of the time of such files.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", metavar="NAME", help="Also run the tests marked hardware on it.")
    parser.addoption("--host", metavar="USER@HOST", help="Where that target is.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What takes long begins first, and what has to wait for each other stays together.
    items.sort(key=lambda item: (item.path.name not in LONG, _group(item.path) != BOARD))
    if config.getoption("--target"):
        return
    for item in items:
        if item.get_closest_marker("hardware"):
            what = (getattr(item, "function", None).__doc__ or "").strip().splitlines()[0]
            reason = f"would verify on hardware: {what} (make test-target TARGET=cuda)"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes that test side by side are dealt whole groups where files are: :func:`_group`."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.split("::", 1)[0])

    return ByGroup(config, log)


@cache
def _group(path: Path) -> str:
    """Files stay whole, for what they set up once; those with a board, which is one, are one."""
    return BOARD if "there: Board" in path.read_text() else path.stem


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
