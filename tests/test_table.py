"""The latency table: populations, the fitted prediction, export and import."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_space import chain

from hwloop.compress import space
from hwloop.compress.reachable import reachable_configs
from hwloop.compress.rows import layer_configs, network_configs
from hwloop.compress.rules import SpaceRules
from hwloop.errors import TargetError, UsageError
from hwloop.findings import Fingerprint, Measurement
from hwloop.measure.predict import CASTS, FIRST_READ_MB, Predictor, add_up, fit, prediction_error
from hwloop.measure.profile import Protocols
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, REFERENCE, LatencyTable
from hwloop.measure.table_exchange import export_rows, import_rows, read_rows
from hwloop.records import LayerConfig

HERE = Fingerprint(device="here", runtime="r", runtime_version="1")
THERE = Fingerprint(device="there", runtime="r", runtime_version="1")
ROW = Protocols().row


def measured(ms: float) -> Measurement:
    return Measurement(samples_ms=(ms,) * 3, reference_ms=(1.0,) * 3, reference_latency_ms=1.0)


def filled(store: Store, configs: tuple[LayerConfig, ...]) -> LatencyTable:
    table = LatencyTable(store, HERE, ROW)
    table.add(EMPTY, measured(0.001))
    for number, config in enumerate(configs):
        table.add(config, measured(0.01 + 0.001 * number))
    return table


def test_rows_are_found_again_and_the_first_stands(tmp_path: Path) -> None:
    with Store(tmp_path / "t.sqlite") as store:
        table = LatencyTable(store, HERE, ROW)
        assert table.missing([EMPTY, REFERENCE, EMPTY]) == [EMPTY, REFERENCE]
        table.add(EMPTY, measured(0.5))
        table.add(EMPTY, measured(0.7))
        again = LatencyTable(store, HERE, ROW)
        assert again.row_ms(EMPTY) == 0.5
        assert again.missing([EMPTY, REFERENCE]) == [REFERENCE]


def test_rows_of_another_device_are_another_population(tmp_path: Path) -> None:
    with Store(tmp_path / "t.sqlite") as store:
        LatencyTable(store, HERE, ROW).add(EMPTY, measured(0.5))
        assert len(LatencyTable(store, THERE, ROW)) == 0
        assert len(LatencyTable(store, HERE, Protocols().loop)) == 0


def test_the_fit_finds_known_coefficients_despite_an_outlier() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.uniform(*ends, 30).tolist() for ends in ((1, 5), (0, 3), (0, 0.4), (0, 8))]
    sums = list(zip(*columns, strict=True))
    y = [0.9 * b + 1.1 * i + 1.8 * c + 0.02 * w + 0.05 for b, i, c, w in sums]
    y[7] *= 0.4
    found = fit(sums, y)
    predicted = np.array([found(item) for item in sums])
    errors = np.abs(predicted / np.array(y) - 1)
    assert np.sort(errors)[-2] < 0.03


def test_what_is_fitted_on_networks_of_one_size_holds_for_small_ones() -> None:
    rng = np.random.default_rng(2)
    sums = [(float(b), float(i), 0.05, 0.0) for b, i in rng.uniform(0.05, 0.25, (13, 2))]
    y = [(0.9 * (b + i) + 1.3 * c + 0.002) * rng.normal(1, 0.03) for b, i, c, _ in sums]
    found = fit(sums, y, empty_ms=0.002)
    assert found((0.03, 0.01, 0.005, 0.0)) == pytest.approx(0.9 * 0.04 + 0.0085, rel=0.12)
    assert found.offset_ms == pytest.approx(0.002, abs=0.02 * y[0])


def test_one_observation_gives_one_scale() -> None:
    found = fit([(2.0, 0.0, 0.0, 0.0)], [1.0])
    assert found((2.0, 0.0, 0.0, 0.0)) == pytest.approx(1.0)
    assert found((4.0, 0.0, 0.0, 0.0)) == pytest.approx(2.0, rel=0.02)


def test_a_cache_makes_no_network_faster() -> None:
    rng = np.random.default_rng(1)
    sums = [(float(b), 0.0, 0.0, float(w)) for b, w in rng.uniform(1, 5, (20, 2))]
    found = fit(sums, [b - 0.1 * w for b, _, _, w in sums])
    assert found.miss_ms_per_mb == 0


def test_weights_are_cold_that_a_network_drives_out_of_the_cache_and_their_row_does_not() -> None:
    def layer(channels: int) -> tuple[LayerConfig, float]:
        config = LayerConfig(op="linear", in_shape=(1, channels), out_channels=channels)
        return config, 1.0

    half, large = layer(500), layer(1000)  # 1 and 4 MB
    cache_bytes = 2_000_000

    def cold_mb(rows: list[tuple[LayerConfig, float]]) -> float:
        return add_up(rows, 0.0, cache_bytes=cache_bytes)[3]

    assert cold_mb([half]) == 0
    assert cold_mb([half] * 3) == pytest.approx(3 * (1 + FIRST_READ_MB))
    # The large one is cold in its row as well.
    assert cold_mb([half, large]) == pytest.approx(1 + FIRST_READ_MB)
    assert 0 < cold_mb([half] * 2) < 2
    assert add_up([half] * 3, 0.0)[3] == 0


def test_a_prediction_is_the_sum_of_the_rows_less_empty_calls(tmp_path: Path) -> None:
    network, rules = chain(), SpaceRules(recipe="ort-x86")
    with Store(tmp_path / "t.sqlite") as store:
        table = filled(store, reachable_configs(network, rules))
        predictor = Predictor(table, network, rules)
        for choices in [(0, 0, 0, 0), (0, 5, 2, 0), (5, 6, 7, 5)]:
            rows = network_configs(network, space.candidate(choices, rules), rules)
            blocks = [r for r in rows if r.op not in CASTS]
            base = sum(table.row_ms(r) - 0.001 for r in blocks if r.precision != "int8")
            int8 = sum(table.row_ms(r) - 0.001 for r in blocks if r.precision == "int8")
            casts = sum(table.row_ms(r) - 0.001 for r in rows if r.op in CASTS)
            assert predictor.sums_ms(choices) == pytest.approx((base, int8, casts, 0.0))
        predictor = predictor.taught([((0, 0, 0, 0), 5.0)])
        assert predictor((0, 0, 0, 0)) == pytest.approx(5.0)


def test_a_prediction_that_is_taught_more_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    network, rules = chain(), SpaceRules(recipe="ort-x86")
    further = [((0, 5, 2, 0), 2.0), ((5, 6, 7, 5), 3.0)]
    with Store(tmp_path / "t.sqlite") as store:
        table = filled(store, reachable_configs(network, rules))
        first = watching = Predictor(table, network, rules).taught([((0, 0, 0, 0), 5.0)])
        before = first.fit
        taught = first.taught(further)
        for choices, latency_ms in further:
            watching = watching.taught([(choices, latency_ms)])
        assert taught.fit == watching.fit != before
        assert taught((5, 6, 7, 5)) == watching((5, 6, 7, 5)) != first((5, 6, 7, 5))
        assert first.fit == before
        assert first.taught([]).fit == before


def test_a_refused_block_costs_what_the_dense_one_costs(tmp_path: Path) -> None:
    network, rules = chain(), SpaceRules(recipe="ort-x86")
    configs = reachable_configs(network, rules)
    dense = network_configs(network, space.dense_candidate(network), rules)
    (refused,) = layer_configs(
        network, network.layers[1], space.candidate((0, 2, 0, 0), rules).actions, rules
    )
    with Store(tmp_path / "t.sqlite") as store:
        table = filled(store, [config for config in configs if config != refused])
        table.refuse(refused, "build: no kernel")
        predictor = Predictor(table, network, rules)
        without = predictor.sums_ms((0, 0, 0, 0))[0]
        thinner = space.candidate((0, 2, 0, 0), rules).actions
        next_layer = layer_configs(network, network.layers[2], thinner, rules)
        saved = table.row_ms(dense[2]) - table.row_ms(next_layer[0])
        assert predictor.sums_ms((0, 2, 0, 0))[0] == pytest.approx(without - saved)


def test_a_refused_block_of_the_dense_network_ends_it(tmp_path: Path) -> None:
    network, rules = chain(), SpaceRules(recipe="ort-x86")
    configs = reachable_configs(network, rules)
    with Store(tmp_path / "t.sqlite") as store:
        table = filled(store, configs[1:])
        table.refuse(configs[0], "build: no kernel")
        with pytest.raises(TargetError, match=r"does not run layer.*no kernel"):
            Predictor(table, network, rules)


def test_export_and_import_keep_every_row(tmp_path: Path) -> None:
    lines: list[str] = []
    with Store(tmp_path / "a.sqlite") as store:
        filled(store, (REFERENCE,))
        assert export_rows(store, lines.append) == 2
    with Store(tmp_path / "b.sqlite") as other:
        assert import_rows(other, read_rows(lines, Path("rows.jsonl"))) == 2
        assert LatencyTable(other, HERE, ROW).row_ms(REFERENCE) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("line", "change", "said"),
    [
        (1, {"key": "0" * 64}, "line 2.*key"),
        (0, {"schema": 99}, "line 1.*schema 99"),
        (0, {"population": "0" * 64}, "line 1.*population"),
        (2, {"config": {"op": "conv"}}, "line 3"),
    ],
)
def test_an_altered_line_is_named(
    tmp_path: Path, line: int, change: dict[str, object], said: str
) -> None:
    lines: list[str] = []
    with Store(tmp_path / "a.sqlite") as store:
        filled(store, (REFERENCE,))
        export_rows(store, lines.append)
    lines[line] = json.dumps({**json.loads(lines[line]), **change})
    with pytest.raises(UsageError, match=said):
        read_rows(lines, Path("rows.jsonl"))


def test_broken_json_is_named() -> None:
    with pytest.raises(UsageError, match="line 1"):
        read_rows(["{"], Path("rows.jsonl"))


def test_the_error_of_predictions() -> None:
    found = prediction_error([1.0, 1.04, 1.2], [1.0, 1.0, 1.0])
    assert found == {"n": 3, "median_abs_pct": 4.0, "within_5pct": 0.6667, "within_10pct": 0.6667}
    assert prediction_error([], [])["median_abs_pct"] is None
