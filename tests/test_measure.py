"""The host's side of measuring: what is stored, what is repeated, what is doubted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import row_onnx

from hwloop.errors import TargetError
from hwloop.findings import Fingerprint, Measurement
from hwloop.measure import paired as measure
from hwloop.measure import second_tries
from hwloop.measure.profile import TargetProfile
from hwloop.measure.profile_file import load_profile
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable, row_doubts
from hwloop.records import LayerConfig
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing

ORT = writing("ort-x86")
FAKE = load_profile("fake")
LOOP = FAKE.protocols.loop
MODEL = OnnxModel(row_onnx(REFERENCE), (REFERENCE,))
ROWS = [
    LayerConfig(op="linear", in_shape=(1, 8), out_channels=width, tail=("bias",))
    for width in (4, 5, 6, 7)
]
STEADY = (1.0, 1.01) * 10
DRIFTING = (1.0,) * 10 + (1.2,) * 10
SCATTERED = (1.0, 1.5, 2.0, 0.5) * 5


def found(samples: tuple[float, ...]) -> Measurement:
    reference = (1.0,) * len(samples)
    return Measurement(samples_ms=samples, reference_ms=reference, reference_latency_ms=1.0)


class Readings(DeviceSession):
    """A target that gives the readings it is told, one for each call."""

    def __init__(self, *readings: tuple[float, ...]) -> None:
        super().__init__(FAKE)
        self.readings = list(readings)
        self.references_ms: list[float] = []

    def measure(self, *unused: object, reference_latency_ms: float, **kw: object) -> Measurement:
        self.references_ms.append(reference_latency_ms)
        return found(self.readings.pop(0))


def against(session: DeviceSession) -> Measurement:
    return measure.against(session, MODEL, MODEL, protocol=LOOP, reference_latency_ms=1.0)


def baseline(session: DeviceSession) -> Measurement:
    return measure.baseline(session, MODEL, LOOP)


# ---------------------------------------------------------------------------------- doubts


def test_steady_readings_raise_no_doubt() -> None:
    assert measure.doubts(found(STEADY)) == ()


@pytest.mark.parametrize("samples", [DRIFTING, SCATTERED])
def test_rounds_that_differ_are_doubted(samples: tuple[float, ...]) -> None:
    (reason,) = measure.doubts(found(samples))
    assert "its rounds differ by" in reason
    assert "%" in reason
    assert measure.ALONE in reason


def test_others_on_its_own_core_are_borne_while_runs_fall_between_them() -> None:
    steady = replace(found(STEADY), clock="thread", core_taken_share=0.5)
    assert measure.doubts(replace(steady, interrupted_share=0.7)) == ()
    (reason,) = measure.doubts(replace(steady, interrupted_share=0.95))
    assert "95% of its samples" in reason


def test_the_clock_on_the_wall_bears_little_of_others_on_its_cores() -> None:
    steady = found(STEADY)
    assert measure.doubts(replace(steady, core_taken_share=0.05)) == ()
    (reason,) = measure.doubts(replace(steady, core_taken_share=0.2))
    assert "20% of its core" in reason


def test_busy_cores_beside_it_are_doubted() -> None:
    assert measure.doubts(replace(found(STEADY), other_cores_busy_share=0.1)) == ()
    (reason,) = measure.doubts(replace(found(STEADY), other_cores_busy_share=0.9))
    assert "share its memory" in reason


def test_drift_that_the_reference_shares_is_no_reason_for_doubt() -> None:
    both = replace(found(DRIFTING), reference_ms=DRIFTING)
    assert measure.doubts(both) == ()


# ------------------------------------------------------------------------------ repetition


@pytest.mark.parametrize("measured", [against, baseline])
def test_an_unstable_measurement_is_repeated_and_the_stable_one_kept(
    measured: Callable[[DeviceSession], Measurement],
) -> None:
    session = Readings(DRIFTING, STEADY)
    assert measured(session).samples_ms == STEADY
    assert session.readings == []


@pytest.mark.parametrize("measured", [against, baseline])
def test_a_stable_measurement_is_taken_once(
    measured: Callable[[DeviceSession], Measurement],
) -> None:
    session = Readings(STEADY, DRIFTING)
    assert measured(session).stable
    assert session.readings == [DRIFTING]


def test_what_stays_unstable_is_marked_with_its_reasons() -> None:
    result = against(Readings(SCATTERED, DRIFTING, STEADY))
    assert not result.stable
    assert result.samples_ms == DRIFTING
    assert result.unstable == measure.doubts(found(DRIFTING))


def test_a_search_tries_again_while_that_helps_and_every_fourth_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(second_tries, "REMEMBERED", 2)
    made = second_tries.SecondTries()

    def tries(*readings: tuple[float, ...]) -> int:
        session = Readings(*readings)
        measure.against(
            session,
            MODEL,
            MODEL,
            protocol=LOOP,
            reference_latency_ms=1.0,
            second_tries=made,
        )
        return len(readings) - len(session.readings)

    assert [tries(DRIFTING, SCATTERED, STEADY) for _ in range(4)] == [2, 2, 1, 2]
    assert [tries(DRIFTING, STEADY) for _ in range(5)] == [1, 1, 1, 2, 2]


# ------------------------------------------------------------------ a real worker process


def test_the_baseline_is_its_own_reference() -> None:
    with DeviceSession(FAKE) as session:
        result = measure.baseline(session, MODEL, LOOP)
        other = measure.against(
            session, MODEL, MODEL, protocol=LOOP, reference_latency_ms=2 * result.latency_ms
        )
    assert result.ratio == pytest.approx(1.0, abs=0.01)
    assert result.latency_ms == pytest.approx(result.ratio * result.reference_ms[0])
    assert other.latency_ms == pytest.approx(2 * result.latency_ms)


def test_building_rows_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with DeviceSession(FAKE) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, FAKE.protocols.row)
        with pytest.raises(KeyboardInterrupt):
            measure.build_rows(session, table, ROWS, progress=interrupt, runtime=ORT)
        kept = LatencyTable(store, session.fingerprint, FAKE.protocols.row)
        assert len(kept) == 3
        assert kept.missing([REFERENCE, EMPTY, *ROWS]) == ROWS[1:]
        assert measure.build_rows(session, kept, ROWS, runtime=ORT) == 3
        assert measure.build_rows(session, kept, ROWS, runtime=ORT) == 0
        assert {config for config, _ in kept.rows()} == {REFERENCE, EMPTY, *ROWS}


def test_rows_are_scaled_by_the_reference_row_of_their_table(tmp_path: Path) -> None:
    here = Fingerprint(device="d", runtime="r", runtime_version="1")
    with Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, here, FAKE.protocols.row)
        table.add(REFERENCE, replace(found(STEADY), reference_latency_ms=3.0))
        session = Readings(STEADY, STEADY)
        measure.build_rows(session, table, ROWS[:1], runtime=ORT)
    assert session.references_ms == [table.row_ms(REFERENCE)] * 2


def built(
    tmp_path: Path, *readings: tuple[float, ...], rows: int
) -> dict[LayerConfig, Measurement]:
    """The rows that are stored after a build with these readings, all of them used."""
    here = Fingerprint(device="d", runtime="r", runtime_version="1")
    with Store(tmp_path / "t.sqlite") as store:
        session = Readings(*readings)
        measure.build_rows(
            session,
            LatencyTable(store, here, FAKE.protocols.row),
            ROWS[:rows],
            runtime=ORT,
        )
        assert session.readings == []
        return dict(LatencyTable(store, here, FAKE.protocols.row).rows())


FASTER = tuple(0.5 * ms for ms in STEADY)


def test_a_disturbed_row_is_taken_again_when_the_others_are_done(tmp_path: Path) -> None:
    rows = built(tmp_path, STEADY, STEADY, DRIFTING, STEADY, FASTER, rows=2)
    assert rows[ROWS[0]].samples_ms == FASTER
    assert all(measurement.stable for measurement in rows.values())


def test_a_row_that_is_disturbed_twice_is_marked_and_counted(tmp_path: Path) -> None:
    rows = built(tmp_path, STEADY, STEADY, DRIFTING, STEADY, SCATTERED, rows=2)
    assert [config for config, measurement in rows.items() if not measurement.stable] == [ROWS[0]]
    assert row_doubts(rows.items()) == ["1 of 4 rows were disturbed, and no calmer time was found"]


def test_rows_are_not_all_taken_again_while_what_disturbs_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two are no calmer, so the third stays as it is; the fourth is tried in any case."""
    monkeypatch.setattr(second_tries, "REMEMBERED", 2)
    first, again = [DRIFTING] * 4, [SCATTERED, SCATTERED, FASTER]
    rows = built(tmp_path, STEADY, STEADY, *first, *again, rows=4)
    samples = [rows[config].samples_ms for config in ROWS[:4]]
    assert samples == [SCATTERED, SCATTERED, DRIFTING, FASTER]
    assert [rows[config].stable for config in ROWS[:4]] == [False, False, False, True]


def test_rows_are_all_taken_again_while_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_tries, "REMEMBERED", 2)
    readings = [*[DRIFTING] * 4, FASTER, SCATTERED, FASTER, FASTER]
    rows = built(tmp_path, STEADY, STEADY, *readings, rows=4)
    assert [rows[config].stable for config in ROWS[:4]] == [True, False, True, True]


def test_a_disturbed_reference_is_taken_again_at_once(tmp_path: Path) -> None:
    rows = built(tmp_path, DRIFTING, FASTER, STEADY, STEADY, rows=1)
    assert rows[REFERENCE].samples_ms == FASTER


def test_a_build_that_was_stopped_takes_a_disturbed_row_once_more_only(tmp_path: Path) -> None:
    here = Fingerprint(device="d", runtime="r", runtime_version="1")
    with Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, here, FAKE.protocols.row)
        with pytest.raises(IndexError):  # no reading left: as good as a kill
            measure.build_rows(Readings(STEADY, STEADY, DRIFTING), table, ROWS[:2], runtime=ORT)
        table = LatencyTable(store, here, FAKE.protocols.row)
        assert table.missing(ROWS[:2]) == ROWS[:2]
        measure.build_rows(Readings(DRIFTING, STEADY), table, ROWS[:2], runtime=ORT)
        assert table.missing(ROWS[:2]) == []


def test_rows_say_that_they_are_rows(tmp_path: Path) -> None:
    class Rows(Readings):
        def measure(self, *models: OnnxModel, **more: Any) -> Measurement:
            assert [model.row for model in models] == [True, True]
            return super().measure(*models, **more)

    here = Fingerprint(device="d", runtime="r", runtime_version="1")
    with Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, here, FAKE.protocols.row)
        assert measure.build_rows(Rows(*[STEADY] * 3), table, ROWS[:1], runtime=ORT) == 3


def test_progress_counts_the_rows_that_are_missing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with DeviceSession(FAKE) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, FAKE.protocols.row)
        measure.build_rows(session, table, ROWS[:1], runtime=ORT)
        measure.build_rows(
            session,
            table,
            ROWS[:3],
            progress=lambda *at: seen.append(at),
            runtime=ORT,
        )
    assert seen == [(0, 2), (1, 2), (2, 2)]


def refusing(after: int, times: int) -> TargetProfile:
    fault = {"compare": {"kind": "refuse", "after": after, "times": times}}
    return replace(FAKE, settings={"faults": fault})


def test_a_row_that_the_target_refuses_is_stored_with_its_reason(tmp_path: Path) -> None:
    profile = refusing(after=4, times=1)
    with DeviceSession(profile) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        measure.build_rows(session, table, ROWS, runtime=ORT)
        kept = LatencyTable(store, session.fingerprint, profile.protocols.row)
        assert "no kernel" in str(kept.refusal(ROWS[1]))
        assert kept.refusal(ROWS[0]) is None
        assert len(kept) == len(ROWS) + 1
        assert kept.missing(ROWS) == []


def test_a_target_that_refuses_row_after_row_is_unusable_and_nothing_is_held_against_them(
    tmp_path: Path,
) -> None:
    rows = [replace(ROWS[0], out_channels=width) for width in range(1, 40)]
    profile = refusing(after=4, times=100)
    with DeviceSession(profile) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        with pytest.raises(TargetError, match="no kernel"):
            measure.build_rows(session, table, rows, runtime=ORT)
        kept = LatencyTable(store, session.fingerprint, profile.protocols.row)
        assert len(kept) == 3
        assert len(kept.missing(rows)) == len(rows) - 1


@pytest.mark.parametrize("after", [1, 2])
def test_a_target_that_refuses_the_reference_or_nothing_at_all_is_unusable(
    tmp_path: Path, after: int
) -> None:
    profile = refusing(after=after, times=1)
    with DeviceSession(profile) as session, Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, session.fingerprint, profile.protocols.row)
        with pytest.raises(TargetError, match="no kernel"):
            measure.build_rows(session, table, ROWS, runtime=ORT)
