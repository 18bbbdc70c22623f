"""What a target can make use of: the limits within which actions are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FIRST_RECIPE = "ort-x86"
"""What profiles that leave the recipe to the target have always been known by."""


@dataclass(frozen=True, kw_only=True)
class SpaceRules:
    """What a target can make use of; read from its profile.

    Attributes:
        align: widths are multiples of this many channels.
        precisions: subset of (base, int8, fp8).
        base_precision: what ``base`` means on this target: fp32 or fp16.
        kinds: action kinds that can pay on this target: methods of
            :data:`hwloop.compress.methods.METHODS`.
        recipe: which runtime's graphs are written (:mod:`hwloop.runtimes.known`); it decides which
            layers int8 can pay for, and which changes of precision cost time. Empty until it is
            known what the target is.
        kept_float: ONNX operators that stay FP32 where the base precision is FP16.
        refused_kinds: kinds of quantized rows (:func:`hwloop.runtimes.rowkinds.kind_of`) that
            the target does not build: no group that needs one may be quantized so.
    """

    align: int = 8
    precisions: tuple[str, ...] = ("base", "int8")
    base_precision: str = "fp32"
    kinds: tuple[str, ...] = ("keep", "prune")
    recipe: str = ""
    kept_float: tuple[str, ...] = ()
    refused_kinds: tuple[str, ...] = ()

    def asked(self) -> dict[str, Any]:
        """What a profile asks for by field, without what is found out afterwards."""
        found = {**vars(self), "recipe": self.recipe or FIRST_RECIPE}
        for name in ("kept_float", "refused_kinds"):
            del found[name]
        return found
