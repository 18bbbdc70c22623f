"""What a target does not hold or build: taken from the subject before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from hwloop.compress import space
from hwloop.compress.apply import in_base_precision
from hwloop.compress.export import check_deployed, host_run
from hwloop.compress.fp16_range import Kept
from hwloop.compress.subject import Subject, check_has_choices
from hwloop.errors import CandidateError
from hwloop.measure import paired as measure
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.table import LatencyTable
from hwloop.runtimes.fp16 import FALLBACKS


def held_on_target(found: Subject, session: DeviceSession) -> Subject:
    """The subject with as much in FP32 as the target's own outputs ask for.

    What stays FP32 was decided on the host; the target's kernels have the last word, since they may
    add up in FP16 what ONNX Runtime adds up in FP32. Refusals other than of the outputs are left to
    the baseline, which says what they mean.
    """
    while found.fp16 is not None and (later := _with_more_float(found, found.fp16)) is not None:
        model = found.model(found.dense_candidate, found.graph)
        run = partial(session.infer, model)
        try:
            check_deployed(found.example, host_run(found.float_graph), run, int8=False)
        except CandidateError as error:
            session.forget(model)
            if error.stage != "check":
                break
            reason = f"on the target, {error.message.removeprefix('check: ')}"
            kept = Kept(operators=later.rules.kept_float, reason=reason)
            found = replace(later, fp16=kept)
        else:
            break
    return found


def _with_more_float(found: Subject, fp16: Kept) -> Subject | None:
    """By the next fall-back that makes another graph of it; None where there is none."""
    for operators in FALLBACKS[FALLBACKS.index(fp16.operators) + 1 :]:
        rules = replace(found.rules, kept_float=operators)
        graph = in_base_precision(found.float_graph, rules)
        if graph != found.graph:
            return replace(found, rules=rules, graph=graph)
    return None


def buildable(
    found: Subject, session: DeviceSession, table: LatencyTable, progress: Progress
) -> tuple[Subject, dict[str, str]]:
    """The subject without the precisions that the target cannot build, and the refused kinds.

    A strongly typed network has nothing to fall back to where TensorRT has no such kernel, by
    release and by GPU. One build of each kind of row tells, before hours are spent on it.

    Raises:
        TargetError: the target builds no row at all, or loses its workers over one.
        UsageError: nothing is left to decide.
    """
    rules = found.rules
    if not found.runtime.tries_int8_kinds:
        return found, {}
    progress.stage("INT8 kinds")
    refused = measure.quantized_kinds(
        session,
        table,
        found.reachable(),
        runtime=found.runtime,
        progress=progress.advance,
    )
    if not refused:
        return found, {}
    found = replace(found, rules=replace(rules, refused_kinds=tuple(refused)))
    masked = len(space.quantized_masked(found.network, found.rules))
    why = "; ".join(f"{kind}: {reason}" for kind, reason in refused.items())
    word = "INT8 or FP8" if "fp8" in rules.precisions else "INT8"
    progress.say(f"{word} is masked for {masked} of {len(found.network.groups)} groups: {why}")
    check_has_choices(found)
    return found, refused
