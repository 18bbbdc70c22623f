"""The files of a network that ships, or that is the best so far: what ``best/`` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save

from hwloop.compress.subject import Built, Subject
from hwloop.files import sha256
from hwloop.findings import Fingerprint
from hwloop.measure.answers import Engine
from hwloop.parsing import canonical_json, digest
from hwloop.run.folder import RunFolder
from hwloop.run.settings import Settings


@dataclass(frozen=True, kw_only=True, eq=False)
class Best:
    """Keeps one network loadable at any moment: the best that is known.

    Attributes:
        settings: with portable paths; see :func:`hwloop.run.config.portable`.
        fingerprint: of the device that engines are built on, and are valid for.
    """

    settings: Settings
    subject: Subject
    folder: RunFolder
    fingerprint: Fingerprint

    def keep(self, built: Built, note: dict[str, Any], engine: Engine | None = None) -> None:
        """From now on ``best`` leads to this network; ``note`` is added to candidate.json."""
        found = files(
            self.settings,
            self.subject,
            built,
            note=note,
            engine=engine,
            fingerprint=self.fingerprint,
        )
        self.folder.set_best(self.folder.save_candidate(name(found), found))


def files(
    settings: Settings,
    subject: Subject,
    built: Built,
    *,
    note: dict[str, Any],
    fingerprint: Fingerprint,
    engine: Engine | None = None,
) -> dict[str, bytes]:
    """Contents by file name: model.onnx, model.safetensors, candidate.json.

    Args:
        settings: with portable paths; see :func:`hwloop.run.config.portable`.
        note: added to candidate.json.
        fingerprint: of the device that the engine was built on, and is valid for.
        engine: adds model.engine, and engine.json with its SHA-256, its audit and that device.
    """
    state = weights(built)
    candidate = {
        "candidate": built.candidate,
        "groups": [group.name for group in subject.network.groups],
        "align": subject.rules.align,
        "input_shape": list(subject.example.shape),
        "model": settings.model,
        "task": settings.task,
        "data": settings.data,
        "safetensors_sha256": sha256(state),
        "onnx_sha256": built.model.digest,
        **note,
    }
    found = {
        "model.onnx": built.model.data,
        "model.safetensors": state,
        "candidate.json": _line(candidate),
    }
    if engine is not None:
        about = {"sha256": engine.sha256, "audit": engine.audit, "valid_for": fingerprint}
        found.update({"model.engine": engine.data, "engine.json": _line(about)})
    return found


def name(contents: dict[str, bytes]) -> str:
    """A folder name that is different for different contents."""
    return digest({key: sha256(value) for key, value in contents.items()})


def weights(built: Built) -> bytes:
    """The module's state as safetensors; weights that are shared are written for each user."""
    alone = torch.contiguous_format
    state = built.module.state_dict()
    state = {name: value.detach().clone(memory_format=alone) for name, value in state.items()}
    return bytes(save(state))


def _line(value: Any) -> bytes:
    return (canonical_json(value) + "\n").encode()
