"""The vocabulary: keys that never change, laws that records keep."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwloop.findings import Fingerprint, LatencySource, Measurement, Outcome
from hwloop.measure.trial import Trial, TrialState
from hwloop.parsing import canonical_json, digest, to_json
from hwloop.records import Action, Candidate, Goal, LayerConfig

CONV = LayerConfig(
    op="conv",
    in_shape=(1, 16, 28, 28),
    out_channels=32,
    kernel=(3, 3),
    stride=(2, 2),
    padding=(1, 1),
    tail=("bias", "relu"),
)
GOLDEN = {
    CONV: "e0e9252d81c384e0978638b79a628f877cd59e198620a3fd4b251a4144d3cd46",
    LayerConfig(
        op="linear", in_shape=(1, 64), out_channels=10, tail=("bias",)
    ): "a470146b1e40f79261962cb6b43029c996db2bab54477a4d1f10f6b154f65bd1",
    LayerConfig(
        op="quantize",
        in_shape=(1, 8, 7, 7),
        out_channels=8,
        precision="int8",
        precision_out="int8",
    ): "e35d27fc576992347a5e064a9231477d6f48b082bd7030694bb854b12b0b7ffa",
    LayerConfig(
        op="conv",
        in_shape=(1, 96, 56, 56),
        out_channels=96,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        groups=96,
        precision_in="int8",
        precision="int8",
        precision_out="int8",
        tail=("bias", "clip:0:6"),
    ): "0e7342432514a363948522431cfcd159af9906adedfecad605c762088f4173d4",
    LayerConfig(
        op="conv",
        in_shape=(1, 64, 8, 8),
        out_channels=64,
        precision="fp16",
        sparsity="2:4",
        rank=12,
    ): "44021b6da33f9fa6186f6e6a4dd23ad436e2f22079d60f20ee55b77c45e074e2",
}
SIZES = st.integers(1, 4096)
PAIRS = st.tuples(st.integers(1, 7), st.integers(1, 7))
PRECISIONS = st.sampled_from(["fp32", "fp16", "int8"])
CONFIGS = st.builds(
    LayerConfig,
    op=st.sampled_from(["conv", "linear", "maxpool", "quantize"]),
    in_shape=st.lists(SIZES, min_size=2, max_size=4).map(tuple),
    out_channels=SIZES,
    kernel=PAIRS,
    stride=PAIRS,
    padding=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    groups=SIZES,
    precision_in=PRECISIONS,
    precision=PRECISIONS,
    precision_out=PRECISIONS,
    sparsity=st.sampled_from(["dense", "2:4"]),
    rank=st.none() | SIZES,
    tail=st.lists(st.sampled_from(["bias", "add", "relu", "clip:0:6"]), max_size=3).map(tuple),
)


@pytest.mark.parametrize(("config", "key"), GOLDEN.items())
def test_the_key_of_a_layer_never_changes(config: LayerConfig, key: str) -> None:
    assert config.key() == key


def test_every_field_of_a_layer_is_in_its_key() -> None:
    changes = {
        "op": "maxpool",
        "in_shape": [1, 16, 28, 27],
        "out_channels": 40,
        "kernel": [1, 3],
        "stride": [1, 1],
        "padding": [0, 0],
        "groups": 2,
        "precision": "int8",
        "precision_in": "int8",
        "precision_out": "int8",
        "sparsity": "2:4",
        "rank": 8,
        "tail": ["bias"],
    }
    assert set(changes) == {field.name for field in dataclasses.fields(LayerConfig)}
    others = [
        LayerConfig.from_json({**to_json(CONV), name: value}) for name, value in changes.items()
    ]
    assert len({CONV.key(), *(other.key() for other in others)}) == len(others) + 1


@given(CONFIGS)
def test_a_layer_survives_json(config: LayerConfig) -> None:
    again = LayerConfig.from_json(json.loads(canonical_json(config)))
    assert again == config
    assert again.key() == config.key()


def test_nan_has_no_canonical_form() -> None:
    with pytest.raises(ValueError):
        canonical_json({"value": math.nan})


@given(st.lists(st.sampled_from(["keep", "prune"]), min_size=1, max_size=6), st.floats(0.1, 1))
def test_a_candidate_survives_json(kinds: list[str], amount: float) -> None:
    candidate = Candidate(actions=tuple(Action(kind=kind, amount=amount) for kind in kinds))
    assert Candidate.from_json(to_json(candidate)) == candidate
    assert Candidate.from_json(to_json(candidate)).digest() == candidate.digest()


def test_a_fingerprint_survives_json() -> None:
    found = Fingerprint(
        device="cpu", runtime="r", runtime_version="1", settings=(("threads", "1"),)
    )
    assert Fingerprint.from_json(to_json(found)) == found


def test_unknown_layer_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        LayerConfig.from_json({**to_json(CONV), "colour": "red"})


def test_macs_of_a_strided_convolution() -> None:
    assert CONV.macs == 14 * 14 * 32 * 16 * 9


@given(st.lists(st.floats(0.5, 2), min_size=8, max_size=40))
def test_drift_that_hits_both_series_cancels(drift: list[float]) -> None:
    found = Measurement(
        samples_ms=tuple(2.0 * factor for factor in drift),
        reference_ms=tuple(4.0 * factor for factor in drift),
        reference_latency_ms=3.0,
    )
    assert found.ratio == pytest.approx(0.5)
    assert found.latency_ms == pytest.approx(1.5)


def test_each_sample_is_compared_with_its_own_reference() -> None:
    found = Measurement(
        samples_ms=(1.0, 2.0, 3.0), reference_ms=(1.0, 1.0, 3.0), reference_latency_ms=5.0
    )
    assert found.ratio == 1.0
    assert found.latency_ms == 5.0


@pytest.mark.parametrize(
    ("ratio", "significant"),
    [(1.0, False), (0.995, False), (1.008, False), (0.97, True), (1.1, True)],
)
def test_a_change_within_the_noise_floor_is_not_significant(
    ratio: float, significant: bool
) -> None:
    count = 60
    found = Measurement(
        samples_ms=tuple(ratio * (1 + 0.001 * (i % 3 - 1)) for i in range(count)),
        reference_ms=(1.0,) * count,
        reference_latency_ms=1.0,
    )
    assert found.significant is significant


def test_a_large_change_with_a_wide_interval_is_not_significant() -> None:
    samples = (0.8,) * 5 + (1.3,) * 3
    found = Measurement(
        samples_ms=samples, reference_ms=(1.0,) * 8, reference_latency_ms=1.0, rounds=(1,) * 8
    )
    assert found.ratio == 0.8
    assert found.ratio_ci95[1] > 1.0
    assert not found.significant


def test_what_adds_time_to_most_samples_is_not_in_the_ratio() -> None:
    disturbed = ([1.0] + [3.0] * 9) * 10
    found = Measurement(
        samples_ms=tuple(disturbed * 4),
        reference_ms=tuple([ms + 1.0 for ms in disturbed] * 4),
        reference_latency_ms=2.0,
        rounds=(100,) * 4,
    )
    assert found.ratio == pytest.approx(0.5)
    assert found.latency_ms == pytest.approx(1.0)
    assert found.disturbed_share == pytest.approx(0.9)


def test_the_rounds_of_a_measurement_have_its_samples() -> None:
    with pytest.raises(ValueError, match="rounds"):
        Measurement(
            samples_ms=(1.0,) * 4, reference_ms=(1.0,) * 4, reference_latency_ms=1.0, rounds=(2, 1)
        )


def test_a_measurement_survives_json_with_every_sample() -> None:
    found = Measurement(
        samples_ms=(1.0, 1.1),
        reference_ms=(2.0, 2.1),
        reference_latency_ms=2.0,
        temperature_c=51.5,
        rounds=(1, 1),
        clock="thread",
        interrupted_share=0.5,
        core_taken_share=0.25,
        other_cores_busy_share=1.0,
        unstable=("its rounds differ",),
    )
    assert Measurement.from_json(json.loads(canonical_json(found))) == found


def test_each_sample_has_its_reference() -> None:
    for samples, reference in [((1.0, 1.0), (1.0,)), ((), ())]:
        with pytest.raises(ValueError, match="as many reference samples"):
            Measurement(samples_ms=samples, reference_ms=reference, reference_latency_ms=1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_measurement_holds_positive_finite_numbers_only(bad: float) -> None:
    with pytest.raises(ValueError):
        Measurement(samples_ms=(1.0, bad), reference_ms=(1.0, 1.0), reference_latency_ms=1.0)


def test_a_trial_is_complete_with_an_outcome_or_failed_with_a_reason() -> None:
    candidate = Candidate(actions=(Action(),))
    outcome = Outcome(
        metric=0.9, metric_drop=0.0, latency_ms=1.0, latency_source=LatencySource.DEVICE
    )
    Trial(number=0, candidate=candidate, state=TrialState.FAILED, source="s", reason="no kernel")
    with pytest.raises(ValueError):
        Trial(number=0, candidate=candidate, state=TrialState.COMPLETE, source="s")
    with pytest.raises(ValueError):
        Trial(
            number=0,
            candidate=candidate,
            state=TrialState.FAILED,
            source="s",
            reason="x",
            outcome=outcome,
        )


def test_the_tightest_latency_goal_counts() -> None:
    assert Goal(max_drop=0.01).budget_ms(10.0) is None
    assert Goal(max_latency_ms=4.0, min_speedup=2.0).budget_ms(10.0) == 4.0
    assert Goal(max_latency_ms=6.0, min_speedup=2.0).budget_ms(10.0) == 5.0


def test_equal_values_have_equal_digests() -> None:
    assert digest({"b": 1, "a": (2, 3)}) == digest({"a": [2, 3], "b": 1})
