"""Inference of many inputs in requests of bounded size, so that neither side holds them all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from hwloop.measure import answers
from hwloop.measure.answers import Nonsense
from hwloop.measure.retries import Retries
from hwloop.runtimes.graph import OnnxModel

MAX_CHUNK_BYTES = 32 << 20
"""Of inputs and of outputs in one request, however many inputs come."""

MAX_OUTPUT_BYTES = 1 << 30
INPUT_S = 1.0
"""Allowed for each input beside the profile's timeout."""


class Chunks:
    """Runs inputs on a device, and knows what an input of each model costs.

    Attributes:
        outputs: by model's key: bytes of an input or of its outputs, whichever are more, and
            type and shape of the first output.
    """

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self.outputs: dict[str, tuple[int, str, tuple[int, ...]]] = {}

    def inferred(
        self, model: OnnxModel, inputs: np.ndarray[Any, Any]
    ) -> Iterator[np.ndarray[Any, Any]]:
        """First outputs, a chunk at a time; raises CandidateError or TargetError."""
        start = 0
        while start < len(inputs):
            # What an input costs, outputs included, is known from the first one, sent alone.
            known = self.outputs.get(model.key)
            most = 1 if known is None else max(MAX_CHUNK_BYTES // max(known[0], 1), 1)
            chunk = np.ascontiguousarray(inputs[start : start + most])
            yield self.chunk(model, chunk)
            start += len(chunk)

    def chunk(self, model: OnnxModel, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """First outputs of inputs that go in one request."""
        data = inputs.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(data).hexdigest()
        about = {"inputs": digest, "dtype": str(inputs.dtype), "shape": list(inputs.shape)}

        def parse(reply: Any) -> np.ndarray[Any, Any]:
            reply = self._retries.worker.fetched(reply, limit_bytes=MAX_OUTPUT_BYTES)
            found = answers.first_array(reply, len(inputs))
            all_bytes = max(answers.all_bytes(reply), inputs.nbytes)
            now = (-(-all_bytes // len(inputs)), str(found.dtype), found.shape[1:])
            if self.outputs.setdefault(model.key, now)[1:] != now[1:]:
                raise Nonsense(f"outputs of {now[1:]} after others of {self.outputs[model.key]}")
            return found

        return self._retries.ask(
            "infer",
            model,
            about=about,
            blobs={digest: data},
            extra_s=len(inputs) * INPUT_S,
            parse=parse,
        )
