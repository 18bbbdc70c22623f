"""Answers of a worker that may be broken, or not ours: nothing of them is believed unchecked."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from hwloop.measure import answers
from hwloop.measure.answers import Nonsense

TIMES = {
    "samples_ms": [1.0, 1.1],
    "reference_ms": [2.0, 2.1],
    "rounds": [1, 1],
    "clock": "thread",
    "warmup_count": 3,
    "stopped": "precise",
    "temperature_c": 41.5,
}
ENERGY = {
    **{"energy_mj": 1.5, "mean_mw": 5000.0, "samples": 50, "runs": 900, "source": "VDD_IN"},
    **{"idle_mw": 3000.0, "rails": ["VDD_IN"]},
}
COPIES = {"with_copies_ms": 2.5, "without_copies_ms": 2.0, "copied_bytes": 602112}
FLOOR = {"single_ms": 0.03, "in_graph_ms": 0.004, "runs_per_graph": 32, "host_share": 0.2}
PROFILE = {"layers": 21, "reformats": 3, "reformat_share": 0.12, "source": "trtexec 10.3"}
HELLO = {
    "result": {
        "pid": 7,
        "fixed": {"workspace_mib": 512},
        "import_s": {"numpy": 0.2},
        "capabilities": ["energy"],
    }
}
PLAN = b"plan"
ENGINE = {"data": PLAN, "sha256": hashlib.sha256(PLAN).hexdigest(), "audit": {"layers": 3}}
OUTPUTS = {"data": np.ones(6, np.float32).tobytes(), "dtype": "float32", "shape": [2, 3]}
WRONG = [None, 7, "text", [], {}, [[]], {"x": 1}]


def parsers() -> dict[str, tuple[Any, Any]]:
    return {
        "measurement": (lambda reply: answers.measurement(reply, 2.0), TIMES),
        "first_array": (lambda reply: answers.first_array(reply, 2), OUTPUTS),
        "engine": (answers.engine, ENGINE),
        "build_s": (answers.build_s, {"build_s": 0.5}),
        "copies": (answers.copies, COPIES),
        "launch_floor": (answers.launch_floor, FLOOR),
        "layer_profile": (answers.layer_profile, PROFILE),
        "hello": (answers.hello, HELLO),
        "cross_check": (answers.cross_check, {"trtexec_ms": 1.5}),
    }


@pytest.mark.parametrize("name", parsers())
@pytest.mark.parametrize("reply", WRONG, ids=repr)
def test_what_is_no_answer_is_nonsense(name: str, reply: Any) -> None:
    parse, good = parsers()[name]
    parse(good)
    if reply is None and name in ("copies", "launch_floor"):
        assert parse(reply) is None  # of a runtime that has none
        return
    with pytest.raises(Nonsense):
        parse(reply)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, "1 ms", None])
def test_times_are_finite_positive_numbers(value: Any) -> None:
    with pytest.raises(Nonsense):
        answers.measurement({**TIMES, "samples_ms": [1.0, value]}, 2.0)


@pytest.mark.parametrize(
    "change",
    [
        *({"rounds": value} for value in ([2, 1], [1], [0, 2], [-1, 3], [1.0, 1.0], 2, None)),
        *({"clock": value} for value in ("sundial", None, 7, ["wall"], "\x1b[2J")),
        *({"interrupted_share": value} for value in (-0.1, 1.1, math.nan, "some")),
        *({"core_taken_share": value} for value in (2.0, math.inf)),
        {"other_cores_busy_share": -1},
        *({"stopped": value} for value in ("because", None, 7, ["count"])),
    ],
    ids=repr,
)
def test_rounds_clock_and_shares_are_possible_ones(change: dict[str, Any]) -> None:
    with pytest.raises(Nonsense):
        answers.measurement({**TIMES, **change}, 2.0)


def test_a_measurement_keeps_what_the_device_said_about_it() -> None:
    found = answers.measurement(
        {**TIMES, "launch_overhead_ms": 0.02, "graph_refused": "not capturable"}, 2.0
    )
    assert found.launch_overhead_ms == 0.02
    assert found.unstable == ("no CUDA graph: not capturable",)
    assert found.temperature_c == 41.5


@pytest.mark.parametrize("name", ["energy_mj", "mean_mw", "samples", "runs"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "much"])
def test_an_energy_is_above_zero_or_absent(name: str, value: Any) -> None:
    assert answers.energy(None) is None
    assert answers.energy(ENERGY) == ENERGY
    with pytest.raises(Nonsense):
        answers.energy({**ENERGY, name: value})


@pytest.mark.parametrize("change", [{"idle_mw": -1.0}, {"idle_mw": math.nan}, {"rails": "VDD_IN"}])
def test_what_stands_beside_an_energy_is_checked_too(change: dict[str, Any]) -> None:
    assert answers.energy({**ENERGY, "idle_mw": None, "rails": []}) is not None
    with pytest.raises(Nonsense):
        answers.energy({**ENERGY, **change})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("copies", {"with_copies_ms": 0.0}),
        ("copies", {"copied_bytes": -1}),
        ("copies", {"without_copies_ms": math.inf}),
        ("launch_floor", {"single_ms": math.nan}),
        ("launch_floor", {"runs_per_graph": 1.5}),
        ("launch_floor", {"host_share": -0.1}),
        ("layer_profile", {"reformat_share": 1.5}),
        ("layer_profile", {"reformats": "some"}),
        ("hello", {"result": {**HELLO["result"], "fixed": {"workspace_mib": "much"}}}),
        ("hello", {"result": {**HELLO["result"], "fixed": {"a" * 100: 1}}}),
        ("hello", {"result": {**HELLO["result"], "import_s": {"numpy": -1}}}),
        ("hello", {"result": {**HELLO["result"], "pid": "7"}}),
        ("hello", {"result": {**HELLO["result"], "capabilities": "energy"}}),
    ],
)
def test_figures_of_a_board_are_possible_ones(name: str, change: dict[str, Any]) -> None:
    parse, good = parsers()[name]
    with pytest.raises(Nonsense):
        parse({**good, **change})


def test_what_a_worker_can_do_is_told_in_words_that_are_known() -> None:
    said = {**HELLO["result"], "capabilities": ["energy", "engine", "flight", 7, {}]}
    assert answers.hello({"result": said}).capabilities == {"energy", "engine"}
    with pytest.raises(Nonsense, match="not a list of names"):
        answers.hello({"result": {**said, "capabilities": ["energy"] * 1000}})


@pytest.mark.parametrize("value", [10**400, math.inf, -1, True, 1.5, "7", None])
def test_no_number_of_a_board_is_too_strange_to_be_refused(value: Any) -> None:
    with pytest.raises(Nonsense):
        answers.measurement({**TIMES, "warmup_count": value}, 2.0)
    with pytest.raises(Nonsense):
        answers.measurement({**TIMES, "samples_ms": [1.0, 10**400]}, 2.0)
    with pytest.raises(Nonsense):
        answers.all_bytes({"all_bytes": value})


def test_figures_that_a_runtime_cannot_have_are_absent() -> None:
    found = answers.launch_floor({**FLOOR, "in_graph_ms": None, "host_share": None})
    assert found == {**FLOOR, "in_graph_ms": None, "host_share": None}
    assert answers.copies(COPIES) == COPIES
    assert answers.layer_profile({**PROFILE, "more": object()}) == PROFILE


def test_a_measurement_says_what_is_the_hosts_and_what_changes_layouts() -> None:
    found = answers.measurement({**TIMES, "reformats": 2, "host_share": 0.93}, 2.0)
    assert found.reformats == 2
    (reason,) = found.unstable
    assert reason.startswith("host-bound")
    assert "93%" in reason
    assert answers.measurement({**TIMES, "host_share": 0.8}, 2.0).unstable == ()
    for wrong in ({"host_share": math.nan}, {"host_share": "all"}, {"reformats": -1}):
        with pytest.raises(Nonsense):
            answers.measurement({**TIMES, **wrong}, 2.0)


def test_an_engine_that_was_altered_on_its_way_is_refused() -> None:
    with pytest.raises(Nonsense, match="SHA-256"):
        answers.engine({**ENGINE, "data": b"another plan"})


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": [3, 3]}, {"shape": [3, 2]}, {"shape": []}, {"shape": [2, 10**400]}),
        *({"dtype": "object"}, {"dtype": "U3"}, {"dtype": "bool"}, {"dtype": ["float32"]}),
    ],
)
def test_outputs_have_one_numeric_row_per_input(change: dict[str, Any]) -> None:
    with pytest.raises(Nonsense):
        answers.first_array({**OUTPUTS, **change}, 2)


@pytest.mark.parametrize("error", [None, 7, {}, {"stage": "run"}, []])
def test_an_error_without_stage_or_message_is_nonsense(error: Any) -> None:
    with pytest.raises(Nonsense):
        raise answers.candidate_error(error)
