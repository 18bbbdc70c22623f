"""The target's machine, then what only engines can tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hwloop.errors import HwloopError
from hwloop.measure.doctor.board import board_checks, unsupported_reason
from hwloop.measure.doctor.check import WARN, Check, Visit
from hwloop.measure.doctor.start import start_check
from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.parsing import to_json
from hwloop.runtimes.simulated import Simulated

ANNOUNCEMENT = (
    "reading is done; five checks that build engines follow: a few minutes on a graphics card, "
    "about ten on a small board. Ctrl-C ends them, --quick leaves them out."
)


def board_facts(session: Any) -> dict[str, Any]:
    """What the worker says about its machine, and who it is."""
    facts = {
        **session.state(),
        "runtime": session.fingerprint.runtime,
        "runtime_version": session.fingerprint.runtime_version,
    }
    # The open session has the lock, where its kind takes one: nobody else measures there.
    return {**facts, "lock": None} if session.locks else facts


def examined(profile: TargetProfile, *, quick: bool, record: bool, progress: Progress) -> Visit:
    """Look at the target: read, then build unless it is ``quick``; lines, where it cannot be."""
    from hwloop.measure.doctor import engines

    patience_s = min(profile.build_timeout_s, engines.BUILD_TIMEOUT_S)
    line = engines.Line(lambda: _session(replace(profile, build_timeout_s=patience_s)))
    progress.stage("the target")
    try:
        try:
            session = line.get()
            facts = board_facts(session)
        except HwloopError as error:
            return _without_runtime(profile, error, record=record)
        found = Visit(
            checks=tuple(board_checks(profile, facts)),
            fingerprint=to_json(session.fingerprint),
            state=facts,
        )
        if record:
            found = _recorded(found, session)
        if quick or not profile.kind.ships_engine or unsupported_reason(facts) is not None:
            return found
        progress.say(ANNOUNCEMENT)
        task = engines.Task(profile=profile, state=facts, progress=progress)
        findings = engines.examine(line, task)
        lines = [check for finding in findings for check in finding.checks]
        results = {finding.name: finding.result for finding in findings}
        return replace(found, checks=(*found.checks, *lines), results=results)
    finally:
        line.close()


def _without_runtime(profile: TargetProfile, error: HwloopError, *, record: bool) -> Visit:
    """The runtime does not start: what the machine says without it, so that the fix fits."""
    bare = replace(profile, runtime=Simulated.name, settings={})  # needs numpy alone
    try:
        with _session(bare) as session:
            facts = {key: value for key, value in session.state().items() if key != "runtime"}
            found = Visit(checks=tuple(board_checks(profile, facts)), state=facts)
            found = _recorded(found, session) if record else found
    except HwloopError:
        found = Visit(checks=())
    first = start_check(profile, error.message, error.hint, found.state)
    return replace(found, checks=(first, *found.checks))


def _recorded(found: Visit, session: Any) -> Visit:
    try:
        return replace(found, recordings=session.recordings())
    except HwloopError as error:
        line = Check(state=WARN, what=f"its files could not be recorded: {error.message}")
        return replace(found, checks=(*found.checks, line))


def _session(profile: TargetProfile) -> Any:
    from hwloop.measure import session as targets

    return targets.DeviceSession(profile)
