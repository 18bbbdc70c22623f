"""``hwloop bench`` on several targets at once: two profiles of this CPU, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto
from test_bench_files import graph, model_of, products
from tiny import inside, is_refused

import hwloop
from hwloop.errors import UsageError
from hwloop.findings import Measurement, Protocol
from hwloop.measure import bench_targets
from hwloop.measure.bench_targets import across, share, side_by_side
from hwloop.measure.hosts import parse_host
from hwloop.measure.profile_file import load_profile
from hwloop.measure.progress import Progress

Capsys = pytest.CaptureFixture[str]
PROFILES = Path(__file__).parents[1] / "profiles"
ONE_TARGET = (
    *("file", "latency_source", "size_bytes", "fixed_shapes", "latency_ms", "latency_ms_ci95"),
    *("speedup", "speedup_ci95", "significant", "samples", "stopped", "clock", "disturbance"),
    *("launch_overhead_ms", "unstable"),
)


def profile(path: Path, *, time_limit_s: float) -> str:
    """The target cpu under another name, with less patience."""
    bench = f"\n[protocol.bench]\ntime_limit_s = {time_limit_s}\n"
    path.write_text((PROFILES / "cpu.toml").read_text() + bench)
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two targets that are the same core."""
    return [profile(tmp_path / f"{name}.toml", time_limit_s=0.8) for name in ("here", "other")]


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    """The same, for what is not about figures."""
    return [profile(tmp_path / f"{name}.toml", time_limit_s=0.05) for name in ("here", "other")]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A network, and one with a third of its layers."""
    return [products(tmp_path / "a.onnx", 96, 9), products(tmp_path / "b.onnx", 96, 3)]


def on(targets: Sequence[str]) -> list[str]:
    return [word for name in targets for word in ("--target", name)]


def no_kernel(path: Path) -> Path:
    """A file that is in order, and that ONNX Runtime has no kernel for."""
    made = model_of(graph(x=[1, 3]))
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    path.write_bytes(made.SerializeToString())
    return path


def taken(*milliseconds: float, **more: Any) -> Measurement:
    """One round of one target, its reference twice as slow."""
    doubled = tuple(2 * value for value in milliseconds)
    return Measurement(
        samples_ms=milliseconds,
        reference_ms=doubled,
        reference_latency_ms=1.0,
        rounds=(len(milliseconds),),
        **more,
    )


def test_the_same_file_on_two_equal_targets_does_not_differ_and_a_smaller_one_does(
    files: list[Path], pair: list[str]
) -> None:
    found = hwloop.bench(*files, target=tuple(pair))
    assert [(record["file"], record["target"]) for record in found] == [
        (str(file), target) for file in files for target in ("here", "other")
    ]
    assert {record["runtime"] for record in found} == {"onnxruntime"}
    same, here, there = found[1:]
    assert not same["significant"]
    assert same["speedup"] == pytest.approx(1, rel=0.1)
    for smaller in (here, there):
        assert smaller["significant"]
        assert 2.4 < smaller["speedup"] < 3.6


def test_both_orders_of_targets_and_files_agree(files: list[Path], pair: list[str]) -> None:
    onward = hwloop.bench(*files, target=pair)[-1]
    back = hwloop.bench(*files[::-1], target=pair[::-1])[-1]
    assert onward["speedup"] * back["speedup"] == pytest.approx(1, rel=0.15)


def test_one_file_is_compared_between_its_targets_alone(
    files: list[Path], quick: list[str], capsys: Capsys
) -> None:
    said = inside(capsys, "bench", files[1], *on(quick))
    assert said.code == 0, said.err
    header, _, *rows = said.out.splitlines()
    assert header.split()[:3] == ["file", "target", "runtime"]
    assert [row.split()[1:3] for row in rows[:2]] == [
        ["here", "onnxruntime"],
        ["other", "onnxruntime"],
    ]


def test_records_are_those_of_one_target_with_its_name_and_runtime(
    files: list[Path], quick: list[str], capsys: Capsys
) -> None:
    one = json.loads(inside(capsys, "bench", *files, "--json", *on(quick[:1])).out)
    several = json.loads(inside(capsys, "bench", *files, "--json", *on(quick)).out)
    assert list(one[1]) == list(ONE_TARGET)
    assert list(several[3]) == ["target", "runtime", *ONE_TARGET]
    # The first file on the first target is the baseline; each target is described once.
    assert [("speedup" in record, "fingerprint" in record) for record in several] == [
        (False, True),
        (True, True),
        (True, False),
        (True, False),
    ]


def test_a_variable_with_a_space_in_it_is_one_target(
    files: list[Path], tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = profile(tmp_path / "my board.toml", time_limit_s=0.05)
    monkeypatch.setenv("HWLOOP_TARGET", place)
    said = inside(capsys, "bench", files[1], "--json")
    assert said.code == 0, said.err
    assert "target" not in json.loads(said.out)[0]


def test_a_computed_target_is_refused_among_others(files: list[Path], capsys: Capsys) -> None:
    for targets in (("fake", "cpu"), ("cpu", "fake")):
        is_refused(inside(capsys, "bench", *files, *on(targets)), "'fake' is simulated")


def test_an_unknown_target_and_none_are_refused(files: list[Path], capsys: Capsys) -> None:
    is_refused(inside(capsys, "bench", *files, *on(("cpu", "cpuu"))), "did you mean 'cpu'")
    with pytest.raises(UsageError, match="no target"):
        hwloop.bench(*files, target=())
    with pytest.raises(UsageError, match="target=3"):
        hwloop.bench(*files, target=["cpu", 3])  # type: ignore[list-item]


def test_a_file_that_fails_is_blamed_with_the_target_where_it_does(
    files: list[Path], quick: list[str], tmp_path: Path, capsys: Capsys
) -> None:
    bad = no_kernel(tmp_path / "bad.onnx")
    for targets in (quick, quick[::-1]):
        for order in ([files[1], bad], [bad, files[1]]):
            said = inside(capsys, "bench", *order, *on(targets))
            is_refused(said, f"{bad} does not run on {Path(targets[0]).stem}")


def test_trtexec_is_asked_for_where_one_target_has_engines(
    files: list[Path], quick: list[str], capsys: Capsys
) -> None:
    words = (*on(quick), "--cross-check", "trtexec")
    is_refused(inside(capsys, "bench", *files, *words), "trtexec times engines")


# ------------------------------------------------------------------------------- the figures


def test_a_ratio_is_the_quotient_of_the_quiet_times_of_a_round() -> None:
    """Both drift to half their speed; what a round's two targets have in common cancels."""
    quick = [taken(*[1.0 * drift] * 40) for drift in (1.0, 1.5, 2.0)]
    slow = [taken(*[3.0 * drift] * 40) for drift in (1.0, 1.5, 2.0)]
    found = across(slow, quick)
    assert found.ratios == pytest.approx([1.5] * 3)
    assert found.reference_latency_ms == pytest.approx(3.0)
    assert found.latency_ms == pytest.approx(4.5)
    assert across(quick, slow).ratios == pytest.approx([1 / 6] * 3)


def test_a_round_has_as_many_samples_of_both_spread_over_it() -> None:
    many, few = taken(*range(1, 101)), taken(5.0, 5.0, 5.0, 5.0)
    found = across([few], [many])
    assert found.samples_ms == (5.0,) * 4
    assert found.reference_ms == (2.0, 52.0, 102.0, 152.0)
    assert found.rounds == (4,)


def test_what_speaks_against_either_target_is_kept() -> None:
    calm = taken(1.0, 1.0, stopped="precise", interrupted_share=0.0, clock="gpu")
    loud = taken(1.0, 1.0, stopped="time", interrupted_share=0.5, unstable=("hot",), clock="thread")
    found = across([calm], [loud])
    assert (found.unstable, found.interrupted_share, found.clock) == (("hot",), 0.25, "gpu")
    assert across([calm, loud], [calm, calm]).stopped == "time"
    assert found.core_taken_share is None


def test_a_round_is_a_share_of_the_protocol() -> None:
    one = share(Protocol(rounds=4, time_limit_s=4, warmup_s=0.4, min_samples=9, max_samples=80), 8)
    assert (one.rounds, one.time_limit_s, one.warmup_s) == (1, 0.5, 0.05)
    assert (one.min_samples, one.max_samples) == (2, 10)


def test_of_targets_on_one_machine_the_first_alone_takes_its_lock() -> None:
    orin, cuda, cpu = (load_profile(name) for name in ("jetson-orin", "cuda", "cpu"))
    elsewhere = replace(orin, host=parse_host("me@elsewhere"))
    plain = replace(cpu, transport="ssh", host=orin.host)
    behind_it = replace(orin, host=parse_host("me@elsewhere:2222"))
    profiles = [cpu, orin, cuda, plain, elsewhere, behind_it, cuda]
    locks = [session.locks for session in side_by_side(profiles)]
    assert locks == [False, True, True, False, True, True, False]


class Played:
    """A session with a target on which any file takes so many milliseconds."""

    def __init__(self, name: str, ms: float, turns: list[str]) -> None:
        self.profile = replace(load_profile("cpu"), name=name)
        self.fingerprint = {"device": name}
        self._ms, self._turns = ms, turns

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *error: object) -> None:
        self._turns.append(f"{self.profile.name} closed")

    def measure(self, *models: object, **options: object) -> Measurement:
        self._turns.append(self.profile.name)
        return taken(*[self._ms] * 20)


def test_targets_take_turns_and_are_held_against_the_first(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    sessions = [Played("a", 1.0, turns), Played("b", 4.0, turns)]
    monkeypatch.setattr(bench_targets, "side_by_side", lambda profiles: sessions)
    profiles = [session.profile for session in sessions]
    first, second = bench_targets.compare_on(profiles, files[:1], progress=Progress())
    rounds = profiles[0].protocols.bench.rounds
    assert turns == [*(["a", "b", "b", "a"] * (rounds // 2)), "b closed", "a closed"]
    # The first file takes 2 ms on the first target as the reference of all.
    assert (first["latency_ms"], second["latency_ms"]) == pytest.approx((2.0, 4.0))
    assert second["speedup"] == pytest.approx(0.5)
    assert second["significant"]
