"""Gates: what a challenger has to show before it is promoted."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.drawers import Drawer
from tasks.errors import ArtifactError
from tasks.sections import Section


class Verdict(BaseModel):
    """What a gate found.

    Attributes:
        gate: Its name.
        passed: Whether the challenger may pass.
        sentence: Why, with the figures, for people.
        figures: The same, for machines; all finite.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    gate: str
    passed: bool
    sentence: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Side:
    """One version: what it answers, and what was measured of it.

    Attributes:
        version: Its number in the registry.
        content: sha256 over its files.
        labels: Predicted class names of the test rows, (N,).
        probabilities: Of today's classes, (N, classes) as float32; 0 for a class it does not know.
        pool_labels: Predicted class names of the unlabelled rows, (M,).
        size_bytes: Size of its model file.
        latency_ms: Of each call at batch 1 on one thread, (calls,), taking turns with the other
            side's, so that the calls of both at one position form a pair.
        lineage: What is wrong with its lineage, one sentence each; empty where all was verified.
        clean: Whether committed code made it.
        membership: Area under the curve of the strongest membership-inference attack on it, and the
            ends of its 95% interval; None where none is on record.
        metrics: What the stage that made it measured, by name, as its lineage record holds it.
    """

    version: int
    content: str
    labels: NDArray[np.str_]
    probabilities: NDArray[np.float32]
    pool_labels: NDArray[np.str_]
    size_bytes: int
    latency_ms: NDArray[np.float64]
    lineage: tuple[str, ...]
    clean: bool
    membership: tuple[float, float, float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on: gates read nothing else.

    Attributes:
        rows: Digests of the test rows, (N,), N at least 1.
        labels: Their true class names, (N,).
        classes: Today's class names.
        columns: Further columns of the row manifest by name, (N,) each, to slice the rows by.
        pool: Digests of unlabelled rows, (M,).
        challenger: The version that asks for promotion.
        champion: The version that it would follow, or None where it is the first.
        control: Predictions of the labels-only control, (N,): the floor of a first version.
        data_age_days: Age of the newest data that the challenger learned from.
        teacher: What the challenger's teacher names the unlabelled rows, (M,); None where no gate
            asks for it, or there is none.

    Raises:
        ArtifactError: The parts do not fit together.
    """

    rows: NDArray[np.str_]
    labels: NDArray[np.str_]
    classes: tuple[str, ...]
    columns: dict[str, NDArray[np.str_]]
    pool: NDArray[np.str_]
    challenger: Side
    champion: Side | None
    control: NDArray[np.str_] | None
    data_age_days: float
    teacher: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        for misfit in self._misfits():
            raise ArtifactError(f"this is no whole evidence: {misfit}; collect it again")

    @property
    def sides(self) -> dict[str, Side]:
        """The versions in it by their part."""
        champion = {} if self.champion is None else {"champion": self.champion}
        return {"challenger": self.challenger} | champion

    def right(self, side: Side) -> NDArray[np.bool_]:
        """Which test rows (N,) a version gets right."""
        return side.labels == self.labels

    def _misfits(self) -> Iterator[str]:
        if not len(self.rows):
            yield "there is no test row"
        if not np.isfinite(self.data_age_days):
            yield f"data_age_days is {self.data_age_days}"
        foreign = sorted(set(self.labels.tolist()) - set(self.classes))
        if foreign:
            yield f"label '{foreign[0]}' is none of the classes"
        tall = {"labels": self.labels, **self.columns}
        tall |= {} if self.control is None else {"control": self.control}
        for name, values in tall.items():
            if values.shape != self.rows.shape:
                yield f"{name} has shape {values.shape}, the rows have {self.rows.shape}"
        if self.teacher is not None and self.teacher.shape != self.pool.shape:
            yield f"teacher has shape {self.teacher.shape}, the pool has {self.pool.shape}"
        for name, side in self.sides.items():
            yield from (f"the {name}'s {misfit}" for misfit in self._misfits_of(side))

    def _misfits_of(self, side: Side) -> Iterator[str]:
        count = len(self.rows)
        expected = {
            "labels": (side.labels, (count,)),
            "probabilities": (side.probabilities, (count, len(self.classes))),
            "pool_labels": (side.pool_labels, self.pool.shape),
            "latency_ms": (side.latency_ms, self.challenger.latency_ms.shape),
        }
        for name, (values, shape) in expected.items():
            if values.shape != shape:
                yield f"{name} has shape {values.shape}, expected {shape}"
        if side.probabilities.dtype != np.float32:
            yield f"probabilities are {side.probabilities.dtype}, expected float32"
        if not (np.isfinite(side.latency_ms) & (side.latency_ms > 0)).all():
            yield "latency_ms holds a time that is no positive number"
        if side.size_bytes <= 0:
            yield f"size is {side.size_bytes} bytes"


class Gate(Section):
    """Contract of a gate.

    A verdict is a function of the evidence and the gate's parameters alone, so that anyone who has
    both can judge again and must find the same.
    """

    @property
    def asks_teacher(self) -> bool:
        """Whether it needs the teacher's answers, which are slow to come by."""
        return False

    @abstractmethod
    def judge(self, evidence: Evidence) -> Verdict:
        """Decides, and says why."""


def unmeasured(gate: Gate, what: str) -> Verdict:
    """Of a version whose record lacks the figure that a gate judges by.

    Args:
        gate: That gate.
        what: The figure, in a few words.
    """
    why = (
        f"no {what} is on record for this version; promote an edge model that `stillmark retrain` "
        "made since"
    )
    return Verdict(gate=str(gate.plain()["name"]), passed=False, sentence=why, figures={})


GATES = Drawer("tasks.gates", Gate)
