"""What a run is about, compared: by this a run belongs to its inputs.

They are stored in ``config.json`` and in the store, and they are part of the key of every stored
score, latency and probe, so that figures of two networks never meet.
"""

from __future__ import annotations

from typing import Any

from hwloop.parsing import digest

VERSIONED = ("hwloop", "torch", "onnx", "onnxruntime", "openvino", "numpy")
NAMED = {
    "weights": "the network's weights",
    "architecture": "the network's architecture",
    "example": "the example input",
    "scoring": "the task's metric, loss or what they use",
    "target": "the target's profile",
    "train": "the data of the train split or its transform",
    "search": "the data of the search split or its transform",
    "test": "the data of the test split or its transform",
}


def key_of(inputs: dict[str, Any]) -> str:
    """One digest for all of them: a part of the key of what is stored."""
    return digest(inputs)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two runs' inputs, named for people."""
    found = [text for name, text in NAMED.items() if before.get(name) != now.get(name)]
    versions, own = before.get("hwloop"), now["hwloop"]
    versions = versions if isinstance(versions, dict) else {}
    for area in sorted(set(versions) | set(own)):
        if versions.get(area) != own.get(area):
            found.append(f"hwloop's {area} (version {versions.get(area)}, now {own.get(area)})")
    return found


def versions() -> dict[str, str]:
    """What is installed: kept with a run for people, who may wonder why something changed."""
    from importlib import metadata  # a tenth of the time that a report takes to start

    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
