"""What every stage of a run has at hand: what was asked for, and where things are kept and told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hwloop.measure.profile import TargetProfile
from hwloop.measure.progress import Progress
from hwloop.measure.session import DeviceSession
from hwloop.measure.store import Store
from hwloop.measure.table import LatencyTable
from hwloop.run.clock import RunClock
from hwloop.run.folder import RunFolder
from hwloop.run.memory import Figures, Notes
from hwloop.run.settings import Settings


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One run in progress.

    Attributes:
        settings: as they were given, with the user's own paths.
        notes, figures: what is stored in the run's folder.
    """

    settings: Settings
    profile: TargetProfile
    folder: RunFolder
    notes: Notes
    figures: Figures
    session: DeviceSession
    clock: RunClock
    progress: Progress

    def stage(self, name: str) -> None:
        """Told to the user, and kept for whoever asks how far the run is."""
        self.progress.stage(name)
        self.notes.put_stage(name)

    @contextmanager
    def table(self) -> Iterator[LatencyTable]:
        """In a store of its own, so that its closing leaves the run's open."""
        path = self.settings.table
        with Store(Path(path) if path else self.folder.store_path) as store:
            yield LatencyTable(store, self.session.fingerprint, self.profile.protocols.row)

    @property
    def ships_engines(self) -> bool:
        """Whether the runtime builds a file of its own, which ships with the network."""
        return self.profile.kind.ships_engine

    @property
    def out_of_time(self) -> bool:
        """Whether the search has to end."""
        return self.clock.is_up(self.settings.time_limit_s)
