"""What stands beside latency and accuracy: energy, copies, precisions, others who used the machine;
stored and in words.
"""

from __future__ import annotations

from typing import Any

from hwloop.parsing import (
    A_COUNT,
    ANY_NUMBER,
    ANY_TEXT,
    Check,
    a_list,
    a_mapping,
    a_text,
    an_object,
    optional,
)

ENERGY = an_object(
    {
        **dict.fromkeys(("energy_mj", "mean_mw", "samples", "runs"), ANY_NUMBER),
        "source": a_text(80, ANY_TEXT),
    },
    later={"idle_mw": ANY_NUMBER, "rails": a_list(a_text(80, ANY_TEXT), 0, 100)},
)
COPIES = an_object(
    {
        **dict.fromkeys(("with_copies_ms", "without_copies_ms"), ANY_NUMBER),
        "copied_bytes": A_COUNT,
    }
)
DISTURBANCE = a_mapping(optional(ANY_NUMBER))
TOLD_FROM = 0.05


def of_both(check: Check) -> Check:
    """A check of what was found of the baseline and of the best, or why it could not be."""
    pair = an_object({"baseline": check, "best": check})
    failed = an_object({"failed": a_text(10_000, ANY_TEXT)})
    return lambda value: (failed if isinstance(value, dict) and "failed" in value else pair)(value)


# ------------------------------------------------------------------------------ for people


def copies_lines(report: dict[str, Any]) -> list[str]:
    """One line on both networks, where the target copies anything."""
    parts = []
    for name in ("baseline", "best"):
        found = report[name].get("copies")
        if found is not None:
            parts.append(
                f"{name} {found['with_copies_ms']:.3f} ms, {found['without_copies_ms']:.3f} ms "
                f"without ({found['copied_bytes'] / 1e3:.1f} kB)"
            )
    return [f"with inputs and outputs copied (pinned memory): {'; '.join(parts)}"] if parts else []


def disturbance_lines(found: dict[str, Any]) -> list[str]:
    """One line on who else used the machine during a measurement; none where it was hardly used."""
    taken, busy = found.get("core_taken_share"), found.get("other_cores_busy_share")
    parts = []
    if taken is not None and taken >= TOLD_FROM:
        parts.append(f"{taken:.0%} of its core")
    if busy is not None and busy >= TOLD_FROM:
        parts.append(f"{busy:.0%} of the other cores")
    share = found.get("disturbed_share") or 0.0
    told = f"others used {' and '.join(parts)} meanwhile; {share:.0%} of the samples were disturbed"
    return [told] if parts else []


def energy_line(name: str, found: dict[str, Any]) -> str:
    """Of one network; older records know nothing of rails and of idle power."""
    about = [found["source"]]
    if found.get("rails"):
        about.append(f"rails {' + '.join(found['rails'])}")
    if found.get("mean_mw") is not None:
        idle_mw = found.get("idle_mw")
        idle = "idle not readable" if idle_mw is None else f"{idle_mw / 1000:.2f} W idle before"
        about.append(f"{found['mean_mw'] / 1000:.2f} W under load, {idle}")
    return f"{name}: {found['energy_mj']:.2f} mJ per inference, idle included ({'; '.join(about)})"


def precision_lines(found: dict[str, Any], *, groups: int) -> list[str]:
    """What stays FP32 where FP16 ships, and which INT8 is masked; nothing where neither is so."""
    lines = []
    if found["base"] == "fp16":
        kept, why = found["kept_float"], found["kept_float_why"]
        lines.append(
            f"FP16, with {', '.join(kept)} in FP32: {why}" if kept else "FP16 in every operator"
        )
    if found["int8_refused"]:
        reasons = "; ".join(f"{kind}: {why}" for kind, why in found["int8_refused"].items())
        masked = len(found["int8_masked_groups"])
        lines.append(f"INT8 is masked for {masked} of {groups} groups: {reasons}")
    return lines
