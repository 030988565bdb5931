"""What tracking hands out: finished stages, figures and the runs that made them."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.refs import ModelRef


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished stage as found again: its reference and the folder with its files and record."""

    ref: ModelRef
    folder: Path


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a run at one of its steps, with the time at which they were measured.

    Attributes:
        run_id: MLflow's id of the run.
        step: Steps done.
        metrics: By name.
        time_ms: Milliseconds since 1970.
    """

    run_id: str
    step: int
    metrics: dict[str, float]
    time_ms: int

    @classmethod
    def now(cls, run_id: str, step: int, metrics: dict[str, float]) -> "Figures":
        """Figures that were measured at this moment."""
        return cls(run_id, step, metrics, now_ms())


@dataclass(frozen=True, slots=True)
class Made:
    """The run that made a model or a report.

    Attributes:
        run_id: MLflow's id of it.
        started: When it began, in UTC.
        ended: When it ended, in UTC.
    """

    run_id: str
    started: datetime
    ended: datetime


def now_ms() -> int:
    """Milliseconds since 1970, by this machine's clock."""
    return time.time_ns() // 1_000_000


def moment(milliseconds: int) -> datetime:
    """The time in UTC of so many milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
