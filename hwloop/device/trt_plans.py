"""Built engines, each built once for a session as far as memory goes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from hwloop.device import trt_child
from hwloop.device.trt_build import DEADLINE_S, BuildRequest

KEPT_PLAN_BYTES = 128 << 20
SPARSE = "2:4"


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A built engine as bytes, and the builder's record of it."""

    data: bytes
    record: dict[str, Any]


class Plans:
    """Builds engines in a process of their own, and keeps the latest.

    Args:
        settings: of the runtime.
        limits: workspace_mib and, where the GPU shares the CPU's memory, tactic_dram_mib.
        module: the name of TensorRT's module.
        timing_cache: path of the cache that all builds of this device share.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        limits: dict[str, int],
        *,
        module: str,
        timing_cache: str | None,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._module = module
        self._timing_cache = timing_cache
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def of(self, model: bytes, hints: dict[str, Any]) -> Plan:
        """Build, or find what was built before. Raises BuildFailed with the builder's reason."""
        request = self._request(hints)
        key = (hashlib.sha256(model).digest(), request.sparse, request.precision, request.row)
        plan = self._plans.get(key)
        if plan is None:
            data, record = trt_child.build_in_child(model, request, module=self._module)
            plan = self._plans[key] = Plan(data=data, record=record)
        self._plans.move_to_end(key)
        while len(self._plans) > 2 and self._kept_bytes() > KEPT_PLAN_BYTES:
            self._plans.popitem(last=False)
        return plan

    def _request(self, hints: dict[str, Any]) -> BuildRequest:
        settings = self._settings
        tactic_mib = self._limits.get("tactic_dram_mib")
        return BuildRequest(
            optimization_level=int(settings.get("optimization_level", 3)),
            avg_timing_iterations=int(settings.get("avg_timing_iterations", 8)),
            workspace_bytes=self._limits["workspace_mib"] << 20,
            tactic_dram_bytes=None if tactic_mib is None else tactic_mib << 20,
            tf32=bool(settings.get("tf32", False)),
            sparse=any(row.get("sparsity") == SPARSE for row in hints.get("configs", ())),
            precision=hints.get("precision"),
            row=bool(hints.get("row", False)),
            deadline_s=float(settings.get("build_timeout_s", DEADLINE_S)),
            timing_cache=self._timing_cache,
        )

    def _kept_bytes(self) -> int:
        return sum(len(plan.data) for plan in self._plans.values())
