"""What decides results is held: a change of it asks whether stored figures still mean the same.

``python tests/test_versions.py`` renews what is held.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import hwloop
from hwloop.run.versions import RESULTS
from hwloop.tasks.codetext import normalised

SOURCES = Path(hwloop.__file__).parent
HELD = Path(__file__).parent / "data" / "result_sources.json"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
AREAS: dict[str, tuple[str, ...]] = {
    "export": ("compress/export.py",),
    "prune": (
        "compress/coupled.py",
        "compress/coupling.py",
        "compress/marks.py",
        "compress/tracing.py",
        "compress/trying.py",
        "compress/cut.py",
        "compress/slices.py",
        "compress/moments.py",
        "compress/refit.py",
        "compress/methods/*.py",
        "compress/apply.py",
        "compress/branches.py",
        "compress/calls.py",
        "compress/describe.py",
        "compress/sizes.py",
        "compress/shrinking.py",
        "compress/rules.py",
        "tasks/vit.py",
    ),
    "quantize": (
        "runtimes/calibration.py",
        "runtimes/runtime.py",
        "runtimes/known.py",
        "runtimes/onnxruntime.py",
        "runtimes/openvino.py",
        "runtimes/tensorrt.py",
        "runtimes/qdq_ort.py",
        "runtimes/tokens.py",
        "runtimes/qdq_tensorrt.py",
        "runtimes/fp16.py",
        "compress/fp16_range.py",
    ),
    "recover": (
        *("compress/recover.py", "compress/lessons.py", "compress/training.py"),
        *("compress/layout.py", "compress/bfloat16.py"),
    ),
    "score": ("tasks/score.py", "tasks/divergence.py"),
    "search": (
        "search/*.py",
        *("runtimes/rowkinds.py", "compress/space.py", "compress/rows.py"),
        *("measure/predict.py", "run/calibrate.py", "run/sensitivity.py", "run/features.py"),
        *("run/rounds.py", "run/race.py", "run/paying.py"),
        *("run/finalists.py", "run/distil.py", "run/front.py", "run/choice.py"),
    ),
}


def digests(area: str, root: Path = SOURCES) -> dict[str, str]:
    """SHA-256 by file: of the code, without comments, docstrings and layout."""
    files = sorted(path for pattern in AREAS[area] for path in root.glob(pattern))
    return {
        str(path.relative_to(root)): hashlib.sha256(
            normalised(path.read_text(encoding="utf-8")).encode()
        ).hexdigest()
        for path in files
    }


def now() -> dict[str, Any]:
    areas = {area: {"version": RESULTS[area], "sources": digests(area)} for area in AREAS}
    return {"python": PYTHON, "areas": areas}


def complaint(area: str, held: dict[str, Any], found: dict[str, str], version: int) -> str:
    """What to do about sources that are no longer those that are held; empty when they are."""
    before = held["sources"]
    changed = sorted(name for name in {**before, **found} if before.get(name) != found.get(name))
    if not changed and held["version"] == version:
        return ""
    renew = "renew with: python tests/test_versions.py"
    if held["version"] != version:
        return f"RESULTS[{area!r}] is {version}, {held['version']} is held: {renew}"
    return (
        f"{', '.join(changed)} changed: raise RESULTS[{area!r}] in hwloop/run/versions.py "
        f"if stored figures would change, then {renew}"
    )


@pytest.mark.parametrize("area", AREAS)
def test_what_decides_results_changes_only_on_purpose(area: str) -> None:
    held = json.loads(HELD.read_text())
    if held["python"] != PYTHON:
        pytest.skip(f"held for Python {held['python']}: another one writes source differently")
    assert not complaint(area, held["areas"][area], digests(area), RESULTS[area])


def test_every_area_is_held_and_has_sources() -> None:
    assert set(AREAS) == set(RESULTS) == set(json.loads(HELD.read_text())["areas"])
    for area, patterns in AREAS.items():
        assert len(digests(area)) >= len(patterns)


def test_a_change_is_named_with_what_to_do_and_a_comment_is_none(tmp_path: Path) -> None:
    path = tmp_path / "compress" / "recover.py"
    path.parent.mkdir()
    path.write_text("def step():\n    return 1\n")
    held = {"version": 1, "sources": digests("recover", tmp_path)}
    path.write_text('def step():\n    """One."""\n    return 1  # a comment\n')
    assert complaint("recover", held, digests("recover", tmp_path), 1) == ""
    path.write_text("def step():\n    return 2\n")
    said = complaint("recover", held, digests("recover", tmp_path), 1)
    assert said.startswith(
        "compress/recover.py changed: raise RESULTS['recover'] in hwloop/run/versions.py if"
    )
    assert said.endswith("renew with: python tests/test_versions.py")
    assert "is held" in complaint("recover", held, digests("recover", tmp_path), 2)


if __name__ == "__main__":
    HELD.parent.mkdir(exist_ok=True)
    HELD.write_text(json.dumps(now(), indent=2) + "\n")
