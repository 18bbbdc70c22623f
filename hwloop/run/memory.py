"""What a run remembers: every stored value as a record, under the kind and key that it has there.

:class:`Notes` are about the run itself: where it stands, what it is about. :class:`Figures` are
what was found for its inputs, which are part of every kind, so that figures of two networks never
meet. What cannot be what it should is a UsageError of the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hwloop.errors import UsageError
from hwloop.findings import Fingerprint, Measurement
from hwloop.measure.scope import Scope
from hwloop.measure.store import Store
from hwloop.measure.trial import Trial
from hwloop.parsing import (
    A_COUNT,
    A_DIGEST,
    ANY_NUMBER,
    a_flag,
    a_mapping,
    a_text,
    as_it_is,
    digest,
)
from hwloop.records import Action, Candidate
from hwloop.run.choice import Seen
from hwloop.run.kept import (
    FinalFigures,
    KeptByHand,
    KeptFinalist,
    KeptScore,
    Probe,
    a_seen,
    finalist_of,
)

if TYPE_CHECKING:  # a report reads notes and figures, and must not wait for torch and onnx
    from hwloop.compress.fp16_range import Kept
    from hwloop.compress.training import Schedule


class Notes:
    """What a run knows of itself, and its trials."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def inputs(self) -> dict[str, Any] | None:
        """What the run is about; see :mod:`hwloop.run.identity`."""
        found: dict[str, Any] | None = self._store.get("run", "inputs", a_mapping(as_it_is))
        return found

    def add_inputs(self, inputs: dict[str, Any]) -> None:
        self._store.add("run", "inputs", inputs)

    def fingerprint(self) -> Fingerprint | None:
        """The device that the run was begun on."""
        found: Fingerprint | None = self._store.get("run", "fingerprint", Fingerprint.from_json)
        return found

    def add_fingerprint(self, found: Fingerprint) -> None:
        self._store.add("run", "fingerprint", found)

    def fp16(self) -> Kept | None:
        """What stays FP32 where FP16 ships, once that is decided."""
        from hwloop.compress.fp16_range import Kept  # it loads onnx, which a report does without

        found: Kept | None = self._store.get("run", "fp16", Kept.from_json)
        return found

    def add_fp16(self, found: Kept) -> None:
        self._store.add("run", "fp16", found)

    def stage(self) -> str | None:
        """The stage that began last."""
        found: str | None = self._store.get("run", "stage", a_text())
        return found

    def put_stage(self, name: str) -> None:
        self._store.put("run", "stage", name)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, of all processes that worked on the run."""
        return self._store.get("run", "seconds", a_mapping(ANY_NUMBER)) or {}

    def wall_s(self) -> float:
        """Seconds in all."""
        return float(self._store.get("run", "wall_s", ANY_NUMBER) or 0.0)

    def put_times(self, seconds: dict[str, float], *, wall_s: float) -> None:
        self._store.put("run", "seconds", seconds)
        self._store.put("run", "wall_s", wall_s)

    def finals(self) -> tuple[float, int]:
        """Seconds of the finals so far, and distillations that were decided in them."""
        kept = self._store.get("run", "finals", a_mapping(ANY_NUMBER)) or {}
        return float(kept.get("seconds", 0.0)), int(kept.get("count", 0))

    def put_finals(self, *, seconds: float, count: int) -> None:
        self._store.put("run", "finals", {"seconds": seconds, "count": count})

    def rows_before(self) -> int:
        """Rows of the latency table when the run began."""
        return int(self._store.get("run", "rows_before", A_COUNT))

    def add_rows_before(self, count: int) -> None:
        self._store.add("run", "rows_before", count)

    def best_so_far(self) -> Seen | None:
        """The network that is kept as the best until the run has ended."""
        found: Seen | None = self._store.get("run", "best_so_far", a_seen)
        return found

    def put_best_so_far(self, seen: Seen) -> None:
        self._store.put("run", "best_so_far", seen)

    def shipped(self) -> bool:
        """Whether the run has ended with a network: it may be given more evaluations after that."""
        return bool(self._store.get("run", "shipped", a_flag))

    def put_shipped(self) -> None:
        self._store.put("run", "shipped", True)

    def engine(self) -> dict[str, Any] | None:
        """SHA-256 and audit of the engine that ships."""
        found: dict[str, Any] | None = self._store.get("final", "engine", a_mapping(as_it_is))
        return found

    def put_engine(self, *, sha256: str, audit: dict[str, Any]) -> None:
        self._store.put("final", "engine", {"sha256": sha256, "audit": audit})

    def trials(self) -> list[Trial]:
        """All acknowledged trials, in the order in which they were evaluated."""
        return self._store.trials()

    def add_trial(self, trial: Trial) -> None:
        self._store.add_trial(trial)

    def damaged_trial(self, number: int, why: object) -> UsageError:
        """The error for a stored trial that cannot be of this run."""
        return self._store.damaged("trial", str(number), why)


class Figures:
    """What was found for the run's inputs; what stands is the first that was added.

    Args:
        identity: digest of the inputs; see :func:`hwloop.run.identity.key_of`.
    """

    def __init__(self, store: Store, identity: str) -> None:
        self._scope = Scope(store, identity)

    def baseline_latency(self) -> Measurement | None:
        """The dense network against itself."""
        found: Measurement | None = self._scope.get("baseline", "latency", Measurement.from_json)
        return found

    def add_baseline_latency(self, found: Measurement) -> None:
        self._scope.add("baseline", "latency", found)

    def has_baseline(self) -> bool:
        """Whether anything was measured, be it readable or not."""
        return self._scope.get("baseline", "latency", as_it_is) is not None

    def baseline_metric(self, count: int | None = None) -> float | None:
        """The dense network on the search split, or on ``count`` random samples of it."""
        key = "metric" if count is None else f"metric/{count}"
        found: float | None = self._scope.get("baseline", key, ANY_NUMBER)
        return found

    def add_baseline_metric(self, metric: float, count: int | None = None) -> None:
        self._scope.add("baseline", "metric" if count is None else f"metric/{count}", metric)

    def latency(self, candidate: Candidate) -> Measurement | None:
        """A candidate against the dense network, end to end."""
        key = candidate.digest()
        found: Measurement | None = self._scope.get("latency", key, Measurement.from_json)
        return found

    def add_latency(self, candidate: Candidate, found: Measurement) -> None:
        self._scope.add("latency", candidate.digest(), found)

    def long_latency(self, candidate: Candidate) -> Measurement | None:
        """The same of a candidate that was measured for longer."""
        key = candidate.digest()
        found: Measurement | None = self._scope.get("long_latency", key, Measurement.from_json)
        return found

    def add_long_latency(self, candidate: Candidate, found: Measurement) -> None:
        self._scope.add("long_latency", candidate.digest(), found)

    def score(self, candidate: Candidate, schedule: Schedule) -> KeptScore | None:
        """A candidate's score after a recovery."""
        key = _key(candidate, schedule)
        found: KeptScore | None = self._scope.get("score", key, KeptScore.from_json)
        return found

    def add_score(self, candidate: Candidate, schedule: Schedule, found: KeptScore) -> None:
        self._scope.add("score", _key(candidate, schedule), found)

    def probe(self, group: int, name: str) -> Probe | None:
        """What one action does to one group, by the group's number and the action's name."""
        found: Probe | None = self._scope.get("probe", f"{group}/{name}", Probe.from_json)
        return found

    def add_probe(self, group: int, name: str, found: Probe) -> None:
        self._scope.add("probe", f"{group}/{name}", found.to_json())

    def finalist(self, candidate: Candidate, schedule: Schedule) -> KeptFinalist | None:
        """A candidate after its full distillation."""

        def check(value: Any) -> KeptFinalist:
            kept = KeptFinalist.from_json(value)
            recovery = schedule.steps, schedule.cycle_steps
            if (kept.candidate, kept.steps, kept.cycle_steps) != (candidate, *recovery):
                raise ValueError("it is of another network or another distillation")
            return kept

        found: KeptFinalist | None = self._scope.get("finalist", _key(candidate, schedule), check)
        return found

    def finalists(
        self, *, groups: int, menu: Iterable[Action], most_steps: int
    ) -> list[KeptFinalist]:
        """Every finalist of this run, also of those that it went on from; they may be built again.

        Args:
            groups: of the network.
            menu: every action that may be in one.
            most_steps: of the distillation; they can be raised, not lowered.
        """
        check = finalist_of(groups=groups, menu=menu, most_steps=most_steps)
        return list(self._scope.all("finalist", check).values())

    def add_finalist(self, candidate: Candidate, schedule: Schedule, found: KeptFinalist) -> None:
        self._scope.add("finalist", _key(candidate, schedule), found)

    def weights(self, candidate: Candidate, schedule: Schedule) -> str | None:
        """SHA-256 of the file of a recovered candidate's weights."""
        found: str | None = self._scope.get("weights", _key(candidate, schedule), A_DIGEST)
        return found

    def put_weights(self, candidate: Candidate, schedule: Schedule, sha256: str) -> None:
        self._scope.put("weights", _key(candidate, schedule), sha256)

    def final(self, candidate: Candidate, schedule: Schedule | None) -> FinalFigures | None:
        """A network that ships, by its recovery; None for the dense one."""
        key = _key(candidate, schedule)
        found: FinalFigures | None = self._scope.get("final", key, FinalFigures.from_json)
        return found

    def add_final(
        self, candidate: Candidate, schedule: Schedule | None, found: FinalFigures
    ) -> None:
        self._scope.add("final", _key(candidate, schedule), found)

    def by_hand(self, candidate: Candidate, schedule: Schedule) -> KeptByHand | None:
        """One of the usual settings at the end of a run, by its recovery."""
        key = _key(candidate, schedule)
        found: KeptByHand | None = self._scope.get("by_hand", key, KeptByHand.from_json)
        return found

    def add_by_hand(self, candidate: Candidate, schedule: Schedule, found: KeptByHand) -> None:
        self._scope.add("by_hand", _key(candidate, schedule), found)

    def done(self) -> dict[str, int]:
        """How many results of each stage are stored: latencies, probes, finalists."""
        return {
            "latencies": len(self._scope.all("latency", as_it_is)),
            "probes": len(self._scope.all("probe", as_it_is)),
            "finalists": len(self._scope.all("finalist", as_it_is)),
        }


def weights_name(candidate: Candidate, schedule: Schedule) -> str:
    """The file of a recovered candidate's weights, among the run's candidates."""
    return f"{_key(candidate, schedule)[:16]}.safetensors"


def _key(candidate: Candidate, schedule: Schedule | None) -> str:
    return digest([candidate, schedule])
