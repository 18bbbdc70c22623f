"""One finalist: undo what earns nothing, distil fully, measure and score."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

from hwloop.compress.subject import Built
from hwloop.compress.training import Schedule, in_cycles
from hwloop.errors import CandidateError
from hwloop.files import sha256, write_atomically
from hwloop.findings import LatencySource, Protocol
from hwloop.measure.progress import Progress
from hwloop.measure.trial import Trial
from hwloop.parsing import to_json
from hwloop.records import KEEP, Candidate
from hwloop.run import choice
from hwloop.run.best import weights
from hwloop.run.build import KeptWeights
from hwloop.run.choice import Seen
from hwloop.run.evaluate import Evaluator
from hwloop.run.folder import RunFolder
from hwloop.run.kept import KeptFinalist
from hwloop.run.memory import weights_name
from hwloop.search.problem import PredictMs

MIN_GAIN = 0.01
"""A group's change is doubtful when undoing it is predicted to cost less than 1 %."""


def schedule_of(seen: Seen) -> Schedule:
    """The recovery that a network had, which an earlier command may have asked for."""
    return Schedule(steps=seen.steps, cycle_steps=seen.cycle_steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Distiller:
    """Makes finalists of trials; what was distilled once is found again, and gone on from.

    Attributes:
        steps: of the first rung of full distillation; longer ones are several of these.
        protocol: of the long measurement that decides what is undone.
    """

    evaluator: Evaluator
    folder: RunFolder
    steps: int
    protocol: Protocol
    progress: Progress
    _built: dict[tuple[Candidate, Schedule], Built] = field(default_factory=dict)

    def distilled(
        self, trial: Trial, steps: int, *, predict_ms: PredictMs | None = None
    ) -> Seen | None:
        """A trial's finalist, with its score on the search split; None if it failed.

        Args:
            steps: of its distillation.
            predict_ms: where given, what it says to gain nothing is undone first.
        """
        try:
            candidate = trial.candidate
            if predict_ms is not None:
                candidate = self.reverted(candidate, predict_ms)
            known = self.evaluator.figures.finalist(candidate, self.schedule(steps))
            found = self._finalist(candidate, steps) if known is None else known
        except CandidateError as error:
            self.progress.say(f"a finalist failed: {error}")
            self.folder.event("finalist failed", candidate=trial.candidate, reason=str(error))
            return None
        self.progress.say(f"finalist: {self._said(found)}")
        return found.seen

    def schedule(self, steps: int) -> Schedule:
        """Of a full recovery of so many steps: a longer one goes on where a shorter one ended."""
        return in_cycles(steps, self.steps)

    def at_hand(self, seen: Seen) -> Built | None:
        """What was distilled last, so that it need not be built again."""
        return self._built.get((seen.candidate, schedule_of(seen)))

    def rebuilt(self, seen: Seen) -> Built:
        """A recovered network once more, by the recovery that it had.

        Raises:
            CandidateError: it cannot be built, or its weights are of another network.
        """
        return self._recovered(seen.candidate, schedule_of(seen))

    def _recovered(self, candidate: Candidate, schedule: Schedule) -> Built:
        """The recovered candidate; its weights are kept, so a resumed run does not train again."""
        evaluator = self.evaluator
        kept = self._kept(candidate, schedule)
        if kept is not None:
            return evaluator.builder.restored(candidate, kept)
        begun = self._begun(candidate, schedule)
        self.progress.stage("distillation")
        tick = self.progress.advance
        built = evaluator.builder.build(candidate, schedule, begun=begun, tick=tick)
        data = weights(built)
        write_atomically(self._path(candidate, schedule), data)
        evaluator.figures.put_weights(candidate, schedule, sha256(data))
        return built

    def _path(self, candidate: Candidate, schedule: Schedule) -> Path:
        return self.folder.path / "candidates" / weights_name(candidate, schedule)

    def _kept(self, candidate: Candidate, schedule: Schedule) -> KeptWeights | None:
        """Those of a recovery that was done before, if they are as they were."""
        path = self._path(candidate, schedule)
        kept = self.evaluator.figures.weights(candidate, schedule)
        data = path.read_bytes() if path.is_file() and kept is not None else b""
        if kept is None or sha256(data) != kept:
            return None
        try:
            return KeptWeights(steps=schedule.steps, source=str(path), state=load(data))
        except SafetensorError as error:
            raise CandidateError("recover", f"{path} does not fit: {error}") from error

    def _begun(self, candidate: Candidate, schedule: Schedule) -> KeptWeights | None:
        """The longest part of a recovery that was done before."""
        shorter = schedule.shorter
        while shorter is not None:
            kept = self._kept(candidate, shorter)
            if kept is not None:
                return kept
            shorter = shorter.shorter
        return None

    def _finalist(self, candidate: Candidate, steps: int) -> KeptFinalist:
        evaluator, schedule = self.evaluator, self.schedule(steps)
        built = self._recovered(candidate, schedule)
        with evaluator.session.holding(built.model):
            timed = evaluator.latencies
            measurement = timed.long(candidate) or timed.of(built)
            scored = evaluator.scorer.scored(built.model)
        self._built.clear()  # of large networks only one is held
        self._built[candidate, schedule] = built
        found = KeptFinalist(
            candidate=candidate,
            steps=steps,
            cycle_steps=schedule.cycle_steps,
            latency_ms=measurement.latency_ms,
            faster=choice.is_faster(measurement),
            speedup=measurement.speedup,
            drop=scored.drop,
            upper_drop=scored.upper_drop,
        )
        evaluator.figures.add_finalist(candidate, schedule, found)
        self.folder.event("finalist", **to_json(found))
        return evaluator.figures.finalist(candidate, schedule) or found

    def _said(self, found: KeptFinalist) -> str:
        speedup = f"{found.speedup:.2f}x{self.evaluator.source.mark}"
        upper = found.upper_drop
        bound = "over the limit" if upper is None else f"80 % below {upper:+.4f}"
        return (
            f"{speedup}, drop {found.drop:+.4f} on the search split after {found.steps} steps "
            f"({bound})"
        )

    def reverted(self, candidate: Candidate, predict_ms: PredictMs) -> Candidate:
        """Undo changes that are predicted to gain under 1 %, if that is found to cost nothing.

        Neither time, as it is measured for long, nor anything of the metric after the search's
        recovery.
        """
        reverted = self._without_what_earns_nothing(candidate, predict_ms)
        if reverted == candidate:
            return candidate
        try:
            if not self._costs_nothing(candidate, reverted):
                return candidate
        except CandidateError:
            return candidate
        self.folder.event("reverted", before=candidate, after=reverted)
        return reverted

    def _costs_nothing(self, candidate: Candidate, reverted: Candidate) -> bool:
        evaluator = self.evaluator
        before, after = (evaluator.outcome(each)[0] for each in (candidate, reverted))
        slower = after.latency_ms > before.latency_ms * (1 + MIN_GAIN)
        if slower or after.metric_drop > before.metric_drop:
            return False
        if evaluator.source is LatencySource.SIMULATED:
            return True
        timed, timed_after = (
            evaluator.timed_for_long(each, self.protocol) for each in (candidate, reverted)
        )
        return timed_after.ratio_ci95[1] <= timed.ratio * (1 + MIN_GAIN)

    def _without_what_earns_nothing(self, candidate: Candidate, predict_ms: PredictMs) -> Candidate:
        actions, subject = list(candidate.actions), self.evaluator.subject
        for index, action in enumerate(actions):
            if action == KEEP:
                continue
            undone = [*actions[:index], KEEP, *actions[index + 1 :]]
            with_it = predict_ms(subject.choices(Candidate(actions=tuple(actions))))
            without = predict_ms(subject.choices(Candidate(actions=tuple(undone))))
            if without - with_it < MIN_GAIN * with_it:
                actions = undone
        return Candidate(actions=tuple(actions))
