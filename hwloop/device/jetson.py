"""What a Jetson says about itself: module, JetPack, power mode, clocks, heat.

Everything is read from files that any user may read; nothing is changed and nothing is started.
What cannot be read is None. ``root`` is the file system's root, another one in tests.

Sources: the Jetson Linux Developer Guide (nvpmodel, INA3221, over-current throttling), the devfreq,
thermal and hwmon interfaces of the Linux kernel, and files recorded on boards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path("/")
SOCS = {
    "tegra210": "Nano or TX1",
    "tegra186": "TX2",
    "tegra194": "Xavier",
    "tegra234": "Orin",
    "tegra264": "Thor",
}
MODULES = {
    "p3767-0000": "Orin NX 16GB",
    "p3767-0001": "Orin NX 8GB",
    "p3767-0003": "Orin Nano 8GB",
    "p3767-0004": "Orin Nano 4GB",
    "p3767-0005": "Orin Nano 8GB",  # of the developer kit
    "p3701-0000": "AGX Orin",  # of the first developer kits: 64GB's GPU, 32 GB of memory
    "p3701-0004": "AGX Orin 32GB",
    "p3701-0005": "AGX Orin 64GB",
    "p3701-0008": "AGX Orin Industrial",
    "p3834-0008": "Thor T5000",
    "p3668-0000": "Xavier NX",
    "p3668-0001": "Xavier NX",
    "p3668-0003": "Xavier NX 16GB",
    "p2888-0001": "AGX Xavier",
    "p2888-0004": "AGX Xavier 32GB",
    "p2888-0005": "AGX Xavier 64GB",
    "p3310-1000": "TX2",
    "p3636-0001": "TX2 NX",
    "p3448-0000": "Nano",
    "p3448-0002": "Nano",
    "p3448-0003": "Nano 2GB",
}
JETPACKS = {
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.4.1": "5.1.2",
    "35.6.4": "5.1.6",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.2.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
}
# The GPU's own name first: an alias may stand beside it.
GPU_DEVFREQ = ("gpu-gpc-*", "*.ga10b", "*.gv11b", "*.gp10b", "*.gm20b", "*.gpu")
EMC_DEVFREQ = ("bwmgr",)
EMC_DEBUG = "sys/kernel/debug/bpmp/debug/clk/emc"  # root only on most systems
EMC_CAPS = ("sys/kernel/nvpmodel_clk_cap/emc", "sys/kernel/nvpmodel_emc_cap/emc_iso_cap")
MAX_PLAUSIBLE_HZ = 10**11  # "no limit" is written as a very large number
OFF_BELOW_C = -40.0  # a sensor in a part that is switched off reads -256
CAP_TOLERANCE = 0.95  # limits are rounded down to a step of the clock
DUMMY_ZONES = ("PMIC-Die", "PMIC-therm")  # they say 100 or 50 for ever
_PART = re.compile(r"p\d{4}-\d{4}")
_MODE = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", re.MULTILINE)


def read_text(path: Path) -> str | None:
    """A file's text without surrounding blanks, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """A file that holds one whole number, or None."""
    text = read_text(path) or ""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def snapshot(root: Path = ROOT) -> dict[str, Any] | None:
    """Everything below in one record, or None where the machine is no Jetson."""
    soc, part = parse_compatible(read_text(root / "proc/device-tree/compatible") or "")
    l4t = parse_l4t(read_text(root / "etc/nv_tegra_release") or "")
    if soc is None and l4t is None:
        return None
    mode_id, mode = power_mode(root)
    model = (read_text(root / "proc/device-tree/model") or "").rstrip("\0 ")
    return {
        "module": MODULES.get(part or ""),
        "part": part,
        "model": model or None,
        "soc": soc,
        "soc_name": SOCS.get(soc or ""),
        "l4t": l4t,
        "jetpack": jetpack(root, l4t),
        "power_mode": mode,
        "power_mode_id": mode_id,
        "gpu": gpu_clock(root),
        "emc": emc_clock(root),
        "temperatures_c": temperatures_c(root),
        **throttling(root),
    }


def parse_compatible(text: str) -> tuple[str | None, str | None]:
    """(SoC, module's part number) from the device tree's NUL-separated list of names."""
    soc = re.search(r"nvidia,(tegra\d{3})", text)
    # The carrier board has a part number too, and may come first.
    parts = [part for part in _PART.findall(text) if part in MODULES]
    return (soc.group(1) if soc else None), (parts[0] if parts else None)


def parse_l4t(text: str) -> str | None:
    """``36.4.7`` from the first line of ``/etc/nv_tegra_release``."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(root: Path, l4t: str | None) -> str | None:
    """JetPack's version: of its package where that is installed, else the one of this L4T."""
    try:
        with (root / "var/lib/dpkg/status").open(encoding="utf-8", errors="replace") as lines:
            inside = False
            for line in lines:
                if line.startswith("Package: "):
                    inside = line.strip() == "Package: nvidia-jetpack"
                elif inside and line.startswith("Version: "):
                    return line.split(": ", 1)[1].strip().split("+")[0]
    except OSError:
        pass
    return JETPACKS.get(re.sub(r"\.0$", "", l4t)) if l4t else None


def parse_power_modes(conf: str) -> dict[int, dict[str, Any]]:
    """Modes by id from nvpmodel.conf: name, and the caps gpu_max_hz and emc_max_hz or None.

    The same id is another mode on another module, so only the name means something.
    """
    heads = list(_MODE.finditer(conf))
    modes = {}
    for head, after in zip(heads, [*heads[1:], None]):  # noqa: B905 - equally long
        body = conf[head.end() : after.start() if after else len(conf)]
        caps = {}
        for key, clock in (("gpu_max_hz", "GPU"), ("emc_max_hz", "EMC")):
            found = re.search(rf"^{clock} MAX_FREQ (\d+)\s*$", body, re.MULTILINE)
            caps[key] = int(found.group(1)) or None if found else None
        modes[int(head.group(1))] = {"name": head.group(2), **caps}
    return modes


def power_mode(root: Path = ROOT) -> tuple[int | None, str | None]:
    """(id, name) of the power mode that nvpmodel set last."""
    found = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return None, None
    mode = _modes(root).get(int(found.group(1)), {})
    return int(found.group(1)), mode.get("name")


def gpu_clock(root: Path = ROOT) -> dict[str, Any]:
    """mhz, min_mhz, max_mhz, locked, governor of the GPU; ``locked`` is what jetson_clocks does."""
    return _devfreq(root, GPU_DEVFREQ)


def emc_clock(root: Path = ROOT) -> dict[str, Any]:
    """mhz, max_mhz, locked of the memory controller.

    Thor shows it to everybody. On Orin only root sees the clock and the lock; the cap of the
    power mode, which is ``max_mhz`` there, is in a file that others may read.
    """
    clock = _devfreq(root, EMC_DEVFREQ)
    if clock["max_mhz"] is not None:
        return {key: clock[key] for key in ("mhz", "max_mhz", "locked")}
    debug = root / EMC_DEBUG
    caps = [read_int(root / path) for path in EMC_CAPS]
    caps += [read_int(debug / "max_rate"), _current_mode(root).get("emc_max_hz")]
    known = [cap for cap in caps if cap and cap < MAX_PLAUSIBLE_HZ]
    locked = read_int(debug / "mrq_rate_locked")
    return {
        "mhz": _mhz(read_int(debug / "rate")),
        "max_mhz": _mhz(min(known, default=None)),
        "locked": None if locked is None else locked > 0,
    }


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Degrees by thermal zone; zones that are switched off or make numbers up are left out."""
    found: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, value = read_text(zone / "type") or zone.name, read_int(zone / "temp")
        if value is not None and value / 1000 > OFF_BELOW_C and name not in DUMMY_ZONES:
            found[name] = max(value / 1000, found.get(name, OFF_BELOW_C))
    return found


def throttling(root: Path = ROOT) -> dict[str, Any]:
    """throttled, throttle_reasons, overcurrent_events: what can be known without root.

    ``throttled`` is about this instant: a thermal alert of the firmware is active, or the GPU's
    limit lies below what the power mode allows. It is None where neither can be read. A slow clock
    alone proves nothing, it may be idle. Over-current events are counted since the board started.
    """
    alerts: dict[str, int] = {}
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        name, level = read_text(device / "type") or "", read_int(device / "cur_state")
        if name.endswith("-throttle-alert") and level is not None:
            alerts[name] = level
    reasons = [f"{name} is active" for name, level in alerts.items() if level > 0]
    limit_mhz, allowed_mhz = gpu_clock(root)["max_mhz"], _allowed_gpu_mhz(root)
    if limit_mhz and allowed_mhz and limit_mhz < allowed_mhz * CAP_TOLERANCE:
        reasons.append(f"the GPU is limited to {limit_mhz} of {allowed_mhz} MHz")
    counters = [read_int(path) for path in root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")]
    events = [count for count in counters if count is not None]
    known = bool(alerts) or bool(limit_mhz and allowed_mhz)
    return {
        "throttled": bool(reasons) if known else None,
        "throttle_reasons": reasons,
        "overcurrent_events": sum(events) if events else None,
    }


def _modes(root: Path) -> dict[int, dict[str, Any]]:
    return parse_power_modes(read_text(root / "etc/nvpmodel.conf") or "")


def _current_mode(root: Path) -> dict[str, Any]:
    number, _ = power_mode(root)
    return {} if number is None else _modes(root).get(number, {})


def _allowed_gpu_mhz(root: Path) -> int | None:
    return _mhz(_current_mode(root).get("gpu_max_hz"))


def _devfreq(root: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    folders = [path for name in patterns for path in sorted(root.glob(f"sys/class/devfreq/{name}"))]
    folder = folders[0] if folders else root / "absent"
    low, high = read_int(folder / "min_freq"), read_int(folder / "max_freq")
    governor = read_text(folder / "governor")
    locked = None
    if low is not None and high is not None:
        locked = low == high or governor == "performance"
    return {
        "mhz": _mhz(read_int(folder / "cur_freq")),
        "min_mhz": _mhz(low),
        "max_mhz": _mhz(high),
        "locked": locked,
        "governor": governor,
    }


def _mhz(hertz: int | None) -> int | None:
    return None if hertz is None else round(hertz / 1e6)
