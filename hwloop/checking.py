"""``hwloop target check`` and ``hwloop doctor``: can this target be trusted, and what it lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hwloop import doctor as examination
from hwloop import measure
from hwloop.errors import HwloopError
from hwloop.profile import TargetProfile, resolve, rules_for
from hwloop.records import Measurement, to_json
from hwloop.rows import row_onnx
from hwloop.table import REFERENCE
from hwloop.targets import DeviceSession, Model

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
        reference = Model(row_onnx(REFERENCE, rules_for(profile, session.isa).recipe), (REFERENCE,))
        found = measure.baseline(session, reference, profile.protocols.loop)
        fingerprint = to_json(session.fingerprint)
    checks = examination.board_checks(profile, board) + [_self_check(found)]
    return {"target": name, "fingerprint": fingerprint, "checks": to_json(checks)}


def doctor(name: str | None, *, host: str | None = None) -> list[dict[str, Any]]:
    """Everything that can be wrong here and, with a target, there; nothing is measured.

    A target that cannot be reached is a line of the result, not an error.
    """
    profile = None if name is None else resolve(name, host=host)
    checks = examination.host_checks(profile)
    if profile is not None:
        checks = [*checks, *_board_lines(profile)]
    found: list[dict[str, Any]] = to_json(checks)
    return found


def board_facts(session: DeviceSession) -> dict[str, Any]:
    """What the worker says about its machine, and who it is."""
    facts = {
        **session.state(),
        "runtime": session.fingerprint.runtime,
        "runtime_version": session.fingerprint.runtime_version,
    }
    # The open session has the lock, where its kind takes one: nobody else measures there.
    return {**facts, "lock": None} if session.locks else facts


def _board_lines(profile: TargetProfile) -> list[examination.Check]:
    """The lines about the target; where its runtime does not start, about the machine alone."""
    try:
        with DeviceSession(profile) as session:
            return examination.board_checks(profile, board_facts(session))
    except HwloopError as error:
        lines = [examination.start_check(profile, error.message, error.hint)]
    bare = replace(profile, runtime="fake", settings={})  # needs numpy alone
    try:
        with DeviceSession(bare) as session:
            state = {key: value for key, value in session.state().items() if key != "runtime"}
    except HwloopError:
        return lines
    return [*lines, *examination.board_checks(profile, state)]


def _self_check(found: Measurement) -> examination.Check:
    difference = abs(found.ratio - 1)
    text = f"a layer against itself: {difference:.1%} apart, {len(found.samples_ms)} samples"
    if difference > MAX_SELF_DIFFERENCE or found.unstable:
        reasons = "; ".join(found.unstable) or "noisy"
        state = "fail" if difference > USELESS_SELF_DIFFERENCE else "warn"
        return examination.Check(
            state=state, what=f"{text}; {reasons}", fix="stop what else runs there"
        )
    return examination.Check(state="ok", what=text, fix=None)
