"""Target profiles: what was asked for of a target, and the rules that follow once it is known.

What was *found* is the fingerprint. :mod:`hwloop.measure.profile_file` reads ``profiles/*.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwloop.compress.rules import SpaceRules
from hwloop.errors import UsageError
from hwloop.findings import Protocol
from hwloop.measure.hosts import Host
from hwloop.runtimes.known import named
from hwloop.runtimes.runtime import Runtime
from hwloop.runtimes.simulated import Simulated

PACKAGE = Path(__file__).parents[1]
AUTO = "auto"
"""The recipe is left to the target."""


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """The ways to measure: a table row, a candidate in the loop, a finalist, `hwloop bench`."""

    row: Protocol = Protocol(
        warmup_s=0.02,
        rounds=3,
        turn_s=0.002,
        min_samples=120,
        max_samples=600,
        target_halfwidth=0.02,
        time_limit_s=0.25,
    )
    loop: Protocol = Protocol()
    final: Protocol = Protocol(
        warmup_s=1.0,
        rounds=12,
        min_samples=240,
        max_samples=12_000,
        target_halfwidth=0.003,
        time_limit_s=25.0,
    )
    bench: Protocol = Protocol(
        warmup_s=0.3,
        rounds=8,
        min_samples=64,
        max_samples=8000,
        target_halfwidth=0.003,
        time_limit_s=2.4,
    )


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """What is printed about the hardware: for rehearsals and sanity checks, never a measurement.

    Attributes:
        tmacs_per_s: dense 10^12 multiply-accumulates per second, by precision.
        gbytes_per_s: memory bandwidth.
        source: where the figures come from.
        verified: False where a figure is derived or second-hand.
    """

    tmacs_per_s: dict[str, float]
    gbytes_per_s: float
    source: str
    verified: bool = False


@dataclass(frozen=True, kw_only=True)
class TargetProfile:
    """One target as asked for.

    Attributes:
        name: the file's stem; ``--target NAME``.
        runtime: the name of one of :data:`hwloop.runtimes.known.RUNTIMES`.
        transport: local, or ssh.
        host: where ``ssh`` goes; an OpenSSH alias of the profile's name unless it says otherwise.
        python: the interpreter on the target, for ``ssh``.
        settings: passed to the runtime; see profiles/README.md.
        align: channels that widths are multiples of, or None to follow the instruction set.
        space: what the target can make use of, ``align`` resolved by :func:`rules_for`.
        recipe: quantization recipe, or auto.
        build_timeout_s, call_timeout_s: deadlines for one build and any other request.
        reconnect_s: how long a lost board is called before the run stops.
        simulated: True where latencies are computed, not measured.
        verified: True where the project has run this target on real hardware.
        datasheet: printed figures of the hardware; only ``--simulate`` computes with them.
    """

    name: str
    description: str
    runtime: str
    transport: str = "local"
    host: Host | None = None
    python: str = "python3"
    settings: dict[str, Any] = field(default_factory=dict)
    align: int | None = None
    space: SpaceRules = SpaceRules()
    recipe: str = AUTO
    protocols: Protocols = Protocols()
    build_timeout_s: float = 120.0
    call_timeout_s: float = 120.0
    reconnect_s: float = 60.0
    simulated: bool = False
    verified: bool = False
    datasheet: Datasheet | None = None

    @property
    def kind(self) -> type[Runtime]:
        """The class of its runtime."""
        return named(self.runtime)


def simulated(profile: TargetProfile) -> TargetProfile:
    """The roofline of a profile in the place of its hardware: same space, same recipe, no board.

    Raises:
        UsageError: the profile has no datasheet.
    """
    sheet = profile.datasheet
    if sheet is None:
        raise UsageError(
            f"target {profile.name!r} has no datasheet to compute with", "--target fake"
        )
    roofline = {
        "device": f"simulated {profile.name}",
        "gmacs_per_s": {name: rate * 1000 for name, rate in sheet.tmacs_per_s.items()},
        "gbytes_per_s": sheet.gbytes_per_s,
    }
    return replace(
        profile,
        runtime=Simulated.name,
        transport="local",
        host=None,
        settings={"roofline": roofline},
        align=rules_for(profile, "").align,
        recipe=recipe_for(profile, ""),
        simulated=True,
        verified=False,
    )


def rules_for(profile: TargetProfile, isa: str) -> SpaceRules:
    """The profile's rules with ``align`` and ``recipe`` resolved for the instruction set found."""
    align = profile.align or profile.kind.align_for(isa)
    return replace(profile.space, align=align, recipe=recipe_for(profile, isa))


def recipe_for(profile: TargetProfile, isa: str) -> str:
    """The quantization recipe: the profile's, or the one for the instruction set found."""
    return profile.kind.recipe_for(isa) if profile.recipe == AUTO else profile.recipe


def document(name: str) -> Path:
    """Where a text of ours is on this machine: installed with the package, or in the checkout."""
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name
