"""Work that is done again by another worker when the one that had it was lost."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from hwloop.errors import CandidateError, TargetError
from hwloop.measure.answers import LostTwice, Nonsense, WorkerLost
from hwloop.measure.worker import SessionWorker
from hwloop.runtimes.graph import OnnxModel

Parsed = TypeVar("Parsed")

ATTEMPTS = 2
MAX_CONSECUTIVE_LOSSES = 6
BUILDING = (
    *("build", "engine", "compare", "infer", "energy"),
    *("cross_check", "copies", "launch_floor", "layer_profile"),
)
"""Verbs that may build an engine first, and have the time for it."""

STAGES = {"compare": "run", "infer": "score"}
"""Of a candidate's error, where it is not named after the verb."""


class Retries:
    """Asks a worker, and once more its successor.

    A candidate that loses two workers is a CandidateError; a target that cannot be brought back,
    or keeps losing workers whatever it is given, is a TargetError.
    """

    def __init__(self, worker: SessionWorker) -> None:
        self.worker = worker
        self._name = uuid.uuid4().hex
        self._work = 0
        self._losses = 0

    def ask(
        self,
        verb: str,
        model: OnnxModel,
        *,
        about: Mapping[str, Any] = MappingProxyType({}),
        beside: Sequence[OnnxModel] = (),
        blobs: Mapping[str, memoryview] = MappingProxyType({}),
        extra_s: float = 0.0,
        parse: Callable[[Any], Parsed],
    ) -> Parsed:
        """What ``parse`` makes of the answer to a request about a model.

        Args:
            about: the rest of the request.
            beside, blobs: other models and data that have to be there first.
            extra_s: allowed beside the profile's timeout.
            parse: raises Nonsense for an answer that cannot be true.

        Raises:
            CandidateError: what the worker says about what it was given; LostTwice.
            TargetError: no worker can be had, or all are lost.
        """
        profile, request = self.worker.profile, {"model": model.key, **about}
        timeout_s = extra_s + (
            profile.build_timeout_s if verb in BUILDING else profile.call_timeout_s
        )
        reason = ""
        token = self._new_token()
        for attempt in range(ATTEMPTS):
            try:
                for needed in (model, *beside):
                    self.worker.put_model(needed)
                for digest, data in blobs.items():
                    self.worker.put(digest, data)
                result = parse(self.worker.request(verb, request, timeout_s, token=token))
            except Nonsense as error:
                token = self._new_token()  # what was kept under the old one is no good
                reason = self._replaced(error)
            except WorkerLost as error:
                reason = self._replaced(error)
            else:
                self._losses = 0
                if attempt:
                    self._drop(token)
                return result
        stage = STAGES.get(verb, verb)
        raise LostTwice(stage, f"the worker was lost {ATTEMPTS} times: {reason}")

    def _replaced(self, error: WorkerLost) -> str:
        """Replace the worker; give up when this target keeps losing them. Returns the reason."""
        self._losses += 1
        self.worker.stop()
        if self._losses >= MAX_CONSECUTIVE_LOSSES:
            name = self.worker.profile.name
            raise TargetError(
                f"target {name!r} lost its worker {self._losses} times in a row; the last time: "
                f"{error}",
                f"hwloop target check {name}",
            ) from error
        self.worker.start()
        return str(error)

    def _new_token(self) -> str:
        self._work += 1
        return f"{self._name}-{self._work}"

    def _drop(self, token: str) -> None:
        """The worker may forget the reply that it kept. It is asked only after a loss."""
        with contextlib.suppress(WorkerLost, CandidateError):
            self.worker.request("drop", {"done": token}, self.worker.profile.call_timeout_s)
