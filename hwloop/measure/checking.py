"""``hwloop target check``: can this target be trusted to time something twice alike?"""

from __future__ import annotations

from typing import Any

from hwloop.findings import Measurement
from hwloop.measure import paired as measure
from hwloop.measure.doctor.board import board_checks
from hwloop.measure.doctor.check import Check
from hwloop.measure.doctor.there import board_facts
from hwloop.measure.profile import rules_for
from hwloop.measure.profile_file import resolve
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import REFERENCE
from hwloop.parsing import to_json
from hwloop.runtimes.graph import OnnxModel
from hwloop.runtimes.known import writing

MAX_SELF_DIFFERENCE, USELESS_SELF_DIFFERENCE = 0.03, 0.10


def check_target(name: str, *, host: str | None = None) -> dict[str, Any]:
    """Start the worker, examine the machine that it runs on, and time a layer against itself.

    Returns:
        target, fingerprint, checks: records with state (ok, warn, fail), what, fix.

    Raises:
        TargetError: it cannot be reached, or does not run.
    """
    profile = resolve(name, host=host)
    with DeviceSession(profile) as session:
        board = board_facts(session)
        runtime = writing(rules_for(profile, session.isa).recipe)
        reference = OnnxModel(runtime.row_graph(REFERENCE), (REFERENCE,))
        found = measure.baseline(session, reference, profile.protocols.loop)
        fingerprint = to_json(session.fingerprint)
    checks = board_checks(profile, board) + [_self_check(found)]
    return {"target": name, "fingerprint": fingerprint, "checks": to_json(checks)}


def _self_check(found: Measurement) -> Check:
    difference = abs(found.ratio - 1)
    text = f"a layer against itself: {difference:.1%} apart, {len(found.samples_ms)} samples"
    if difference > MAX_SELF_DIFFERENCE or found.unstable:
        reasons = "; ".join(found.unstable) or "noisy"
        state = "fail" if difference > USELESS_SELF_DIFFERENCE else "warn"
        return Check(state=state, what=f"{text}; {reasons}", fix="stop what else runs there")
    return Check(state="ok", what=text, fix=None)
