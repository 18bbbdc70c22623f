"""Parts of what is large, both ways: in order, a few at a time, and never believed unchecked."""

from __future__ import annotations

import hashlib
import io
import os
from types import SimpleNamespace
from typing import Any

import pytest

from hwloop.device.runtime import COPIES, ENGINE, Runtime
from hwloop.device.serve import INLINE_BYTES, Worker, serve
from hwloop.errors import CandidateError
from hwloop.measure import transport
from hwloop.measure.answers import Nonsense, WorkerLost
from hwloop.measure.exchange import PART_BYTES, WINDOW, Exchange
from hwloop.measure.refusals import LinkLost

LARGE = bytes(range(256)) * 4096 + b"end"
LIMIT = 1 << 30


class Engines(Runtime):
    """A runtime with an engine and nothing else; ``broken`` is why it can be used no more."""

    name = "engines"
    capabilities = frozenset((COPIES, ENGINE))

    def __init__(self, data: bytes = LARGE) -> None:
        self.data = data
        self.broken = ""
        self.asked: list[tuple[bytes, dict[str, Any]]] = []

    def engine_file(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((model, hints))
        return {"data": self.data, "audit": {}}

    def copies(self, model: bytes, hints: dict[str, Any]) -> dict[str, Any]:
        return {"copied_bytes": len(model)}

    def build(self, model: bytes, hints: dict[str, Any]) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def lost(self) -> str | None:
        return self.broken or None


class Wire:
    """A link to a worker in this process; ``spoil`` may change its replies on their way."""

    def __init__(self, worker: Worker, spoil: Any = None) -> None:
        self.worker = worker
        self.spoil = spoil or (lambda request, reply: reply)
        self.requests: list[dict[str, Any]] = []
        self.waiting: list[Any] = []
        self.most_waiting = 0

    def send(self, message: dict[str, Any]) -> None:
        self.requests.append(message)
        self.waiting.append(self.spoil(message, self.worker.answer(message)))
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def receive(self, timeout_s: float) -> Any:
        if not self.waiting:
            raise LinkLost(f"no answer within {timeout_s:.0f} s")
        return self.waiting.pop(0)


def put(exchange: Exchange, data: bytes, name: str = "model") -> None:
    digest = hashlib.sha256(data).hexdigest()
    exchange.put(digest, data)
    about = {"digest": digest, "model": name, "hints": {"configs": []}}
    exchange.request("put_model", about, 1.0)


def ready(runtime: Any = None, spoil: Any = None) -> tuple[Exchange, Wire]:
    wire = Wire(Worker(runtime or Engines()), spoil)
    exchange = Exchange(wire, timeout_s=1.0)  # type: ignore[arg-type]
    put(exchange, b"graph")
    return exchange, wire


def engine(exchange: Exchange, limit_bytes: int = LIMIT) -> dict[str, Any]:
    reply = exchange.request("engine", {"model": "model"}, 1.0)
    return exchange.fetched(reply, limit_bytes=limit_bytes)


def test_what_is_large_is_fetched_in_parts_and_then_forgotten() -> None:
    exchange, wire = ready()
    assert bytes(engine(exchange)["data"]) == LARGE
    takes = [request for request in wire.requests if request["verb"] == "take"]
    assert len(takes) == -(-len(LARGE) // PART_BYTES)
    assert wire.most_waiting == WINDOW
    assert wire.worker.blobs == {}


def test_what_is_small_comes_with_the_reply() -> None:
    exchange, wire = ready(Engines(b"x" * INLINE_BYTES))
    assert engine(exchange)["data"] == b"x" * INLINE_BYTES
    assert "take" not in {request["verb"] for request in wire.requests}


def test_a_large_model_arrives_whole_and_its_parts_are_not_kept() -> None:
    runtime = Engines()
    exchange, wire = ready(runtime)
    put(exchange, LARGE, "large")
    exchange.request("engine", {"model": "large"}, 1.0)
    assert runtime.asked[-1] == (LARGE, {"configs": []})
    assert wire.most_waiting == WINDOW
    assert wire.worker.parts == {}


def test_what_nobody_fetched_is_freed_by_the_next_request() -> None:
    exchange, wire = ready()
    exchange.request("engine", {"model": "model"}, 1.0)
    assert wire.worker.blobs
    exchange.request("copies", {"model": "model"}, 1.0)
    assert wire.worker.blobs == {}


def test_inputs_of_a_request_that_needs_none_any_more_are_freed() -> None:
    exchange, wire = ready()
    exchange.put(hashlib.sha256(LARGE).hexdigest(), LARGE)
    exchange.request("copies", {"model": "model"}, 1.0)
    assert wire.worker.parts == {}


def test_a_model_that_was_altered_on_its_way_is_refused() -> None:
    exchange, _ = ready()
    exchange.put("0" * 64, LARGE)
    about = {"digest": "0" * 64, "model": "other", "hints": {}}
    with pytest.raises(CandidateError, match="not what was sent"):
        exchange.request("put_model", about, 1.0)


def promise(**change: Any) -> Any:
    def spoil(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        if request["verb"] == "engine":
            reply["result"]["data"] = {**reply["result"]["data"], **change}
        return reply

    return spoil


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": LIMIT + 1},
        {"size_bytes": 0},
        {"size_bytes": -5},
        {"size_bytes": "3"},
        {"size_bytes": True},
        {"size_bytes": len(LARGE) + 1},
        {"size_bytes": len(LARGE) - 1},
        {"blob": "../../etc/passwd"},
        {"blob": None},
        {"blob": "0" * 64},
    ],
    ids=str,
)
def test_a_promise_that_cannot_be_true_loses_the_worker(change: dict[str, Any]) -> None:
    exchange, _ = ready(spoil=promise(**change))
    with pytest.raises(Nonsense):
        engine(exchange)


@pytest.mark.parametrize(
    "answer",
    [b"", b"x" * (PART_BYTES - 1), b"x" * (PART_BYTES + 1), b"x" * PART_BYTES, "text", None, 7],
    ids=lambda value: f"{type(value).__name__}-{len(value) if value and value != 7 else 0}",
)
def test_a_part_that_is_none_loses_the_worker(answer: Any) -> None:
    def spoil(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        return {**reply, "result": answer} if request["verb"] == "take" else reply

    exchange, _ = ready(spoil=spoil)
    with pytest.raises(Nonsense):
        engine(exchange)


@pytest.mark.parametrize("verb", ["put", "take"])
def test_an_error_of_the_transport_is_no_candidates_fault(verb: str) -> None:
    failed = {"error": {"stage": "run", "message": "no memory"}}

    def spoil(request: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
        return {"id": request["id"], **failed} if request["verb"] == verb else reply

    with pytest.raises(Nonsense, match="no memory"):
        engine(ready(spoil=spoil)[0])


def test_data_of_more_than_the_limit_are_refused_in_either_form() -> None:
    for size_bytes in (INLINE_BYTES, len(LARGE)):
        exchange, _ = ready(Engines(b"x" * size_bytes))
        with pytest.raises(Nonsense, match="the most"):
            engine(exchange, limit_bytes=size_bytes - 1)


@pytest.mark.parametrize("reply", [None, 7, [], {}, {"data": "text"}, {"data": {"blob": 1}}])
def test_an_answer_without_data_loses_the_worker(reply: Any) -> None:
    exchange, _ = ready()
    with pytest.raises(Nonsense):
        exchange.fetched(reply, limit_bytes=LIMIT)


def test_a_runtime_that_can_do_no_more_is_the_workers_loss() -> None:
    runtime = Engines()
    exchange, wire = ready(runtime)
    with pytest.raises(CandidateError, match="illegal memory access") as caught:
        exchange.request("build", {"model": "model"}, 1.0)
    assert caught.value.stage == "build"
    runtime.broken = "error 700 stays"
    with pytest.raises(WorkerLost, match="error 700 stays"):
        exchange.request("build", {"model": "model"}, 1.0)
    assert wire.worker.lost == "error 700 stays"


def test_a_probe_that_fails_is_an_answer() -> None:
    class Hopeless(Engines):
        def lost(self) -> str | None:
            raise OSError("no context")

    exchange, _ = ready(Hopeless())
    with pytest.raises(WorkerLost, match="no context"):
        exchange.request("build", {"model": "model"}, 1.0)


class Listener(list[dict[str, Any]]):
    """A channel on which nothing is asked; what was said is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)


@pytest.mark.parametrize("own", [None, "FASTEST_FIRST"])
def test_cuda_counts_devices_as_nvidia_smi_does_unless_told_otherwise(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", own or "")
    if own is None:
        monkeypatch.delenv("CUDA_DEVICE_ORDER")
    channel, watchdog = Listener(), SimpleNamespace(started=lambda: None)
    settings = {"engine_bytes": 8}
    options = {
        **{"runtime": "fake", "settings": settings},
        **{"lock": False, "remote": False, "import_s": {}},
    }
    serve(channel, watchdog, options)  # type: ignore[arg-type]
    assert os.environ["CUDA_DEVICE_ORDER"] == (own or "PCI_BUS_ID")
    (hello,) = channel.said
    assert hello["result"] == {
        "pid": os.getpid(),
        "fixed": {},
        "import_s": {},
        "capabilities": ["engine"],
        "cache_bytes": None,
    }


def capped(sent: bytes) -> transport.CappedIO:
    process: Any = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(sent))
    return transport.CappedIO(process, None)


def test_a_message_longer_than_any_of_ours_ends_the_connection() -> None:
    with pytest.raises(EOFError, match="a message of"):
        capped(b"").read(transport.MAX_MESSAGE_BYTES + 1)


def test_more_than_was_asked_for_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNREAD_BYTES", 1000)
    wire = capped(b"x" * 10_000)
    for _ in range(5):
        wire.read(900)
        wire.unread_bytes = 0  # as Link.receive does
    wire.read(900)
    with pytest.raises(EOFError, match="nobody asked for"):
        wire.read(900)
