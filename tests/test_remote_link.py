"""A link that is cut for real: noticed in seconds, nothing left on the board, the work goes on."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board import Board, board, needs_link
from graphs import row_onnx

from hwloop.errors import TargetError
from hwloop.findings import Protocol
from hwloop.measure.link import LIMITS, Limits
from hwloop.measure.paired import build_rows
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing

ORT = writing("ort-x86")
pytestmark = needs_link

MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
QUICK = Limits(worker_s=3, host_s=4.0, beat_s=0.5)
"""Where it does not matter how long the silence is that ends a worker."""

LONG = Protocol(
    warmup_s=0.1, rounds=1, sample_s=0.01, max_samples=300, target_halfwidth=1e-9, time_limit_s=2.0
)
SHORT = replace(LONG, time_limit_s=0.5)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with board(tmp_path_factory.mktemp("board"), namespace=True) as made:
        yield made


@pytest.fixture
def profile(
    there: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TargetProfile]:
    monkeypatch.setenv("PATH", str(there.folder / "bin"), prepend=":")
    yield load_profile(str(there.profile(tmp_path / "there.toml", runtime="onnxruntime")))
    there.mend()
    assert there.gone_within(10)


class Outage(threading.Thread):
    """Cuts the link after ``after_s``, looks ``seen_s`` later who is left, then mends it.

    Args:
        more_s: how much later it is mended: when ssh has given up as well, or what was sent before
            the cut still arrives.
    """

    def __init__(self, there: Board, *, after_s: float, seen_s: float, more_s: float = 0) -> None:
        super().__init__(daemon=True)
        self.there, self.after_s, self.seen_s, self.more_s = there, after_s, seen_s, more_s
        self.left: list[int] = []
        self.start()

    def run(self) -> None:
        time.sleep(self.after_s)
        self.there.cut()
        time.sleep(self.seen_s)
        self.left = self.there.workers()
        time.sleep(self.more_s)
        self.there.mend()


def test_a_cut_in_the_middle_of_a_measurement_costs_its_time_and_nothing_else(
    there: Board, profile: TargetProfile
) -> None:
    """With the limits that users have."""
    with DeviceSession(profile) as session:
        session.build(MODEL)
        before = session.state()["pid"]
        outage = Outage(there, after_s=0.5, seen_s=LIMITS["ssh"].worker_s + 1, more_s=2)
        found = session.measure(MODEL, MODEL, protocol=LONG, reference_latency_ms=1.0)
        outage.join()
        assert len(found.samples_ms) > 10
        assert session.state()["pid"] != before
        assert outage.left == []


def test_a_cut_in_the_middle_of_a_transfer_repeats_the_transfer(
    there: Board, profile: TargetProfile
) -> None:
    inputs = np.random.default_rng(0).standard_normal((1500, 32, 14, 14)).astype(np.float32)
    with DeviceSession(profile, limits=QUICK) as session:
        session.build(MODEL)
        before = session.state()["pid"]
        outage = Outage(there, after_s=0.1, seen_s=QUICK.worker_s + 1)
        found = session.infer(MODEL, inputs)
        outage.join()
        assert session.state()["pid"] != before
        assert outage.left == []
        assert found.shape == (1500, 32, 14, 14)
        with DeviceSession(load_profile("cpu")) as here:
            assert np.array_equal(found[-10:], here.infer(MODEL, inputs[-10:]))


def test_a_cut_that_lasts_stops_the_run_and_a_repeat_completes_it(
    there: Board, profile: TargetProfile, tmp_path: Path
) -> None:
    rows = [
        LayerConfig(op="conv", in_shape=(1, 8, 8, 8), out_channels=width, tail=("bias",))
        for width in range(8, 72, 8)
    ]
    short = load_profile(str(tmp_path / "there.toml"))
    text = (tmp_path / "there.toml").read_text().replace("reconnect_s = 30", "reconnect_s = 3")
    (tmp_path / "there.toml").write_text(text)
    short = load_profile(str(tmp_path / "there.toml"))
    with Store(tmp_path / "t.sqlite") as store:
        with DeviceSession(short, limits=QUICK) as session:
            table = LatencyTable(store, session.fingerprint, short.protocols.row)
            cut_at_3 = _cut_after(there, 3)
            started = time.monotonic()
            with pytest.raises(TargetError, match="does not answer") as caught:
                build_rows(session, table, rows, progress=cut_at_3, runtime=ORT)
            assert time.monotonic() - started < 25
            assert caught.value.exit_code == 4
            stored = {config.key() for config, _ in table.rows()}
            kept = len(stored) + sum(table.first_try(row) is not None for row in rows)
            assert 3 <= kept < len(rows) + 2  # some may have been disturbed
        there.mend()
        with DeviceSession(short) as session:
            table = LatencyTable(store, session.fingerprint, short.protocols.row)
            assert build_rows(session, table, rows, runtime=ORT) == len(rows) + 2 - len(stored)
            assert {config for config, _ in table.rows()} == {REFERENCE, EMPTY, *rows}


def _cut_after(there: Board, count: int):  # type: ignore[no-untyped-def]
    def progress(done: int, total: int) -> None:
        if done == count:
            there.cut()

    return progress


def test_the_pulse_survives_a_slow_link(there: Board, profile: TargetProfile) -> None:
    """0.8 MB there and back at 2 Mbit/s take twice the silence that ends a worker."""
    inputs = np.random.default_rng(0).standard_normal((32, 32, 14, 14)).astype(np.float32)
    with (
        there.shaped("rate", "2mbit", "burst", "32kb", "latency", "400ms"),
        DeviceSession(profile, limits=QUICK) as session,
    ):
        before = session.state()["pid"]
        started = time.monotonic()
        session.infer(MODEL, inputs)
        assert time.monotonic() - started > 2 * QUICK.worker_s
        assert session.state()["pid"] == before


def test_an_engine_arrives_over_a_link_that_is_slower_than_the_alarm(
    there: Board, profile: TargetProfile, tmp_path: Path
) -> None:
    """32 MB at 4 MB/s. As one message, the pulse would wait behind it: 8 s, where 3 are allowed."""
    fake = load_profile(str(there.profile(tmp_path / "fake.toml")))
    size_bytes = 32 << 20
    with (
        there.shaped("rate", "32mbit", "burst", "64kb", "latency", "400ms"),
        DeviceSession(
            replace(fake, settings={"engine_bytes": size_bytes}), limits=QUICK
        ) as session,
    ):
        before = session.state()["pid"]
        started = time.monotonic()
        assert len(session.engine(MODEL).data) == size_bytes
        assert time.monotonic() - started > 2 * QUICK.worker_s
        assert session.state()["pid"] == before


def test_a_full_disk_on_the_board_costs_no_measurement(
    there: Board, profile: TargetProfile
) -> None:
    """Four pages are all that the board's cache may hold: replies no longer fit."""
    there.cache.mkdir(parents=True, exist_ok=True)
    mounted = ("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(there.cache))
    if subprocess.run(mounted, check=False, timeout=30).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        (there.cache / "ballast").write_bytes(b"x" * 8192)
        with DeviceSession(profile) as session:
            before = session.state()["pid"]
            for _ in range(3):
                found = session.measure(MODEL, MODEL, protocol=SHORT, reference_latency_ms=1.0)
                assert found.samples_ms
            assert session.state()["pid"] == before
    finally:
        subprocess.run(("umount", "--lazy", str(there.cache)), check=True, timeout=30)


def test_replies_are_kept_as_they_were_sent(there: Board) -> None:
    for path in (there.cache / "replies").glob("*.json"):
        assert set(json.loads(path.read_text())) <= {"result", "error"}
