"""The options of a run, checked: what cannot be meant is refused before anything is done."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwloop.errors import UsageError, closest
from hwloop.measure.progress import Progress
from hwloop.parsing import a_text
from hwloop.records import Goal
from hwloop.run.config import LARGEST_SEED, OBJECT
from hwloop.run.settings import Settings
from hwloop.search.methods import METHODS
from hwloop.tasks import task_for
from hwloop.tasks.calls import shown

DEFAULT_LAM = 0.1
MOST = 10_000_000
LARGEST = 1e12
LONGEST_TEXT = 4096
COUNTS = {
    "evaluations": (1, MOST),
    "finalists": (1, MOST),
    "loop_steps": (0, MOST),
    "final_steps": (0, MOST),
    "seed": (0, LARGEST_SEED),
}
REWARDS = ("goal", "linear")
AN_EXAMPLE = {
    "run": "runs/mine",
    "table": "rows.sqlite",
    "data": "datasets/mine",
    "target": "cpu",
}


def settings_of(model: Any, *, task: Any, **options: Any) -> Settings:
    """The options of :func:`hwloop.optimize` as the record that is stored with the run.

    Args:
        options: all others of them by name.

    Raises:
        UsageError: an option of another type, an impossible value, or two that exclude each other.
    """
    task = task_for(model, task)
    settings = Settings(
        model=None if model is None else _named(model),
        task=_named(task),
        goal=goal_of(options["max_drop"], options["max_latency_ms"], options["min_speedup"]),
        lam=_lam(options["lam"], options["reward"]),
        **{name: check(name, options[name]) for name, check in CHECKS.items()},
    )
    if settings.simulate and settings.table is not None:
        raise UsageError(
            "simulated latencies never enter a table of measured rows", "leave --table out"
        )
    return settings


def goal_of(max_drop: Any, max_latency_ms: Any, min_speedup: Any) -> Goal:
    """The limits as a record. Raises UsageError for values that no network can be held against."""
    goal = Goal(
        max_drop=_limit("max_drop", max_drop, zero=True),
        max_latency_ms=_limit("max_latency_ms", max_latency_ms),
        min_speedup=_limit("min_speedup", min_speedup),
    )
    if goal.min_speedup is not None and goal.min_speedup < 1:
        raise UsageError(
            f"--min-speedup is {goal.min_speedup}: below 1 the network may become slower",
            "--min-speedup 1.5",
        )
    if goal == Goal():
        raise UsageError(
            "without a limit on the drop a run needs a limit on the latency",
            "--max-drop 0.01, or add --min-speedup 2 or --max-latency-ms 5",
        )
    return goal


def run_folder(run: Any) -> Path:
    """The folder of a run. Raises UsageError for a name that is none."""
    return Path(path_text("run", run))


def target_name(target: Any) -> str:
    """The target's name or path: the one given, HWLOOP_TARGET, or cpu."""
    if target is None:
        target = os.environ.get("HWLOOP_TARGET") or "cpu"
    is_name = isinstance(target, str) and not target.endswith(".toml")
    return target if is_name else path_text("target", target)  # a name is looked up, not opened


def path_text(name: str, value: Any, hint: str = "") -> str:
    """A path as text. Raises UsageError for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong(name, value, "a path")
    text = os.fspath(value)
    if not isinstance(text, str) or not _is_text(text):
        example = hint or f"--{name} {AN_EXAMPLE[name]}"
        raise UsageError(f"--{name} is {shown(value)}: no path", example)
    return text


def a_flag(name: str, value: Any) -> bool:
    """True or False, and nothing that would pass for them. Raises UsageError."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def a_host(value: Any) -> str | None:
    """A host as text; whether it is one is seen where it is used. Raises UsageError."""
    if value is not None and not isinstance(value, str):
        raise _wrong("host", value, "a name")
    return value


def a_progress(value: Any) -> Progress:
    """Who is told how far a job is; nobody for None. Raises UsageError."""
    if value is not None and not isinstance(value, Progress):
        raise _wrong("progress", value, "a hwloop.measure.progress.Progress")
    return value or Progress()


def option_name(name: str) -> str:
    """An argument of the Python call as the option of the command."""
    return "--" + name.removesuffix("_s").replace("_", "-")


def _named(value: Any) -> str:
    """A SPEC as it is; an object by what it is, because it cannot be found again by name."""
    if isinstance(value, str):
        return _text("task or model", value)
    named = hasattr(value, "__qualname__") and hasattr(value, "__module__")
    kind = value if named else type(value)  # a generator has only the first
    return f"{OBJECT}{kind.__module__}.{kind.__qualname__}"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _is_text(value):
        raise _wrong(name, value, "a name")
    return value


def _is_text(value: str) -> bool:
    """Whether config.json can hold it: one line of Unicode, of a length that can be meant."""
    try:
        a_text(LONGEST_TEXT)(value).encode()
    except ValueError:
        return False
    return bool(value.strip())


def _word(name: str, value: Any, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        advice = closest(value, known) if isinstance(value, str) else "known: " + ", ".join(known)
        raise UsageError(f"unknown {name} {shown(value)}: {advice}", f"--{name} {known[0]}")
    return value


def _count(name: str, value: Any) -> int:
    low, high = COUNTS[name]
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    if not low <= int(value) <= high:
        raise UsageError(
            f"{option_name(name)} is {shown(value)}: from {low} to {high}",
            f"{option_name(name)} {low}",
        )
    return int(value)


def _limit(name: str, value: Any, *, zero: bool = False) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise _wrong(name, value, "a number")
    least = "zero or more" if zero else "above zero"
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not 0 <= found <= LARGEST or (found == 0 and not zero):
        raise UsageError(
            f"{option_name(name)} is {shown(value)}: it must be {least} and finite, "
            f"at most {LARGEST:g}",
            f"{option_name(name)} {'0.01' if zero else '10'}",
        )
    return found


def _lam(lam: Any, reward: Any) -> float:
    if lam is None:
        return DEFAULT_LAM
    if reward != "linear":
        raise UsageError(
            "--lam is the weight of the latency in the linear reward, and the reward is goal",
            "add --reward linear, or leave --lam out",
        )
    found = _limit("lam", lam, zero=True)
    return DEFAULT_LAM if found is None else found


def _wrong(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(
        f"{name.replace(' ', '_')}={shown(value)} is {_a(type(value).__name__)}, not {wanted}",
        f"see hwloop optimize --help, {option_name(name)}",
    )


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "data": lambda name, value: None if value is None else path_text(name, value),
    "target": lambda name, value: target_name(value),
    "table": lambda name, value: None if value is None else path_text(name, value),
    "agent": lambda name, value: _word(name, value, tuple(METHODS)),
    "reward": lambda name, value: _word(name, value, REWARDS),
    "time_limit_s": lambda name, value: _limit(name, value),
    "finish_s": lambda name, value: _limit(name, value),
    "simulate": a_flag,
    "host": lambda name, value: a_host(value),
    **dict.fromkeys(COUNTS, _count),
    "loop_steps": lambda name, value: None if value is None else _count(name, value),
}
"""Option to what makes a setting of its value; the goal and lam are of several options."""
