"""What a profile may say: keys, types and limits; see profiles/README.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwloop.compress import methods
from hwloop.compress.rules import SpaceRules
from hwloop.compress.space import PRECISIONS
from hwloop.errors import UsageError, closest
from hwloop.measure.hosts import Host, check_python, parse_host
from hwloop.measure.profile import AUTO, Datasheet, Protocols, TargetProfile, document
from hwloop.parsing import a_text, shown
from hwloop.runtimes.known import RECIPES, RUNTIMES, named, writing
from hwloop.runtimes.runtime import Runtime

TRANSPORTS = ("local", "ssh")
FAULTY_VERBS, FAULTS = ("build", "compare", "infer"), ("die", "hang", "nonsense", "refuse")
CUDA_BACKENDS = ("auto", "pycuda", "cuda-bindings", "cudart")
LARGEST_NUMBER = 1_000_000  # of seconds, samples, rates: more cannot be meant
NUMBER = (int, float)


def parse(path: Path, data: dict[str, Any]) -> TargetProfile:
    """A profile of a file's content. Raises UsageError for a wrong key or value."""
    reader = _Reader(path)
    top = _top(reader, data)
    timeouts = reader.table(
        top.get("timeouts", {}),
        "timeouts",
        {"build_s": NUMBER, "call_s": NUMBER, "reconnect_s": NUMBER},
    )
    reader.positive("timeouts", timeouts)
    rules, align, recipe = _rules(reader, top.get("space", {}))
    runtime = named(top["runtime"])
    writes = runtime if recipe == AUTO else type(writing(recipe))
    _check_base_precision(reader, rules.base_precision, runtime, writes)
    datasheet = _datasheet(reader, top["datasheet"]) if "datasheet" in top else None
    if "fp8" in rules.precisions:
        _check_fp8(reader, rules, writes, datasheet)
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
        simulated=bool(top.get("simulated", False)) or named(top["runtime"]).is_simulated,
        verified=bool(top.get("verified", False)),
        datasheet=datasheet,
    )


def _top(reader: _Reader, data: dict[str, Any]) -> dict[str, Any]:
    """The keys outside of all tables, their types checked."""
    words = dict.fromkeys(("description", "runtime", "transport", "host", "python"), str)
    flags = dict.fromkeys(("verified", "simulated"), bool)
    tables = dict.fromkeys(("datasheet", "settings", "space", "timeouts", "protocol"), dict)
    top = reader.table(data, "", {**words, **flags, **tables})
    for key in ("description", "runtime"):
        if key not in top:
            raise reader.error(f"{key} is missing")
    reader.printable("description", top["description"])
    reader.choice("runtime", top["runtime"], [known.name for known in RUNTIMES])
    reader.choice("transport", top.get("transport", "local"), TRANSPORTS)
    return top


def _check_fp8(
    reader: _Reader, rules: SpaceRules, writes: type[Runtime], datasheet: Datasheet | None
) -> None:
    if not writes.has_fp8:
        only = ", ".join(word for known in RUNTIMES if known.has_fp8 for word in known.recipes)
        raise reader.error(f"space.precisions has fp8: only the recipe {only} writes it")
    if rules.base_precision != "fp16":
        raise reader.error('space.precisions has fp8, which needs space.base_precision = "fp16"')
    if datasheet is not None and "fp8" not in datasheet.tmacs_per_s:
        raise reader.error("datasheet.tmacs_per_s needs fp8 where space.precisions has it")


def _check_base_precision(
    reader: _Reader, base: str, runtime: type[Runtime], writes: type[Runtime]
) -> None:
    """Unquantized layers run in what the runtime, or the one that writes the graphs, has."""
    if base in runtime.base_precisions or base in writes.base_precisions:
        return
    others = [word for known in RUNTIMES if base in known.base_precisions for word in known.recipes]
    raise reader.error(
        f"space.base_precision is {base!r}: only the recipe {', '.join(others)} writes it"
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
    speeds = reader.table(values["tmacs_per_s"], where, {**rates, "fp8": NUMBER})
    if not set(rates) <= set(speeds):
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
    recipe = space.get("recipe", AUTO)
    reader.choice("space.recipe", recipe, (AUTO, *RECIPES))
    rules = SpaceRules()
    base = space.get("base_precision", rules.base_precision)
    precisions = tuple(space.get("precisions", rules.precisions))
    known = [method.kind for method in methods.METHODS]
    usual = [method.kind for method in methods.METHODS if method.usual]
    kinds = tuple(space.get("kinds", usual))
    reader.choice("space.base_precision", base, ("fp32", "fp16"))
    for value in precisions:
        reader.choice("space.precisions", value, sorted(PRECISIONS))
    for value in kinds:
        reader.choice("space.kinds", value, sorted(known))
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
