"""Records of what a run stores, as they are read back: nothing that is stored is believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hwloop.compress.space import check_candidate
from hwloop.findings import Measurement
from hwloop.parsing import (
    A_COUNT,
    ANY_NUMBER,
    ANY_TEXT,
    Check,
    a_flag,
    a_number,
    a_text,
    an_object,
    optional,
)
from hwloop.records import Action, Candidate
from hwloop.run.beside import COPIES, ENERGY, of_both
from hwloop.run.choice import Seen

_SQUARED = a_number(-1e100, 1e100)  # so that its square is a number as well
_SCORE = an_object(
    {
        "metric": ANY_NUMBER,
        "drop": ANY_NUMBER,
        "upper_drop": optional(ANY_NUMBER),
        "size_bytes": A_COUNT,
    }
)
_SEEN = {
    "candidate": Candidate.from_json,
    "steps": A_COUNT,
    "latency_ms": a_number(1e-9, 1e9),
    "faster": a_flag,
    "drop": ANY_NUMBER,
    "upper_drop": optional(ANY_NUMBER),
}
_CYCLE = {"cycle_steps": optional(A_COUNT)}
_FINALIST = an_object({**_SEEN, "speedup": ANY_NUMBER}, later=_CYCLE)
_FINAL = an_object(
    {
        "measurement": Measurement.from_json,
        "dense_metric": ANY_NUMBER,
        "metric": ANY_NUMBER,
        "energy_mj": optional(of_both(ENERGY)),
    },
    later={"copies": of_both(COPIES)},
)
_PROBED = an_object({"divergence": _SQUARED, "drop": _SQUARED})
_NOT_PROBED = an_object({"failed": a_text(10_000, ANY_TEXT)})


@dataclass(frozen=True, kw_only=True)
class KeptScore:
    """A candidate's score on the search split, as it was recovered in the search.

    Attributes:
        metric, drop: in the metric's unit; positive drop = worse than the dense network.
        upper_drop: one-sided 80 % bound of the drop; see :class:`hwloop.run.scoring.Scored`.
        size_bytes: of the ONNX file.
    """

    metric: float
    drop: float
    upper_drop: float | None
    size_bytes: int

    @staticmethod
    def from_json(value: Any) -> KeptScore:
        """Inverse of how it is stored; raises ValueError on a wrong field."""
        return KeptScore(**_SCORE(value))


@dataclass(frozen=True, kw_only=True)
class KeptFinalist:
    """A fully distilled candidate, measured and scored on the search split.

    Attributes:
        steps, cycle_steps: of its distillation; see :class:`hwloop.run.choice.Seen`.
        latency_ms, faster, speedup: against the dense network, interleaved.
        drop, upper_drop: as in :class:`KeptScore`.
    """

    candidate: Candidate
    steps: int
    latency_ms: float
    faster: bool
    speedup: float
    drop: float
    upper_drop: float | None
    cycle_steps: int | None = None

    @property
    def seen(self) -> Seen:
        """As the choice of what ships sees it."""
        return Seen(
            candidate=self.candidate,
            steps=self.steps,
            latency_ms=self.latency_ms,
            faster=self.faster,
            drop=self.drop,
            upper_drop=self.upper_drop,
            cycle_steps=self.cycle_steps,
        )

    @staticmethod
    def from_json(value: Any) -> KeptFinalist:
        """Inverse of how it is stored; raises ValueError on a wrong field."""
        return KeptFinalist(**_FINALIST(value))


def a_seen(value: Any) -> Seen:
    """A stored network as the choice of what ships sees it; raises ValueError on a wrong field."""
    return Seen(**an_object(_SEEN, later=_CYCLE)(value))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one action alone does to the dense network, or why that could not be found.

    Attributes:
        divergence: of the outputs from the dense network's; 0 where they are the same.
        drop: of the metric, in its unit.
        failed: the reason; None where both figures are there.
    """

    divergence: float = 0.0
    drop: float = 0.0
    failed: str | None = None

    @staticmethod
    def from_json(value: Any) -> Probe:
        """Inverse of :meth:`to_json`; raises ValueError on a wrong field."""
        failed = isinstance(value, dict) and "failed" in value
        return Probe(**(_NOT_PROBED if failed else _PROBED)(value))

    def to_json(self) -> dict[str, Any]:
        """The figures, or the reason."""
        if self.failed is not None:
            return {"failed": self.failed}
        return {"divergence": self.divergence, "drop": self.drop}


@dataclass(frozen=True, kw_only=True)
class FinalFigures:
    """A network that a run ends with, on the test split and against the dense one.

    Attributes:
        measurement: by the final protocol; of a usual setting by that of a bench.
        dense_metric, metric: computed by the target.
        energy_mj, copies: of the baseline and the best, or why they failed; None where the target
            says nothing of them.
    """

    measurement: Measurement
    dense_metric: float
    metric: float
    energy_mj: dict[str, Any] | None
    copies: dict[str, Any] | None

    @staticmethod
    def from_json(value: Any) -> FinalFigures:
        """Inverse of how it is stored; raises ValueError on a wrong field."""
        return FinalFigures(**_FINAL(value))


@dataclass(frozen=True, kw_only=True)
class KeptByHand:
    """One of the usual settings at the end of a run, and the size of its ONNX file."""

    figures: FinalFigures
    size_bytes: int

    @staticmethod
    def from_json(value: Any) -> KeptByHand:
        """Inverse of how it is stored; raises ValueError on a wrong field."""
        checks = {"figures": FinalFigures.from_json, "size_bytes": A_COUNT}
        return KeptByHand(**an_object(checks)(value))


def finalist_of(*, groups: int, menu: Iterable[Action], most_steps: int) -> Check:
    """A check of a stored finalist: it may have to be built again."""

    def check(value: Any) -> KeptFinalist:
        found = KeptFinalist.from_json(value)
        check_candidate(found.candidate, groups, menu)
        if found.steps > most_steps:
            raise ValueError("it was distilled for longer than anybody asked for")
        return found

    return check
