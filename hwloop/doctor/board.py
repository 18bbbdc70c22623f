"""What is wrong on the machine that measures, by what its worker says; nothing of it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwloop.doctor.check import (
    FAIL,
    GIB,
    NEWEST_TENSORRT,
    OK,
    OLDEST_PYTHON,
    OLDEST_TENSORRT,
    WARN,
    Check,
    dotted,
    load,
    numbers,
    room,
    tensorrt_problem,
)
from hwloop.profile import TargetProfile

LITTLE_MEMORY_BYTES, ENOUGH_WITHOUT_SWAP_BYTES = 1 * GIB, 16 * GIB
HOT_C = 85.0
LONGEST_TEXT = 120
# SoC: what its last JetPack brings, and why that is not enough.
TOO_OLD_SOCS = {
    "tegra210": "JetPack 4 with TensorRT 8.2 and Python 3.6",
    "tegra186": "JetPack 4 with TensorRT 8.2 and Python 3.6",
    "tegra194": "JetPack 5 with TensorRT 8.5 and Python 3.8",
}


def board_checks(profile: TargetProfile, board: Mapping[str, Any]) -> list[Check]:
    """The lines about the machine that the worker runs on; what it did not say is not judged."""
    reason = unsupported_reason(board) if profile.runtime == "tensorrt" else None
    checks = [_identity(board)]
    if reason is not None:
        what, _, fix = reason.partition("; ")
        checks.append(Check(state=FAIL, what=what, fix=fix))
    checks += [*_worker(profile, board), *_lock(board)]
    if _at(board, "jetson") is not None:
        checks += [_mode(board), _gpu_clock(board), _emc_clock(board)]
    elif _at(board, "gpu") is not None:
        checks += _card(board)
    if profile.runtime == "onnxruntime":
        checks.append(_governor(board))
    checks += [_heat(board), *_throttling(board), *_memory(board)]
    free = _number(board, "disk.free_bytes")
    checks += room(None if free is None else int(free), "the home folder there")
    average, cores = _number(board, "load_average"), _number(board, "cores")
    if average is not None and cores:
        checks.append(load(average, int(cores)))
    return checks


def unsupported_reason(snapshot: Mapping[str, Any]) -> str | None:
    """Why TensorRT on this machine is not supported, ``; `` and what to do; None where it is."""
    soc, name = _text(snapshot, "jetson.soc"), _text(snapshot, "jetson.soc_name")
    if soc in TOO_OLD_SOCS:
        return (
            f"Jetson {name or soc} stops at {TOO_OLD_SOCS[soc]}: strongly typed networks need "
            "TensorRT 10.3 and Python 3.10; use an Orin or a Thor"
        )
    l4t = numbers(_text(snapshot, "jetson.l4t") or "")
    update = "update to JetPack 6.1 or newer (sdkmanager, or NVIDIA's guide to apt upgrades)"
    if l4t and l4t < (36, 4):
        release = f"JetPack {_text(snapshot, 'jetson.jetpack') or '6.0 or older'}"
        return f"{release} (L4T {dotted(l4t)}) brings TensorRT 8, hwloop needs 10.3; {update}"
    version = _text(snapshot, "runtime_version") or ""
    if _text(snapshot, "runtime") == "tensorrt" and version:
        problem = tensorrt_problem(version)
        if problem and numbers(version) < OLDEST_TENSORRT:
            newer = update if soc else 'python -m pip install "tensorrt-cu13>=10.13,<12"'
            return f"TensorRT {version}: {problem}; {newer}"
    return None


def start_check(profile: TargetProfile, message: str, hint: str) -> Check:
    """The line for a worker that did not start, with the fix for what it said is missing."""
    there = profile.transport == "ssh"
    pip = f"on the board: {profile.python} -m pip install" if there else "python -m pip install"
    tensorrt = f'{pip} "hwloop[tensorrt]"'
    if there:
        tensorrt = (
            "on the board: sudo apt install python3-libnvinfer   and, as only the system's Python "
            'sees it, python = "/usr/bin/python3" in the profile'
        )
    fixes = {
        "No module named 'tensorrt'": tensorrt,
        "No module named 'numpy'": f"{pip} numpy",
        "No module named 'onnxruntime'": f"{pip} onnxruntime",
        "no way to CUDA": "sudo apt install nvidia-cuda   (JetPack's CUDA; without a package of "
        f'it: {pip} "cuda-bindings<13" with CUDA 12, else cuda-bindings)',
    }
    fix = next((fix for sign, fix in fixes.items() if sign in message), hint)
    return Check(state=FAIL, what=message, fix=fix or None)


def _identity(board: Mapping[str, Any]) -> Check:
    if _at(board, "jetson") is not None:
        name = _text(board, "jetson.module") or _text(board, "jetson.model") or "of unknown kind"
        jetpack = _text(board, "jetson.jetpack") or "unknown"
        l4t = _text(board, "jetson.l4t") or "unknown"
        return Check(state=OK, what=f"Jetson {name}, JetPack {jetpack} (L4T {l4t})")
    if _at(board, "gpu") is not None:
        driver = _text(board, "gpu.driver") or "unknown"
        return Check(state=OK, what=f"{_text(board, 'gpu.name') or 'a GPU'}, driver {driver}")
    return Check(state=OK, what=f"CPU {_text(board, 'cpu') or 'unknown'}")


def _worker(profile: TargetProfile, board: Mapping[str, Any]) -> list[Check]:
    checks = []
    python = _text(board, "python")
    if python is not None:
        old = numbers(python) < OLDEST_PYTHON
        checks.append(
            Check(
                state=FAIL if old else OK,
                what=f"the worker is Python {python}" + (": 3.10 is needed" if old else ""),
                fix='python = "/usr/bin/python3.10" in the profile' if old else None,
            )
        )
    if "numpy" in board:
        numpy = _text(board, "numpy")
        help_text = None if numpy else f"{profile.python} -m pip install numpy   (there)"
        text = f"numpy {numpy}" if numpy else "no numpy there"
        checks.append(Check(state=OK if numpy else FAIL, what=text, fix=help_text))
    runtime, version = _text(board, "runtime"), _text(board, "runtime_version")
    if runtime is not None:
        newer = runtime == "tensorrt" and numbers(version or "") > NEWEST_TENSORRT
        note = f": {tensorrt_problem(version or '')}" if newer else ""
        what = f"{runtime} {version or 'of unknown version'}{note}"
        checks.append(Check(state=WARN if newer else OK, what=what))
    return checks


def _lock(board: Mapping[str, Any]) -> list[Check]:
    if "lock" not in board:
        return []
    holder = _text(board, "lock")
    if holder is None:
        return [Check(state=OK, what="nobody else measures there")]
    what = f"somebody measures there: {holder}"
    return [Check(state=FAIL, what=what, fix="wait until it has ended, or ask them")]


def _mode(board: Mapping[str, Any]) -> Check:
    mode = _text(board, "jetson.power_mode")
    if mode is None:
        what = "the power mode cannot be read: figures of two modes could be mixed"
        return Check(state=WARN, what=what, fix="sudo nvpmodel -q   (there; not in a container)")
    return Check(state=OK, what=f"power mode {mode}")


def _gpu_clock(board: Mapping[str, Any]) -> Check:
    now, most = _number(board, "jetson.gpu.mhz"), _number(board, "jetson.gpu.max_mhz")
    locked = _at(board, "jetson.gpu.locked")
    text = f"GPU clock {_mhz(now)} of {_mhz(most)}"
    if locked is True:
        return Check(state=OK, what=f"{text}, locked")
    if locked is False:
        fix = "sudo jetson_clocks   (there, after nvpmodel; a reboot undoes it)"
        return Check(state=WARN, what=f"{text}, not locked: it follows the load", fix=fix)
    what = "whether the GPU's clock is locked cannot be read"
    return Check(state=WARN, what=what, fix="sudo jetson_clocks --show   (there)")


def _emc_clock(board: Mapping[str, Any]) -> Check:
    most, locked = _number(board, "jetson.emc.max_mhz"), _at(board, "jetson.emc.locked")
    text = f"memory clock at most {_mhz(most)}"
    if locked is False:
        return Check(state=WARN, what=f"{text}, not locked", fix="sudo jetson_clocks   (there)")
    known = "locked" if locked is True else "only root can see whether it is locked"
    return Check(state=OK, what=f"{text}, {known}")


def _card(board: Mapping[str, Any]) -> list[Check]:
    now, most = _number(board, "gpu.sm_mhz"), _number(board, "gpu.sm_max_mhz")
    text = f"GPU clock {_mhz(now)} of {_mhz(most)}, state {_text(board, 'gpu.pstate') or 'unknown'}"
    advice = "for steadier figures: sudo nvidia-smi -lgc BASE,BASE, undone by -rgc"
    checks = [Check(state=OK, what=f"{text}; {advice}")]
    count, used = _number(board, "gpu.count"), _number(board, "gpu.utilization_pct")
    if count is not None and count > 1:
        what = f"{count:.0f} GPUs: hwloop takes the first that CUDA shows"
        fix = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0"
        checks.append(Check(state=WARN, what=what, fix=fix))
    if used is not None and used > 10:
        what = f"something else uses the GPU ({used:.0f} %)"
        checks.append(Check(state=WARN, what=what, fix="nvidia-smi   shows who; stop it"))
    return checks


def _governor(board: Mapping[str, Any]) -> Check:
    governor = _text(board, "governor") or "unknown"
    if governor in ("performance", "unknown"):
        return Check(state=OK, what=f"CPU governor {governor}")
    fix = "sudo cpupower frequency-set -g performance   (there)"
    return Check(state=WARN, what=f"CPU governor {governor}: clocks follow the load", fix=fix)


def _heat(board: Mapping[str, Any]) -> Check:
    readings = [_number(board, path) for path in ("temperature_c", "gpu.temperature_c")]
    known = [value for value in readings if value is not None]
    if not known:
        return Check(state=OK, what="no temperature sensor")
    text = f"{max(known):.0f} degrees C at the hottest place"
    if max(known) >= HOT_C:
        return Check(state=WARN, what=text, fix="let it cool down; check fan and heat sink")
    return Check(state=OK, what=text)


def _throttling(board: Mapping[str, Any]) -> list[Check]:
    found = [*_texts(board, "jetson.throttle_reasons"), *_texts(board, "gpu.throttle_reasons")]
    checks = []
    if found:
        what = f"slowed down now: {', '.join(found)}"
        fix = "cool it, or choose a lower power mode or clock that it can hold"
        checks.append(Check(state=WARN, what=what, fix=fix))
    elif _at(board, "jetson.throttled") is False:
        checks.append(Check(state=OK, what="no sign of being slowed down now"))
    events = _number(board, "jetson.overcurrent_events")
    if events:
        what = f"{events:.0f} over-current events since it started: power was cut back then"
        checks.append(Check(state=WARN, what=what, fix="a stronger supply, or a lower power mode"))
    return checks


def _memory(board: Mapping[str, Any]) -> list[Check]:
    free, checks = _number(board, "memory.available_bytes"), []
    jetson = _at(board, "jetson") is not None
    if free is not None:
        little = free < LITTLE_MEMORY_BYTES
        fix = "sudo systemctl isolate multi-user.target   (there: stops the desktop)"
        checks.append(
            Check(
                state=WARN if little else OK,
                what=f"{free / GIB:.1f} GiB of memory free" + (", little" if little else ""),
                fix=(fix if jetson else "stop what else runs there") if little else None,
            )
        )
    swap, zram = _number(board, "memory.swap_total_bytes"), _number(board, "memory.zram_bytes")
    if jetson and swap is not None and (free is None or free < ENOUGH_WITHOUT_SWAP_BYTES):
        checks.append(_swap(swap, zram or 0))
    return checks


def _swap(swap_bytes: float, zram_bytes: float) -> Check:
    """Compressed memory is no help when memory is what a build lacks."""
    if swap_bytes > zram_bytes + (1 << 20):
        return Check(state=OK, what=f"{swap_bytes / GIB:.1f} GiB of swap")
    kind = "swap is compressed memory (zram) only" if zram_bytes else "no swap"
    return Check(
        state=WARN,
        what=f"{kind}: large builds may be killed",
        fix="there: "
        + ("sudo systemctl disable nvzramconfig; " if zram_bytes else "")
        + "sudo fallocate -l 8G /swapfile; sudo chmod 600 /swapfile; sudo mkswap /swapfile; "
        "sudo swapon /swapfile",
    )


def _at(board: Mapping[str, Any], path: str) -> Any:
    """A value by its dotted path; None wherever the board says something else."""
    value: Any = board
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(board: Mapping[str, Any], path: str) -> float | None:
    value = _at(board, path)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(board: Mapping[str, Any], path: str) -> str | None:
    """A word of the board's, fit for a terminal: short, and without control characters."""
    value = _at(board, path)
    return _printable(value) if isinstance(value, str) and value else None


def _texts(board: Mapping[str, Any], path: str) -> list[str]:
    values = _at(board, path)
    items = values if isinstance(values, list) else []
    return [_printable(item) for item in items[:8] if isinstance(item, str)]


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:LONGEST_TEXT])


def _mhz(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} MHz"
