"""Requests to a worker and their answers, in order; what is large travels in parts, both ways.

A part is sent or asked for while others are on their way, which hides the time of the link, but
never so many that a beat waits behind them for long: a worker that hears none ends itself.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from hwloop.errors import CandidateError
from hwloop.measure import answers
from hwloop.measure.answers import Nonsense, WorkerLost
from hwloop.measure.link import Link
from hwloop.measure.refusals import LinkLost

Data: TypeAlias = "bytes | bytearray | memoryview"

PART_BYTES = 128 << 10
WINDOW = 4
LOST = "lost"
"""Stage of the error of a worker that can do no more; see hwloop.device.serve."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Exchange:
    """Speaks with one worker. Whatever goes wrong with it is WorkerLost.

    Args:
        timeout_s: for each part of a transfer, not for all of it.
    """

    def __init__(self, link: Link, *, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._number = 0

    def request(self, verb: str, body: dict[str, Any], timeout_s: float, *, token: str = "") -> Any:
        """The result of one request.

        Raises:
            WorkerLost: it is gone, silent, late, or says that it can do no more.
            CandidateError: what the worker says about what it was given.
        """
        return self._answer(verb, self._ask(verb, {"token": token, **body}), timeout_s)

    def put(self, digest: str, data: Data) -> None:
        """Send a blob; the request that uses it has its digest checked. Raises WorkerLost."""
        starts = range(0, max(len(data), 1), PART_BYTES)
        parts = (
            {"digest": digest, "offset": at, "data": bytes(data[at : at + PART_BYTES])}
            for at in starts
        )
        for taken in self._each("put", parts):
            if taken is not True:
                raise Nonsense(f"a part was answered by {str(taken)[:40]!r}")

    def fetched(self, reply: Any, *, limit_bytes: int) -> dict[str, Any]:
        """A reply with its ``data``, which the worker may have put aside, as a buffer.

        Raises:
            WorkerLost: also where it is larger than ``limit_bytes``, or not what was promised.
        """
        if not isinstance(reply, dict) or "data" not in reply:
            raise Nonsense(f"an answer without data: {str(reply)[:40]!r}")
        found = reply["data"]
        if not isinstance(found, bytes):
            found = self._take(found, limit_bytes)
        elif len(found) > limit_bytes:
            raise Nonsense(f"{len(found)} bytes where {limit_bytes} are the most")
        return {**reply, "data": found}

    def _take(self, promise: Any, limit_bytes: int) -> mmap.mmap:
        digest, size_bytes = _promised(promise)
        if size_bytes > limit_bytes:
            raise Nonsense(f"{size_bytes} bytes where {limit_bytes} are the most")
        # From the kernel and back to it: the allocator would keep and fragment buffers of this
        # size. Pages of it are taken when they are written, whatever size was promised.
        data = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        filled = 0
        parts = (
            {"blob": digest, "offset": at, "size_bytes": min(PART_BYTES, size_bytes - at)}
            for at in range(0, size_bytes, PART_BYTES)
        )
        for part in self._each("take", parts):
            if not isinstance(part, bytes) or len(part) != min(PART_BYTES, size_bytes - filled):
                raise Nonsense("a part is not as long as it should be")
            data[filled : filled + len(part)] = part
            filled += len(part)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Nonsense("what arrived is not what was promised")
        self.request("forget", {"digest": digest}, self._timeout_s)
        return data

    def _each(self, verb: str, bodies: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """The results in order, with a few requests on their way at any time."""
        asked: deque[int] = deque()
        try:
            for body in bodies:
                if len(asked) >= WINDOW:
                    yield self._answer(verb, asked.popleft(), self._timeout_s)
                asked.append(self._ask(verb, body))
            while asked:
                yield self._answer(verb, asked.popleft(), self._timeout_s)
        except CandidateError as error:  # no candidate is to blame for the transport
            raise Nonsense(f"{verb!r} failed: {error}") from error

    def _ask(self, verb: str, body: dict[str, Any]) -> int:
        self._number += 1
        try:
            self._link.send({"id": self._number, "verb": verb, **body})
        except LinkLost as error:
            raise WorkerLost(f"{error} before {verb!r}") from error
        return self._number

    def _answer(self, verb: str, number: int, timeout_s: float) -> Any:
        try:
            reply = self._link.receive(timeout_s)
        except LinkLost as error:
            raise WorkerLost(f"{error} during {verb!r}") from error
        if not isinstance(reply, dict) or reply.get("id") != number:
            raise Nonsense(f"the answer to {verb!r} does not match the request")
        if "error" in reply:
            failed = answers.candidate_error(reply["error"])
            raise WorkerLost(str(failed)) if failed.stage == LOST else failed
        if "result" not in reply:
            raise Nonsense(f"the answer to {verb!r} has no result")
        return reply["result"]


def _promised(value: Any) -> tuple[str, int]:
    """(SHA-256, size) of what a worker has put aside. Raises Nonsense."""
    try:
        digest, size_bytes = value["blob"], value["size_bytes"]
        if _SHA256.fullmatch(digest) and type(size_bytes) is int and size_bytes > 0:
            return digest, size_bytes
    except (KeyError, TypeError):
        pass
    raise Nonsense(f"neither data nor the promise of it: {str(value)[:80]!r}")
