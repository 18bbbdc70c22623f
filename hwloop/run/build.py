"""Candidate in, checked network out: compress, recover, export, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor, nn

from hwloop.compress.apply import compress, deployable
from hwloop.compress.export import check_deployed, check_outputs, export_onnx, host_run
from hwloop.compress.moments import InputMoments, input_moments
from hwloop.compress.recover import Recovery
from hwloop.compress.subject import Built, Subject
from hwloop.compress.training import Schedule
from hwloop.errors import CandidateError
from hwloop.measure.session import DeviceSession
from hwloop.records import Candidate
from hwloop.run.clock import Stopwatch
from hwloop.runtimes.graph import OnnxModel

CALIBRATION_INPUTS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptWeights:
    """What a recovery of so many steps left.

    Attributes:
        source: where they are from, for errors.
        state: by the names of the compressed module.
    """

    steps: int
    source: str
    state: Mapping[str, Tensor]

    def into(self, module: nn.Module) -> None:
        """Raises CandidateError where they are of another network."""
        try:
            module.load_state_dict(self.state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CandidateError("recover", f"{self.source} does not fit: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Builder:
    """Builds candidates of one subject; what it exports is checked on the target.

    Attributes:
        simulated: nothing runs on the real target, so that its builder is asked here.
    """

    subject: Subject
    session: DeviceSession
    recovery: Recovery
    clock: Stopwatch
    simulated: bool

    def build(
        self,
        candidate: Candidate,
        schedule: Schedule,
        *,
        begun: KeptWeights | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> Built:
        """Compress, recover, export and check. Raises CandidateError.

        Args:
            begun: of the first cycles of the schedule, where they were done before.
            tick: called with (steps done, steps) after each step.
        """
        module = self.recovered(candidate, schedule, begun=begun, tick=tick)
        return self._exported(candidate, module)

    def recovered(
        self,
        candidate: Candidate,
        schedule: Schedule,
        *,
        begun: KeptWeights | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Compress and recover, in float: precisions come with the export; as :meth:`build`.

        A network that nothing was cut from is the dense one before it is quantized: there is
        nothing to recover, and training it towards itself only costs time.
        """
        refitted = candidate.is_cut and begun is None
        with self.clock("compress"):
            module = self._compressed(candidate, self.moments if refitted else None)
        if begun is not None:
            begun.into(module)
        if candidate.is_cut:
            with self.clock("train"):
                done = 0 if begun is None else begun.steps
                self.recovery.recover(module, schedule, done=done, tick=tick)
        return module

    def restored(self, candidate: Candidate, kept: KeptWeights) -> Built:
        """Built from the weights of an earlier recovery. Raises CandidateError."""
        module = self._compressed(candidate)
        kept.into(module)
        return self._exported(candidate, module.eval())

    def check_dense(self, model: OnnxModel) -> None:
        """The dense network as it ships, like any candidate. Raises CandidateError."""
        subject = self.subject
        with self.clock("export"):
            self._check(subject.dense_candidate, subject.dense, subject.float_graph, model)

    @cached_property
    def moments(self) -> InputMoments:
        """What the dense network's layers are given, of the inputs that renew batch norms."""
        return input_moments(self.subject.dense, self.recovery.recalibration_inputs())

    def _compressed(self, candidate: Candidate, moments: InputMoments | None = None) -> nn.Module:
        subject = self.subject
        return compress(
            subject.dense,
            subject.example,
            subject.network,
            candidate=candidate,
            rules=subject.rules,
            moments=moments,
        )

    def _exported(self, candidate: Candidate, module: nn.Module) -> Built:
        """Export a compressed module, check it, and give its groups their precisions."""
        subject = self.subject
        with self.clock("export"):
            plain = export_onnx(module, subject.example)
            final = deployable(
                module,
                subject.example,
                plain,
                network=subject.network,
                candidate=candidate,
                calibration=self.recovery.calibration_inputs(CALIBRATION_INPUTS),
                rules=subject.rules,
                runtime=subject.runtime,
            )
            model = subject.model(candidate, final)
            with self.session.holding(OnnxModel(plain)):
                try:
                    self._check(candidate, module, plain, model)
                except CandidateError:
                    self.session.forget(model)
                    raise
        return Built(candidate=candidate, module=module, model=model)

    def _check(
        self, candidate: Candidate, module: nn.Module, plain: bytes, model: OnnxModel
    ) -> None:
        """The exported FP32 graph against PyTorch; where FP16 ships, that against FP32 as well."""
        example, infer = self.subject.example, self.session.infer
        if self.subject.rules.base_precision == "fp32":
            check_outputs(module, example, partial(infer, OnnxModel(plain)))
            return
        # A target that ships FP16 never runs FP32, and may need minutes to build it.
        run = host_run(plain)
        check_outputs(module, example, run)
        quantized = any(action.precision != "base" for action in candidate.actions)
        check_deployed(example, run, partial(infer, model), int8=quantized)
        if self.simulated:
            self.subject.runtime.rehearse(model.data)
