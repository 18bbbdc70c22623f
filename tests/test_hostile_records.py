"""JSON that anybody wrote: a value, or a ValueError; never another exception, never nonsense."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwloop import findings, records
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import check_candidate, menu
from hwloop.findings import Fingerprint, LatencySource, Measurement, Outcome, Protocol
from hwloop.measure import trial
from hwloop.measure.trial import Trial, TrialState
from hwloop.parsing import LARGEST_INT, parse_json, to_json
from hwloop.records import Action, Candidate, LayerConfig

MEASURED = Measurement(samples_ms=(1.0, 2.0), reference_ms=(1.0, 1.5), reference_latency_ms=1.0)
OUTCOME = Outcome(
    metric=0.9,
    metric_drop=0.1,
    latency_ms=1.0,
    latency_source=LatencySource.DEVICE,
    measurement=MEASURED,
)
CANDIDATE = Candidate(actions=(Action(kind="prune", amount=0.5, precision="int8"),))
SOUND = [
    LayerConfig(op="conv", in_shape=(1, 3, 8, 8), out_channels=4, tail=("bias", "clip:0:6")),
    Fingerprint(device="d", runtime="r", runtime_version="1", settings=(("a", "b"),)),
    Protocol(),
    MEASURED,
    OUTCOME,
    CANDIDATE,
    Trial(number=3, candidate=CANDIDATE, state=TrialState.COMPLETE, source="s", outcome=OUTCOME),
    Trial(number=4, candidate=CANDIDATE, state=TrialState.FAILED, source="s", reason="two\nlines"),
]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INT, LARGEST_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
WRONG: list[Any] = [None, True, "1", "1.0", [], {}, [[]], -1, 0, 1 << 62, 1e300, -1e300, "\x1b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nul",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        "-1e400",
        "9" * 5000,
        str(1 << 63),
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        '{"\\udfff": 1}',
        "[" * 101 + "]" * 101,
        "[" * 1_000_000,
        '{"a":' * 100_000,
        b"\xff",
        b'"\xed\xa0\x80"',
        "\ud800",
        None,
        7,
        ["[]"],
    ],
    ids=lambda text: repr(text)[:30],
)
def test_what_is_no_json_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("text", ["[]", b"[]", '{"a": [1, -2.5e3, "\u00fc", null, true]}', "1"])
def test_json_is_read_as_json(text: str | bytes) -> None:
    assert parse_json(text) == json.loads(text)


@given(JSON)
def test_what_json_writes_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.text() | st.binary())
def test_any_text_is_a_value_or_a_value_error(text: str | bytes) -> None:
    try:
        parse_json(text)
    except ValueError:
        return


@pytest.mark.parametrize("record", SOUND, ids=lambda record: type(record).__name__)
def test_a_sound_record_survives(record: Any) -> None:
    assert type(record).from_json(parse_json(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("record", SOUND, ids=lambda record: type(record).__name__)
def test_a_wrong_field_is_a_value_error_that_names_it_or_still_makes_a_sound_record(
    record: Any,
) -> None:
    kind, value = type(record), to_json(record)
    for name in value:
        refused = 0
        for wrong in WRONG:
            try:
                made = kind.from_json({**value, name: wrong})
            except ValueError:
                refused += 1
            else:
                assert kind.from_json(to_json(made)) == made
                assert not isinstance(getattr(made, name), bool)
        assert refused >= len(WRONG) // 2, name


@given(st.sampled_from(SOUND), JSON, st.data())
def test_no_value_at_all_raises_another_error(record: Any, wrong: Any, data: st.DataObject) -> None:
    kind, value = type(record), to_json(record)
    name = data.draw(st.sampled_from(sorted(value)))
    for changed in (wrong, {**value, name: wrong}, {**value, "more": wrong}):
        try:
            kind.from_json(changed)
        except ValueError:
            continue


@pytest.mark.parametrize("record", SOUND, ids=lambda record: type(record).__name__)
def test_a_field_without_a_default_cannot_be_missing(record: Any) -> None:
    value = to_json(record)
    for field in dataclasses.fields(record):
        if field.default is dataclasses.MISSING:
            rest = {name: item for name, item in value.items() if name != field.name}
            with pytest.raises(ValueError, match=f"{field.name} is missing"):
                type(record).from_json(rest)


@pytest.mark.parametrize("kind", ["lowrank", "sparse24", "a-b", "x" * 31])
def test_a_method_is_any_word_until_it_is_read_against_the_menu(kind: str) -> None:
    candidate = Candidate(actions=(Action(kind=kind, amount=0.5),))
    assert Candidate.from_json(to_json(candidate)) == candidate
    with pytest.raises(ValueError, match="another network"):
        check_candidate(candidate, 1, menu(SpaceRules()))


@pytest.mark.parametrize(
    "kind", ["", "Prune", "1", "-a", "a b", "a\n", "\x1b[2J", "x" * 32, "\u202e"]
)
def test_what_is_no_word_is_no_method(kind: str) -> None:
    with pytest.raises(ValueError, match=r"Action\.kind"):
        Candidate.from_json({"actions": [{"kind": kind}]})


def test_every_field_that_is_written_is_read() -> None:
    read: list[tuple[type, dict[str, Callable[[Any], Any]]]] = [
        (LayerConfig, records._LAYER),
        (Action, records._ACTION),
        (Measurement, findings._MEASUREMENT),
        (Outcome, findings._OUTCOME),
        (Trial, trial._TRIAL),
    ]
    for kind, checks in read:
        assert {field.name for field in dataclasses.fields(kind)} <= set(checks)
