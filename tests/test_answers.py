"""Answers of a worker that may be broken, or not ours: nothing of them is believed unchecked."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest

from hwloop import answers
from hwloop.answers import Nonsense

TIMES = {
    "samples_ms": [1.0, 1.1],
    "reference_ms": [2.0, 2.1],
    "warmup_count": 3,
    "stopped": "precise",
    "temperature_c": 41.5,
}
ENERGY = {"energy_mj": 1.5, "mean_mw": 5000.0, "samples": 50, "runs": 900, "source": "VDD_IN"}
PLAN = b"plan"
ENGINE = {"data": PLAN, "sha256": hashlib.sha256(PLAN).hexdigest(), "audit": {"layers": 3}}
OUTPUTS = [{"data": np.ones(6, np.float32).tobytes(), "dtype": "float32", "shape": [2, 3]}]
WRONG = [None, 7, "text", [], {}, [[]], {"x": 1}]


def parsers() -> dict[str, tuple[Any, Any]]:
    return {
        "measurement": (lambda reply: answers.measurement(reply, 2.0), TIMES),
        "first_array": (lambda reply: answers.first_array(reply, 2), OUTPUTS),
        "engine": (answers.engine, ENGINE),
        "build_s": (answers.build_s, {"build_s": 0.5}),
        "cross_check": (answers.cross_check, {"trtexec_ms": 1.5}),
    }


@pytest.mark.parametrize("name", parsers())
@pytest.mark.parametrize("reply", WRONG, ids=repr)
def test_what_is_no_answer_is_nonsense(name: str, reply: Any) -> None:
    parse, good = parsers()[name]
    parse(good)
    with pytest.raises(Nonsense):
        parse(reply)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, "1 ms", None])
def test_times_are_finite_positive_numbers(value: Any) -> None:
    with pytest.raises(Nonsense):
        answers.measurement({**TIMES, "samples_ms": [1.0, value]}, 2.0)


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


def test_an_engine_that_was_altered_on_its_way_is_refused() -> None:
    with pytest.raises(Nonsense, match="SHA-256"):
        answers.engine({**ENGINE, "data": b"another plan"})


@pytest.mark.parametrize(
    "change", [{"shape": [3, 3]}, {"shape": [3, 2]}, {"dtype": "object"}, {"dtype": "U3"}]
)
def test_outputs_have_one_numeric_row_per_input(change: dict[str, Any]) -> None:
    with pytest.raises(Nonsense):
        answers.first_array([{**OUTPUTS[0], **change}], 2)


@pytest.mark.parametrize("error", [None, 7, {}, {"stage": "run"}, []])
def test_an_error_without_stage_or_message_is_nonsense(error: Any) -> None:
    with pytest.raises(Nonsense):
        raise answers.candidate_error(error)
