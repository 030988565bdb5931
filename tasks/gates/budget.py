"""Budget: what the device can hold, and how long it may take."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from tasks.gates import Evidence, Gate, Verdict

Limit = Annotated[float, Field(gt=0)] | None


@dataclass(frozen=True)
class Spent:
    """One figure and its limit."""

    name: str
    value: float
    limit: float

    @property
    def share(self) -> float:
        """How much of the limit is used; above 1 is too much."""
        return self.value / self.limit

    @property
    def sentence(self) -> str:
        """Its figures."""
        return f"{self.name} {self.value:.6g} of at most {self.limit:.6g}"


class Budget(Gate):
    """The challenger's size and latency stay within every limit that is set.

    Latencies are medians at batch 1 on one thread of the judging host. `latency_ratio` is the
    median of the ratios of calls that took turns, so a busy host is fair to both. Ratios are with
    the champion and leave the first version free.

    Attributes:
        size_kib: Size of the model file, in KiB of 1024 bytes as in the reports.
        size_ratio: Its size divided by the champion's.
        latency_ms: Median time of a call.
        latency_ratio: Median of its time divided by the champion's.
    """

    name: Literal["budget"] = "budget"
    size_kib: Limit = None
    size_ratio: Limit = None
    latency_ms: Limit = None
    latency_ratio: Limit = None

    @model_validator(mode="after")
    def _limits_something(self) -> "Budget":
        if not self._limits:
            raise ValueError(f"a budget needs a limit: set one of {', '.join(self._fields)}")
        return self

    @property
    def _fields(self) -> tuple[str, ...]:
        return "size_kib", "size_ratio", "latency_ms", "latency_ratio"

    @property
    def _limits(self) -> dict[str, float]:
        found = {name: getattr(self, name) for name in self._fields}
        return {name: limit for name, limit in found.items() if limit is not None}

    def judge(self, evidence: Evidence) -> Verdict:
        """See `Gate.judge`."""
        figures = _measured(evidence)
        unmeasured = [name for name in self._limits if name not in figures]
        free = [name for name in unmeasured if _is_free(name, evidence)]
        missing = [name for name in unmeasured if name not in free]
        spent = [
            Spent(name.replace("_kib", " (KiB)").replace("_", " "), figures[name], limit)
            for name, limit in self._limits.items()
            if name in figures
        ]
        over = [found for found in spent if found.share > 1]
        why = [
            *_words(spent, over),
            *(f"{name} was not measured: time some calls" for name in missing),
            *(f"{name}: first version, there is no champion to divide by" for name in free),
        ]
        passed = not over and not missing
        return Verdict(gate=self.name, passed=passed, sentence="; ".join(why), figures=figures)


def _measured(evidence: Evidence) -> dict[str, float]:
    ours, champion = evidence.challenger, evidence.champion
    figures = {"size_kib": ours.size_bytes / 1024}
    if champion is not None:
        figures["size_ratio"] = ours.size_bytes / champion.size_bytes
    if len(ours.latency_ms):
        figures["latency_ms"] = float(np.median(ours.latency_ms))
        if champion is not None:
            figures["latency_ratio"] = float(np.median(ours.latency_ms / champion.latency_ms))
    return figures


def _is_free(name: str, evidence: Evidence) -> bool:
    return name.endswith("_ratio") and evidence.champion is None


def _words(spent: list[Spent], over: list[Spent]) -> list[str]:
    if over:
        furthest_first = sorted(over, key=lambda found: -found.share)
        return [f"over budget: {', '.join(found.sentence for found in furthest_first)}"]
    if not spent:
        return []
    closest = max(spent, key=lambda found: found.share)
    return [f"within budget: closest to its limit is {closest.sentence} ({closest.share:.0%} used)"]
