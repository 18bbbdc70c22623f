"""The Python names: they are functions, whatever was imported before."""

from __future__ import annotations

import importlib
import inspect

import pytest

import hwloop
from hwloop.errors import UsageError


@pytest.mark.parametrize("name", ["optimize", "load", "bench"])
def test_public_names_stay_functions_after_every_module_was_imported(name: str) -> None:
    for module in ("api", "run.stages", "measure.bench", "cli", "report.facts"):
        importlib.import_module(f"hwloop.{module}")
    assert inspect.isfunction(getattr(hwloop, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="optimise"):
        _ = hwloop.optimise


@pytest.mark.parametrize(
    "options", [{"max_drop": -1.0}, {"evaluations": 0}, {"agent": "dqm"}, {"time_limit_s": 0.0}]
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        hwloop.optimize(**options)


def test_a_folder_that_is_no_run_cannot_be_loaded(tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no network in"):
        hwloop.load(tmp_path)
