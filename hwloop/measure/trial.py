"""One evaluated candidate, as a run keeps it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from hwloop.findings import Outcome
from hwloop.parsing import A_COUNT, ANY_TEXT, Check, a_number, a_text, optional, read_record
from hwloop.records import Candidate


class TrialState(enum.Enum):
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluated candidate. COMPLETE has an outcome, FAILED has a reason; never both."""

    number: int
    candidate: Candidate
    state: TrialState
    source: str
    outcome: Outcome | None = None
    reason: str | None = None
    predicted_ms: float | None = None
    wall_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.outcome is not None) != (self.state is TrialState.COMPLETE):
            raise ValueError("a trial has an outcome if and only if it is COMPLETE")
        if bool(self.reason) != (self.state is TrialState.FAILED):
            raise ValueError("a trial has a reason if and only if it FAILED")

    @staticmethod
    def from_json(value: Any) -> Trial:
        """Inverse of :func:`hwloop.parsing.to_json`; raises ValueError on a wrong field."""
        return read_record(Trial, value, _TRIAL)


_TRIAL: dict[str, Check] = {
    "number": A_COUNT,
    "candidate": Candidate.from_json,
    "state": TrialState,
    "source": a_text(),
    "outcome": optional(Outcome.from_json),
    "reason": optional(a_text(10_000, ANY_TEXT)),
    "predicted_ms": optional(a_number(0, 1e30)),  # so that its error is a number as well
    "wall_s": a_number(0, 1e12),
}
