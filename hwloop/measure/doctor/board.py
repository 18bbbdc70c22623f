"""What is wrong on the machine that measures, by what its worker says; nothing of it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwloop.device.trt_import import OLDEST
from hwloop.measure.doctor import said
from hwloop.measure.doctor.check import (
    FAIL,
    GIB,
    NEWEST_TENSORRT,
    OK,
    OLDEST_PYTHON,
    WARN,
    Check,
    dotted,
    load,
    numbers,
    room,
    tensorrt_problem,
)
from hwloop.measure.doctor.wheels import (
    UPDATE_JETPACK,
    cuda_of_driver,
    machine_of,
    newer_tensorrt,
)
from hwloop.measure.profile import TargetProfile
from hwloop.runtimes.tensorrt import TensorRT

LITTLE_MEMORY_BYTES, ENOUGH_WITHOUT_SWAP_BYTES = 1 * GIB, 16 * GIB
HOT_C = 85.0
SHARED_MODE = "Default"
# SoC: what its last JetPack brings, and why that is not enough.
TOO_OLD_SOCS = {
    "tegra210": "JetPack 4 with TensorRT 8.2 and Python 3.6",
    "tegra186": "JetPack 4 with TensorRT 8.2 and Python 3.6",
    "tegra194": "JetPack 5 with TensorRT 8.5 and Python 3.8",
}


def board_checks(profile: TargetProfile, board: Mapping[str, Any]) -> list[Check]:
    """The lines about the machine that the worker runs on; what it did not say is not judged."""
    reason = unsupported_reason(board) if profile.kind.on_gpu else None
    checks = [_identity(board)]
    if reason is not None:
        what, _, fix = reason.partition("; ")
        checks.append(Check(state=FAIL, what=what, fix=fix))
    checks += [*_worker(profile, board), *_lock(board)]
    if said.at(board, "jetson") is not None:
        checks += [_mode(board), _gpu_clock(board), _emc_clock(board)]
    elif said.at(board, "gpu") is not None:
        checks += _card(board)
    if profile.kind.on_cpu:
        checks.append(_governor(board))
    checks += [_heat(board), *_throttling(board), *_memory(board)]
    free = said.number(board, "disk.free_bytes")
    checks += room(None if free is None else int(free), "the home folder there")
    average, cores = said.number(board, "load_average"), said.number(board, "cores")
    if average is not None and cores:
        checks.append(load(average, int(cores)))
    return checks


def unsupported_reason(snapshot: Mapping[str, Any]) -> str | None:
    """Why TensorRT on this machine is not supported, ``; `` and what to do; None where it is."""
    soc, name = said.text(snapshot, "jetson.soc"), said.text(snapshot, "jetson.soc_name")
    if soc in TOO_OLD_SOCS:
        return (
            f"Jetson {name or soc} stops at {TOO_OLD_SOCS[soc]}: strongly typed networks need "
            "TensorRT 10.3 and Python 3.10; use an Orin or a Thor"
        )
    l4t = numbers(said.text(snapshot, "jetson.l4t") or "")
    if l4t and l4t < (36, 4):
        release = f"JetPack {said.text(snapshot, 'jetson.jetpack') or '6.0 or older'}"
        return (
            f"{release} (L4T {dotted(l4t)}) brings TensorRT 8, hwloop needs 10.3; {UPDATE_JETPACK}"
        )
    version = said.text(snapshot, "runtime_version") or ""
    if said.text(snapshot, "runtime") == TensorRT.name and version:
        problem = tensorrt_problem(version)
        if problem and numbers(version) < OLDEST:
            return f"TensorRT {version}: {problem}; {newer_tensorrt(machine_of(snapshot))}"
    return None


def _identity(board: Mapping[str, Any]) -> Check:
    if said.at(board, "jetson") is not None:
        name = (
            said.text(board, "jetson.module")
            or said.text(board, "jetson.model")
            or "of unknown kind"
        )
        jetpack = said.text(board, "jetson.jetpack") or "unknown"
        l4t = said.text(board, "jetson.l4t") or "unknown"
        return Check(state=OK, what=f"Jetson {name}, JetPack {jetpack} (L4T {l4t})")
    if said.at(board, "gpu") is not None:
        driver = said.text(board, "gpu.driver") or "unknown"
        cuda = cuda_of_driver(driver)
        runs = f" (CUDA {cuda} and older)" if cuda else ""
        return Check(
            state=OK, what=f"{said.text(board, 'gpu.name') or 'a GPU'}, driver {driver}{runs}"
        )
    return Check(state=OK, what=f"CPU {said.text(board, 'cpu') or 'unknown'}")


def _worker(profile: TargetProfile, board: Mapping[str, Any]) -> list[Check]:
    checks = []
    python = said.text(board, "python")
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
        numpy = said.text(board, "numpy")
        help_text = None if numpy else f"{profile.python} -m pip install numpy   (there)"
        text = f"numpy {numpy}" if numpy else "no numpy there"
        checks.append(Check(state=OK if numpy else FAIL, what=text, fix=help_text))
    runtime, version = said.text(board, "runtime"), said.text(board, "runtime_version")
    if runtime is not None:
        newer = runtime == TensorRT.name and numbers(version or "") > NEWEST_TENSORRT
        note = f": {tensorrt_problem(version or '')}" if newer else ""
        what = f"{runtime} {version or 'of unknown version'}{note}"
        checks.append(Check(state=WARN if newer else OK, what=what))
    return checks


def _lock(board: Mapping[str, Any]) -> list[Check]:
    if "lock" not in board:
        return []
    holder = said.text(board, "lock")
    if holder is None:
        return [Check(state=OK, what="nobody else measures there")]
    what = f"somebody measures there: {holder}"
    return [Check(state=FAIL, what=what, fix="wait until it has ended, or ask them")]


def _mode(board: Mapping[str, Any]) -> Check:
    mode = said.text(board, "jetson.power_mode")
    if mode is None:
        what = "the power mode cannot be read: figures of two modes could be mixed"
        return Check(state=WARN, what=what, fix="sudo nvpmodel -q   (there; not in a container)")
    return Check(state=OK, what=f"power mode {mode}")


def _gpu_clock(board: Mapping[str, Any]) -> Check:
    now, most = said.number(board, "jetson.gpu.mhz"), said.number(board, "jetson.gpu.max_mhz")
    locked = said.at(board, "jetson.gpu.locked")
    text = f"GPU clock {said.mhz(now)} of {said.mhz(most)}"
    if locked is True:
        return Check(state=OK, what=f"{text}, locked")
    if locked is False:
        fix = "sudo jetson_clocks   (there, after nvpmodel; a reboot undoes it)"
        return Check(state=WARN, what=f"{text}, not locked: it follows the load", fix=fix)
    what = "whether the GPU's clock is locked cannot be read"
    return Check(state=WARN, what=what, fix="sudo jetson_clocks --show   (there)")


def _emc_clock(board: Mapping[str, Any]) -> Check:
    most, locked = said.number(board, "jetson.emc.max_mhz"), said.at(board, "jetson.emc.locked")
    text = f"memory clock at most {said.mhz(most)}"
    if locked is False:
        return Check(state=WARN, what=f"{text}, not locked", fix="sudo jetson_clocks   (there)")
    known = "locked" if locked is True else "only root can see whether it is locked"
    return Check(state=OK, what=f"{text}, {known}")


def _card(board: Mapping[str, Any]) -> list[Check]:
    now, most = said.number(board, "gpu.sm_mhz"), said.number(board, "gpu.sm_max_mhz")
    state = said.text(board, "gpu.pstate") or "unknown"
    text = f"GPU clock {said.mhz(now)} of {said.mhz(most)}, state {state}"
    advice = "for steadier figures: sudo nvidia-smi -lgc BASE,BASE, undone by -rgc"
    checks = [Check(state=OK, what=f"{text}; {advice}")]
    note = said.text(board, "gpu.note")
    if note is not None:  # which of several GPUs is used, and why that is not known
        what, _, fix = note.partition(": ")
        checks.append(Check(state=WARN, what=what, fix=fix or None))
    mode = said.text(board, "gpu.compute_mode")
    if mode not in (None, SHARED_MODE):
        what = f"the GPU is in mode {mode}: engines are built by a second process, which it refuses"
        checks.append(Check(state=FAIL, what=what, fix="sudo nvidia-smi -c DEFAULT   (there)"))
    count, used = said.number(board, "gpu.count"), said.number(board, "gpu.utilization_pct")
    if count is not None and count > 1:
        what = f"{count:.0f} GPUs: hwloop takes the first that CUDA shows"
        fix = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0"
        checks.append(Check(state=WARN, what=what, fix=fix))
    if used is not None and used > 10:
        what = f"something else uses the GPU ({used:.0f} %)"
        checks.append(Check(state=WARN, what=what, fix="nvidia-smi   shows who; stop it"))
    return checks


def _governor(board: Mapping[str, Any]) -> Check:
    governor = said.text(board, "governor") or "unknown"
    if governor in ("performance", "unknown"):
        return Check(state=OK, what=f"CPU governor {governor}")
    fix = "sudo cpupower frequency-set -g performance   (there)"
    return Check(state=WARN, what=f"CPU governor {governor}: clocks follow the load", fix=fix)


def _heat(board: Mapping[str, Any]) -> Check:
    readings = [said.number(board, path) for path in ("temperature_c", "gpu.temperature_c")]
    known = [value for value in readings if value is not None]
    if not known:
        return Check(state=OK, what="no temperature sensor")
    text = f"{max(known):.0f} degrees C at the hottest place"
    if max(known) >= HOT_C:
        return Check(state=WARN, what=text, fix="let it cool down; check fan and heat sink")
    return Check(state=OK, what=text)


def _throttling(board: Mapping[str, Any]) -> list[Check]:
    found = [
        *said.texts(board, "jetson.throttle_reasons"),
        *said.texts(board, "gpu.throttle_reasons"),
    ]
    checks = []
    if found:
        what = f"slowed down now: {', '.join(found)}"
        fix = "cool it, or choose a lower power mode or clock that it can hold"
        checks.append(Check(state=WARN, what=what, fix=fix))
    elif said.at(board, "jetson.throttled") is False:
        checks.append(Check(state=OK, what="no sign of being slowed down now"))
    events = said.number(board, "jetson.overcurrent_events")
    if events:
        what = f"{events:.0f} over-current events since it started: power was cut back then"
        checks.append(Check(state=WARN, what=what, fix="a stronger supply, or a lower power mode"))
    return checks


def _memory(board: Mapping[str, Any]) -> list[Check]:
    free, checks = said.number(board, "memory.available_bytes"), []
    jetson = said.at(board, "jetson") is not None
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
    swap, zram = (
        said.number(board, "memory.swap_total_bytes"),
        said.number(board, "memory.zram_bytes"),
    )
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
