"""What the rows say cannot pay is not searched, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_table import HERE, ROW, measured
from tiny import TinyTask

from hwloop.compress.rules import SpaceRules
from hwloop.compress.subject import Subject, subject
from hwloop.measure.predict import CASTS, Predictor
from hwloop.measure.store import Store
from hwloop.measure.table import EMPTY, LatencyTable
from hwloop.records import KEEP, Action, LayerConfig
from hwloop.run.paying import Paying, paying

RULES = SpaceRules(recipe="ort-x86", kinds=("keep", "prune"))
HALF = Action(kind="prune", amount=0.5)
Price = Callable[[LayerConfig], float]


@pytest.fixture(scope="module")
def found() -> Subject:
    task = TinyTask()
    return subject(task, task.model(), RULES, isa="avx2", name="tiny")


def judged(found: Subject, folder: Path, price: Price) -> Paying:
    with Store(folder / "t.sqlite") as store:
        table = LatencyTable(store, HERE, ROW)
        table.add(EMPTY, measured(0.001))
        for config in found.reachable():
            table.add(config, measured(price(config)))
        return paying(found, Predictor(table, found.network, found.rules))


def by_work(config: LayerConfig) -> float:
    if config.op in CASTS:
        return 0.002
    return 0.002 + config.macs / (2e5 if config.precision == "int8" else 1e5)


def test_what_costs_less_is_searched(found: Subject, tmp_path: Path) -> None:
    left = judged(found, tmp_path, by_work)
    assert left.masks == found.masks
    assert left.unpaid == {}


def test_int8_that_is_slower_everywhere_is_not_searched(found: Subject, tmp_path: Path) -> None:
    left = judged(
        found, tmp_path, lambda c: 3 * by_work(c) if c.precision == "int8" else by_work(c)
    )
    assert {action for action in allowed(found, left) if action.precision == "int8"} == set()
    assert HALF in allowed(found, left)
    int8 = sum(
        ok and action.precision == "int8"
        for mask in found.masks
        for action, ok in zip(found.menu, mask, strict=True)
    )
    assert sum(left.unpaid.values()) == int8


def test_widths_that_a_kernel_pads_are_not_searched(found: Subject, tmp_path: Path) -> None:
    """Every width costs as much as 16 channels do."""

    def padded(config: LayerConfig) -> float:
        return 0.01 if config.op in ("conv", "linear") else 0.002

    left = judged(found, tmp_path, padded)
    assert not any(action.kind == "prune" for action in allowed(found, left))
    assert left.unpaid["prune"] > 0


def test_int8_that_pays_between_int8_neighbours_alone_is_searched(
    found: Subject, tmp_path: Path
) -> None:
    """Alone it pays for two changes of precision, which cost more than it gains."""

    def price(config: LayerConfig) -> float:
        return 0.4 if config.op in CASTS else by_work(config)

    left = judged(found, tmp_path, price)
    assert Action(precision="int8") in allowed(found, left)


def test_differences_within_noise_are_none(found: Subject, tmp_path: Path) -> None:
    left = judged(found, tmp_path, lambda c: 0.001 if c.op in CASTS else 0.05 + 1e-9 * c.macs)
    assert allowed(found, left) == {KEEP}


def allowed(found: Subject, left: Paying) -> set[Action]:
    return {
        action for mask in left.masks for action, ok in zip(found.menu, mask, strict=True) if ok
    }
