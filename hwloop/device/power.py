"""Power and energy: a Jetson's own sensors, ``tegrastats``, or ``nvidia-smi``.

The sensors average over 10 to 100 milliseconds, so the energy of one run is the mean power of a
loop of seconds, times its length, divided by its runs. It is the module's (or the GPU board's)
energy, everything else that ran there included, and not what a meter at the plug shows. What it
draws without any load is measured before and given beside; nothing is subtracted.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwloop.device import nvidia_smi
from hwloop.device.jetson import OFF_BELOW_C, ROOT, read_int, read_text

TOTAL_RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that the whole module (Nano, NX) or kit (Thor) runs on; without one, the others add up.

An AGX Orin has none. If one of its rails is fed from another of them, that power is counted twice;
which rails were added is therefore part of every figure.
"""

SAMPLE_EVERY_S = 0.1
MIN_SAMPLES = 5
LEAD_IN_SHARE, LEAD_IN_MAX_S = 0.25, 1.0
IDLE_SHARE, IDLE_MAX_S = 0.4, 2.0
CHILD_GRACE_S = 30.0
WAIT_S = 2.0
TEGRASTATS = "usr/bin/tegrastats"
Sample = tuple[float, tuple[str, ...]]  # milliwatts, and what they are the sum of
_EVERY_100_MS = ("--interval", "100")
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)mW/")
_HEAT = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C\b")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_EMC = re.compile(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?")
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")


def energy_mj(
    run: Callable[[], int],
    *,
    seconds: float,
    on_gpu: bool = True,
    root: Path = ROOT,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any] | None:
    """Sample the power without a load, then run back to back for at least ``seconds`` and sample.

    Idling takes 0.4 of ``seconds``, at most two. A lead-in of a quarter, at most a second, comes
    before each of the two: sensors lag behind the load.

    Args:
        run: some inferences back to back, finished when it returns; their number. A burst keeps
            the gaps between launch and wait out of the figure of a small network.
        on_gpu: whether a graphics card's own power is the power of this; a module's always is.

    Returns:
        mean_mw, samples, runs, energy_mj per run, source; rails: the names that were summed;
        idle_mw: mean before the load, with the engine open, or None where it was read less than
        five times. All is None where nothing can be read under load, or less than five times.
    """
    meter = _meter(root, seconds, on_gpu=on_gpu)
    if meter is None:
        return None
    lead_in_s = min(seconds * LEAD_IN_SHARE, LEAD_IN_MAX_S)
    with meter:
        time.sleep(lead_in_s)
        meter.values.clear()
        time.sleep(min(seconds * IDLE_SHARE, IDLE_MAX_S))
        idle = list(meter.values)
        _loop(run, lead_in_s, clock)
        meter.values.clear()
        runs, elapsed_s = _loop(run, seconds, clock)
        loaded = list(meter.values)
    if not loaded:
        return None
    rails = Counter(names for _, names in loaded).most_common(1)[0][0]
    idle_mw, _ = _mean_mw(idle, rails)
    mean_mw, samples = _mean_mw(loaded, rails)
    if mean_mw is None:
        return None
    return {
        "mean_mw": mean_mw,
        "idle_mw": idle_mw,
        "rails": list(rails),
        "samples": samples,
        "runs": runs,
        "energy_mj": mean_mw * elapsed_s / runs,
        "source": meter.source or "+".join(rails),
    }


def rails_mw(root: Path = ROOT) -> dict[str, float]:
    """Milliwatts by rail, from the INA3221 and INA238 sensors that a Jetson's modules carry."""
    found: dict[str, float] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = read_text(folder / "name")
        if name == "ina3221":
            found.update(_ina3221(folder))
        elif name == "ina238":  # at the input of Thor's carrier board, in microwatts
            value = read_int(folder / "power1_input")
            if value is not None:
                found["VIN"] = value / 1000
    return found


def total_mw(rails: dict[str, float]) -> Sample | None:
    """(milliwatts, names of the rails that were summed) of the whole module; None without rails."""
    for name in TOTAL_RAILS:
        if name in rails:
            return rails[name], (name,)
    return (sum(rails.values()), tuple(sorted(rails))) if rails else None


def parse_tegrastats(line: str) -> dict[str, Any]:
    """A line of ``tegrastats`` of JetPack 5 to 7; what a version does not print is None or empty.

    JetPack 6 adds the clock of each part of the GPU, 7 prints it without a load, and gives peaks
    behind temperatures and powers. Here are the present values, and the fastest part's clock.
    """
    gpu, emc, ram = _GPU.search(line), _EMC.search(line), _RAM.search(line)
    clocks = [int(part) for part in ((gpu and gpu.group(2)) or "").split(",") if part]
    heat = {name: float(value) for name, value in _HEAT.findall(line)}
    return {
        "gpu_load_pct": int(gpu.group(1)) if gpu and gpu.group(1) else None,
        "gpu_mhz": max(clocks, default=None),
        "emc_mhz": int(emc.group(2)) if emc and emc.group(2) else None,
        "ram_used_mib": int(ram.group(1)) if ram else None,
        "ram_total_mib": int(ram.group(2)) if ram else None,
        "temperatures_c": {k: v for k, v in heat.items() if v > OFF_BELOW_C},
        "rails_mw": {k: float(v) for k, v in _RAIL.findall(line) if k != "NC"},
    }


def tegrastats(root: Path = ROOT, *, timeout_s: float = 3.0) -> dict[str, Any]:
    """One line of ``tegrastats``, parsed; empty where it is absent or silent."""
    lines = tegrastats_lines(root, count=1, every_ms=100, timeout_s=timeout_s)
    return parse_tegrastats(lines[0]) if lines else {}


def tegrastats_lines(root: Path, *, count: int, every_ms: int, timeout_s: float) -> list[str]:
    """Its first whole lines, fewer where it is absent or silent; it never ends by itself."""
    command = [str(root / TEGRASTATS), "--interval", str(every_ms)]
    try:
        stream = _Stream(command, _whole_line, timeout_s)
    except OSError:
        return []
    with stream:
        deadline = time.monotonic() + timeout_s
        while len(stream.values) < count and time.monotonic() < deadline and stream.is_alive():
            time.sleep(0.02)
    return stream.values[:count]


def _whole_line(text: str) -> str | None:
    """Without its end; None for what a killed program left unfinished."""
    return text[:-1] if text.endswith("\n") else None


class _Rails:
    """Reads the rails in a thread."""

    source = ""  # the rails themselves

    def __init__(self, root: Path) -> None:
        self.values: list[Sample] = []
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Rails:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(WAIT_S)

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            found = total_mw(rails_mw(self._root))
            if found is not None:
                self.values.append(found)


class _Stream:
    """A child process that prints a value per line; it ends with this, or at its deadline."""

    def __init__(self, command: list[str], parse: Callable[[str], Any], limit_s: float) -> None:
        self.values: list[Any] = []
        self.source = Path(command[0]).name
        self._parse = parse
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._killer = threading.Timer(limit_s, self._process.kill)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> _Stream:
        self._killer.daemon = True
        self._killer.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._killer.cancel()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel will end it
            self._process.wait(WAIT_S)
        self._thread.join(WAIT_S)
        if self._process.stdout is not None and not self._thread.is_alive():
            self._process.stdout.close()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            value = self._parse(line)
            if value is not None:
                self.values.append(value)


def _meter(root: Path, seconds: float, *, on_gpu: bool) -> _Rails | _Stream | None:
    """The best source that this machine has."""
    if rails_mw(root):
        return _Rails(root)
    limit_s = seconds * 2 + CHILD_GRACE_S
    try:
        return _Stream([str(root / TEGRASTATS), *_EVERY_100_MS], _tegrastats_sample, limit_s)
    except OSError:
        gpu = nvidia_smi.snapshot() if on_gpu and root == ROOT else None
    if gpu is None or gpu["power_w"] is None:
        return None
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=100"]
    card = gpu["index"] if gpu["uuid"] is None else gpu["uuid"]
    return _Stream([nvidia_smi.COMMAND, f"--id={card}", *query], _card_sample, limit_s)


def _mean_mw(samples: list[Sample], rails: tuple[str, ...]) -> tuple[float | None, int]:
    """(mean or None where there are too few, number) of the samples that summed just these rails.

    A rail that could not be read for once would make the sum of the others a lie.
    """
    values = [value for value, names in samples if names == rails]
    return (statistics.fmean(values) if len(values) >= MIN_SAMPLES else None), len(values)


def _loop(run: Callable[[], int], seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """(runs, seconds they took): at least one burst and at least ``seconds``."""
    runs, started = 0, clock()
    while True:
        runs += run()
        elapsed_s = clock() - started
        if elapsed_s >= seconds:
            return runs, elapsed_s


def _ina3221(folder: Path) -> dict[str, float]:
    found = {}
    for channel in (1, 2, 3):  # the others are shunt voltages and their sum
        label = read_text(folder / f"in{channel}_label")
        millivolts = read_int(folder / f"in{channel}_input")
        milliamperes = read_int(folder / f"curr{channel}_input")
        if label and label != "NC" and millivolts is not None and milliamperes is not None:
            found[label] = millivolts * milliamperes / 1000
    return found


def _tegrastats_sample(line: str) -> Sample | None:
    return total_mw(parse_tegrastats(line)["rails_mw"])


def _card_sample(line: str) -> Sample | None:
    text = line.strip()
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        return None
    return float(text) * 1000, (nvidia_smi.NUMBERS["power_w"],)
