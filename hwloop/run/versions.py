"""Which results of hwloop can be compared with earlier ones.

A number is raised when a change makes the figures of its area mean something else: a run that began
with another one is refused, like one whose weights changed. What decides the *timings* has versions
of its own, in the fingerprint and in the table's population. ``tests/test_versions.py`` holds the
sources of each area, so that none changes without a decision.
"""

from __future__ import annotations

RESULTS: dict[str, int] = {
    "export": 1,
    "prune": 6,
    "quantize": 4,
    "recover": 9,
    "score": 2,
    "search": 18,
}
"""Area of hwloop to the version of what it computes."""
