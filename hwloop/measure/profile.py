"""Target profiles: find, read and validate ``profiles/*.toml``.

A profile is what was *asked for*; what was *found* is the fingerprint. It holds no key, no
password and no command. profiles/README.md is the schema as a table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hwloop.compress.space import ACTIONS, SpaceRules
from hwloop.errors import UsageError, closest
from hwloop.files import read_file
from hwloop.findings import Protocol
from hwloop.measure.hosts import Host, check_python, parse_host
from hwloop.parsing import a_text, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).parents[1]
PACKAGED = PACKAGE / "profiles"
CHECKOUT = PACKAGE.parent / "profiles"
LARGEST_PROFILE_BYTES = 1 << 20
RUNTIMES = ("onnxruntime", "tensorrt", "fake")
TRANSPORTS = ("local", "ssh")
RECIPES = ("auto", "ort-x86", "ort-arm", "tensorrt")
FAULTY_VERBS, FAULTS = ("build", "compare", "infer"), ("die", "hang", "nonsense", "refuse")
CUDA_BACKENDS = ("auto", "pycuda", "cuda-bindings", "cudart")
TENSORRT_ALIGN = 8
WIDE_NCHWC_ALIGN, NARROW_NCHWC_ALIGN = 16, 8
LARGEST_NUMBER = 1_000_000  # of seconds, samples, rates: more cannot be meant
NUMBER = (int, float)


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
        runtime: onnxruntime, tensorrt or fake.
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
    recipe: str = "auto"
    protocols: Protocols = Protocols()
    build_timeout_s: float = 120.0
    call_timeout_s: float = 120.0
    reconnect_s: float = 60.0
    simulated: bool = False
    verified: bool = False
    datasheet: Datasheet | None = None


def load_profile(name: str) -> TargetProfile:
    """Find a profile by name or path: an explicit file, ``./profiles``, the packaged copies.

    Raises:
        UsageError: unknown name (the closest is named), unreadable file, wrong key or value.
    """
    path = _find(name)
    text = read_file(
        path, what="a profile", limit_bytes=LARGEST_PROFILE_BYTES, hint="hwloop target list"
    )
    try:
        data = tomllib.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise UsageError(
            f"cannot read profile {path}: nested too deeply", "correct the file"
        ) from error
    except ValueError as error:  # of TOML, of UTF-8, of an integer with thousands of digits
        raise UsageError(f"cannot read profile {path}: {error}", "correct the file") from error
    return _parse(path, data)


def resolve(target: str, *, host: str | None = None, simulate: bool = False) -> TargetProfile:
    """The target that a command is about.

    Args:
        host: measure at the other end of ``ssh`` to this host, whatever the profile says.
        simulate: compute latencies from the profile's datasheet instead of measuring.

    Raises:
        UsageError: unknown profile, impossible host, a profile without a datasheet, or one that
            asks for more cores than this machine has.
    """
    profile = load_profile(target)
    if simulate and host is not None:
        raise UsageError("--simulate needs no board, --host names one", "give one of the two")
    if simulate:
        return simulated(profile)
    if host is not None:
        return replace(profile, transport="ssh", host=parse_host(host))
    # At the other end of ssh it is the worker that counts.
    cores = len(os.sched_getaffinity(0))
    threads = profile.settings.get("threads", 1)
    if profile.transport == "local" and profile.runtime == "onnxruntime" and threads > cores:
        raise UsageError(
            f"target {target!r} asks for settings.threads = {threads}, this process may use "
            f"{cores} cores",
            f"threads = {cores} in [settings] of the profile",
        )
    return profile


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
        runtime="fake",
        transport="local",
        host=None,
        settings={"roofline": roofline},
        align=rules_for(profile, "").align,
        recipe=recipe_for(profile, ""),
        simulated=True,
        verified=False,
    )


def document(name: str) -> Path:
    """Where a text of ours is on this machine: installed with the package, or in the checkout."""
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name


def known_profiles() -> dict[str, Path]:
    """Every profile that ``--target`` finds by name."""
    found: dict[str, Path] = {}
    for folder in (Path("profiles"), PACKAGED, CHECKOUT):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def rules_for(profile: TargetProfile, isa: str) -> SpaceRules:
    """The profile's rules with ``align`` and ``recipe`` resolved for the instruction set found.

    TensorRT's FP16 kernels take channels by eights. FP32 convolutions on AVX-512 pad to 16
    channels. With VNNI the int8 kernels are the fast ones, and they do gain from 8 (16 to 8
    channels at 28x28: 20.8 to 14.6 microseconds).
    """
    flags = isa.split("+")
    wide = "avx512f" in flags and not any("vnni" in flag for flag in flags)
    auto = WIDE_NCHWC_ALIGN if wide else NARROW_NCHWC_ALIGN
    if profile.runtime == "tensorrt":
        auto = TENSORRT_ALIGN
    recipe = recipe_for(profile, isa)
    return replace(profile.space, align=profile.align or auto, recipe=recipe)


def recipe_for(profile: TargetProfile, isa: str) -> str:
    """The quantization recipe: the profile's, or the one for the instruction set found."""
    if profile.recipe != "auto":
        return profile.recipe
    if profile.runtime == "tensorrt":
        return "tensorrt"
    return "ort-arm" if "asimd" in isa.split("+") else "ort-x86"


def _find(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if os.path.lexists(name):
            return path
        raise UsageError(f"no profile at {name}", "hwloop target list")
    profiles = known_profiles()
    if name in profiles:
        return profiles[name]
    raise UsageError(
        f"unknown target {name!r}: {closest(name, profiles)}",
        "hwloop target list   (or --target path/to/profile.toml)",
    )


def _parse(path: Path, data: dict[str, Any]) -> TargetProfile:
    reader = _Reader(path)
    top = reader.table(
        data,
        "",
        {
            "description": str,
            "runtime": str,
            "transport": str,
            "host": str,
            "python": str,
            "datasheet": dict,
            "verified": bool,
            "simulated": bool,
            "settings": dict,
            "space": dict,
            "timeouts": dict,
            "protocol": dict,
        },
    )
    for key in ("description", "runtime"):
        if key not in top:
            raise reader.error(f"{key} is missing")
    reader.printable("description", top["description"])
    reader.choice("runtime", top["runtime"], RUNTIMES)
    reader.choice("transport", top.get("transport", "local"), TRANSPORTS)
    timeouts = reader.table(
        top.get("timeouts", {}),
        "timeouts",
        {"build_s": NUMBER, "call_s": NUMBER, "reconnect_s": NUMBER},
    )
    reader.positive("timeouts", timeouts)
    rules, align, recipe = _rules(reader, top.get("space", {}))
    if rules.base_precision == "fp16" and "tensorrt" not in (top["runtime"], recipe):
        raise reader.error("space.base_precision is 'fp16': only the recipe tensorrt writes it")
    return TargetProfile(
        name=path.stem,
        description=top["description"],
        runtime=top["runtime"],
        transport=top.get("transport", "local"),
        host=_host(reader, top),
        python=reader.within(check_python, top.get("python", "python3")),
        settings=_settings(reader, top.get("settings", {})),
        align=align,
        space=rules,
        recipe=recipe,
        protocols=_protocols(reader, top.get("protocol", {})),
        build_timeout_s=float(timeouts.get("build_s", 120.0)),
        call_timeout_s=float(timeouts.get("call_s", 120.0)),
        reconnect_s=float(timeouts.get("reconnect_s", 60.0)),
        simulated=bool(top.get("simulated", False)) or top["runtime"] == "fake",
        verified=bool(top.get("verified", False)),
        datasheet=_datasheet(reader, top["datasheet"]) if "datasheet" in top else None,
    )


def _host(reader: _Reader, top: dict[str, Any]) -> Host | None:
    """Where ``ssh`` goes; a host that is not used now is checked as well."""
    far = top.get("transport", "local") == "ssh"
    if not far and "host" not in top:
        return None
    host: Host = reader.within(parse_host, top.get("host", reader.path.stem))
    return host if far else None


def _datasheet(reader: _Reader, data: dict[str, Any]) -> Datasheet:
    kinds: dict[str, Any] = {"tmacs_per_s": dict, "gbytes_per_s": NUMBER, "source": str}
    values = reader.table(data, "datasheet", {**kinds, "verified": bool})
    for key in kinds:
        if key not in values:
            raise reader.error(f"datasheet.{key} is missing")
    rates = dict.fromkeys(("fp32", "fp16", "int8"), NUMBER)
    where = "datasheet.tmacs_per_s"
    speeds = reader.table(values["tmacs_per_s"], where, rates)
    if set(speeds) != set(rates):
        raise reader.error(f"{where} needs fp32, fp16 and int8")
    reader.positive(where, speeds)
    reader.positive("datasheet", {"gbytes_per_s": values["gbytes_per_s"]})
    reader.printable("datasheet.source", values["source"])
    return Datasheet(**values)


def _settings(reader: _Reader, data: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "threads": int,
        "faults": dict,
        "optimization_level": int,
        "avg_timing_iterations": int,
        "workspace_mib": int,
        "cuda": str,
        "cuda_graph": bool,
        "tf32": bool,
    }
    settings = reader.table(data, "settings", kinds)
    limits = {
        "threads": (1, 256),
        "optimization_level": (0, 5),
        "avg_timing_iterations": (1, 64),
        "workspace_mib": (16, 1 << 20),
    }
    for key, (low, high) in limits.items():
        if not low <= settings.get(key, low) <= high:
            raise reader.error(f"settings.{key} must be from {low} to {high}")
    reader.choice("settings.cuda", settings.get("cuda", "auto"), CUDA_BACKENDS)
    for verb, fault in settings.get("faults", {}).items():
        where = f"settings.faults.{verb}"
        reader.choice("settings.faults", verb, FAULTY_VERBS)
        reader.table(fault, where, {"kind": str, "after": int, "times": int})
        reader.choice(f"{where}.kind", fault.get("kind"), FAULTS)
    return settings


def _rules(reader: _Reader, data: Any) -> tuple[SpaceRules, int | None, str]:
    """The rules as written, their alignment (None: by the instruction set), and the recipe."""
    lists = {"precisions": list, "kinds": list}
    words = {"base_precision": str, "recipe": str}
    space = reader.table(data, "space", {"align": (int, str), **words, **lists})
    align = space.get("align", "auto")
    if align != "auto" and not (isinstance(align, int) and 1 <= align <= 1024):
        raise reader.error("space.align must be a number from 1 to 1024, or 'auto'")
    recipe = space.get("recipe", "auto")
    reader.choice("space.recipe", recipe, RECIPES)
    rules = SpaceRules()
    base = space.get("base_precision", rules.base_precision)
    precisions = tuple(space.get("precisions", rules.precisions))
    kinds = tuple(space.get("kinds", rules.kinds))
    reader.choice("space.base_precision", base, ("fp32", "fp16"))
    for value in precisions:
        reader.choice("space.precisions", value, sorted({a.precision for a in ACTIONS}))
    for value in kinds:
        reader.choice("space.kinds", value, sorted({a.kind for a in ACTIONS}))
    # The dense network is the baseline of every search, so leaving a group alone is always legal.
    for where, needed, values in (("precisions", "base", precisions), ("kinds", "keep", kinds)):
        if needed not in values:
            raise reader.error(f"space.{where} must have {needed!r}")
    rules = replace(rules, base_precision=base, precisions=precisions, kinds=kinds)
    return rules, None if align == "auto" else align, recipe


def _protocols(reader: _Reader, data: dict[str, Any]) -> Protocols:
    stages = reader.table(
        data, "protocol", {"row": dict, "loop": dict, "final": dict, "bench": dict}
    )
    defaults = Protocols()
    kinds: dict[str, Any] = {
        "warmup_s": NUMBER,
        "rounds": int,
        "sample_s": NUMBER,
        "turn_s": NUMBER,
        "min_samples": int,
        "max_samples": int,
        "target_halfwidth": NUMBER,
        "time_limit_s": NUMBER,
    }
    made = {}
    for stage, value in stages.items():
        fields = reader.table(value, f"protocol.{stage}", kinds)
        reader.positive(f"protocol.{stage}", fields)
        made[stage] = replace(getattr(defaults, stage), **fields)
    return replace(defaults, **made)


class _Reader:
    """Checks keys and types and says which file and key is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, message: str) -> UsageError:
        keys = document("profiles/README.md")
        return UsageError(f"profile {self.path}: {message}", f"see {keys} for the keys")

    def table(self, data: Any, where: str, kinds: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise self.error(f"{where} must be a table")
        for key, value in data.items():
            name = f"{where}.{key}" if where else key
            if key not in kinds:
                raise self.error(f"unknown key {shown(name)}: {closest(key, kinds)}")
            wanted = kinds[key]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise self.error(f"{name} has the wrong type: {shown(value)}")
        return dict(data)

    def positive(self, where: str, numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            if not 0 < value <= LARGEST_NUMBER:
                limits = f"above zero and finite, at most {LARGEST_NUMBER}"
                raise self.error(f"{where}.{name} must be {limits}")

    def choice(self, where: str, value: Any, known: Any) -> None:
        if value not in known:
            raise self.error(f"{where} is {shown(value)}: {closest(str(value)[:40], known)}")

    def printable(self, where: str, text: str) -> None:
        try:
            a_text()(text)
        except ValueError as error:
            raise self.error(f"{where}: {error}") from error

    def within(self, parse: Callable[[str], Any], text: str) -> Any:
        """What ``parse`` makes of a text; its refusal names the file."""
        try:
            return parse(text)
        except UsageError as error:
            raise UsageError(f"profile {self.path}: {error.args[0]}", error.hint) from error
