"""The files of a Jetson as they are, for the tests of those who have none (tests/data/jetson).

Only files that any user may read and that hold no name of a person or a machine: no serial number,
no host name, no address. ``root`` is the file system's root, another one in tests.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hwloop.device import jetson, power
from hwloop.device.jetson import ROOT

FILES = (
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/swaps",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    *jetson.EMC_CAPS,
    *(f"{jetson.EMC_DEBUG}/{name}" for name in ("rate", "max_rate", "mrq_rate_locked")),
)
PATTERNS = (
    *(f"sys/class/devfreq/*/{name}" for name in ("cur_freq", "min_freq", "max_freq", "governor")),
    *(f"sys/class/thermal/thermal_zone*/{name}" for name in ("type", "temp")),
    *(f"sys/class/thermal/cooling_device*/{name}" for name in ("type", "cur_state")),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("name", "in*_label", "in*_input")),
    *(f"sys/class/hwmon/hwmon*/{name}" for name in ("curr*_input", "power*_input")),
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)
MAX_FILE_BYTES = 64 << 10
MAX_FILES, MAX_CHARACTERS = 1000, 2 << 20
TEGRASTATS_LINES = 3
TEGRASTATS_S = 5.0
# A few boards write their serial number into /proc/cpuinfo.
_SERIAL = re.compile(r"^.*serial.*$\n?", re.IGNORECASE | re.MULTILINE)


def recordings(root: Path = ROOT) -> dict[str, Any]:
    """The board as files.

    Returns:
        files: path below the root, and text, of every file of the lists above that can be read;
        tegrastats: three of its lines, fewer where it is absent or silent for five seconds;
        names: this machine's and its user's, for the host to keep them out of what is sent on.
    """
    files: dict[str, str] = {}
    left = MAX_CHARACTERS
    paths = [root / name for name in FILES]
    paths += [path for pattern in PATTERNS for path in sorted(root.glob(pattern))]
    for path in paths[:MAX_FILES]:
        text = _text(path)
        left -= len(text or "")
        if text is not None and left >= 0:
            files[path.relative_to(root).as_posix()] = _SERIAL.sub("", text)
    names = [os.uname().nodename, Path(os.path.expanduser("~")).name]
    lines = power.tegrastats_lines(
        root, count=TEGRASTATS_LINES, every_ms=1000, timeout_s=TEGRASTATS_S
    )
    return {"files": files, "tegrastats": lines, "names": names}


def _text(path: Path) -> str | None:
    """Up to 64 KiB of a plain file; None where it cannot be read, or waits for something."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError:  # absent, root's alone, or a sensor of a part that is switched off
        return None
