"""hwloop: a trained network and a target in, the fastest network within an accuracy budget out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwloop.errors import (
    CandidateError,
    EnvironmentProblem,
    ExitCode,
    HwloopError,
    TargetError,
    UsageError,
)

if TYPE_CHECKING:
    from hwloop.api import bench, load, optimize

__version__ = "0.1.0"
__all__ = [
    "CandidateError",
    "EnvironmentProblem",
    "ExitCode",
    "HwloopError",
    "TargetError",
    "UsageError",
    "__version__",
    "bench",
    "load",
    "optimize",
]


def __getattr__(name: str) -> Any:
    # Importing hwloop must not load torch: only the first use of these does.
    if name in ("bench", "load", "optimize"):
        from hwloop import api

        return getattr(api, name)
    raise AttributeError(f"module 'hwloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
