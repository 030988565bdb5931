"""Comparison: does a way to learn help on this data, and by how much?"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks.answers import asking
from tasks.combinations import COMBINATIONS, Combination
from tasks.errors import DataError
from tasks.estimators import ESTIMATORS, Estimator
from tasks.losses import LOSSES, Loss
from tasks.networks import NETWORKS, Network
from tasks.pictures import picture
from tasks.refs import ModelRef
from tasks.rows import Part, Rows
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.statistics import Gain, bootstrap

REPORT_FILE, PLOT_FILE, RIGHT_FILE = "comparison.json", "comparison.png", "right.parquet"
CONTROL, DISTILLED, UNPRETRAINED = "labels only", "distilled", "distilled without pretraining"

Kind = Literal["control", "teacher", "student", "negative", "baseline", "oracle"]
INCHES_PER_ARM = 0.38

T = TypeVar("T")
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$", max_length=100)]


def _different(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError("expected one or more numbers, each of them once")
    return numbers


Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0, le=2**53 - 1)], ...], AfterValidator(_different)
]


class Distillation(Section):
    """One more way to distill, as it differs from section `distill`; null takes what stands there.

    Attributes:
        losses: The losses.
        network: The student.
        combination: Of several teachers' answers.
        rows_share: Share of the training rows that the student sees.
        l1: Weight of the absolute values of the student's weights.
    """

    losses: tuple[Annotated[Loss, LOSSES], ...] | None = None
    network: Annotated[Network, NETWORKS] | None = None
    combination: Annotated[Combination, COMBINATIONS] | None = None
    rows_share: Annotated[float, Field(gt=0, le=1)] | None = None
    l1: Annotated[float, Field(ge=0)] | None = None

    def changes(self) -> dict[str, object]:
        """What differs, by field."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value is not None}


class Control(Section):
    """One more labels-only control, as it differs from section `supervise`.

    Attributes:
        network: The network, for example with dropout.
        weight_decay: Decoupled weight decay.
    """

    network: Annotated[Network, NETWORKS] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class CompareParams(Section):
    """Section `compare` of params.yaml: which arms, and how often.

    The arms that are always there: labels only; labels only without augmentation; self-training of
    the student without a teacher; the teachers; the chain's distillation; the same from a teacher
    of shuffled labels (negative control); all labels there are (oracle).

    Attributes:
        draws: Label draws.
        seeds: Seeds of each draw.
        distillations: Further arms by name.
        controls: Further labels-only arms by name.
        baselines: scikit-learn models beside the networks.
        confidence: What self-training takes for certain.
    """

    draws: Numbers = (0, 1, 2)
    seeds: Numbers = (0,)
    distillations: dict[ArmName, Distillation] = Field(default_factory=dict)
    controls: dict[ArmName, Control] = Field(default_factory=dict)
    baselines: tuple[Annotated[Estimator, ESTIMATORS], ...] = ()
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Named(Section):
    """What the report needs to know of an arm.

    Attributes:
        name: As tables call it.
        sentence: What it is, for people.
        kind: What it stands for in the comparison.
    """

    name: str
    sentence: str
    kind: Kind


class AssessParams(Section):
    """What the report needs to know of the arms.

    Attributes:
        arms: In the order of the table; the control is one of them.
    """

    arms: tuple[Named, ...]


class Arm(BaseModel):
    """One row of the comparison.

    Attributes:
        named: The arm.
        accuracy: Mean over repeats of the share of test rows it gets right, with its interval.
        gain: Over the labels-only control, paired by draw, seed and row; None of the control.
        train_accuracy: Mean accuracy on the training rows whose label the control was shown.
    """

    model_config = ConfigDict(frozen=True)

    named: Named
    accuracy: Gain
    gain: Gain | None
    train_accuracy: float

    @property
    def gap(self) -> float:
        """Accuracy on shown training rows minus that on test rows: how much it overfits."""
        return self.train_accuracy - self.accuracy.value


class Comparison(BaseModel):
    """The report of one comparison.

    Attributes:
        rows: Test rows.
        repeats: Draws times seeds.
        arms: In order; the control first.
        pretraining: What pretraining adds to distillation; None where it was not tried.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    repeats: int
    arms: tuple[Arm, ...]
    pretraining: Gain | None

    @classmethod
    def read(cls, folder: Path) -> "Comparison":
        """Reads the report in a folder."""
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())

    def of(self, name: str) -> Arm:
        """One arm."""
        return next(arm for arm in self.arms if arm.named.name == name)


def cell(arm: str, draw: int, seed: int) -> str:
    """Name of one repeat of an arm, as the report's inputs are called."""
    return f"{arm}/{draw}/{seed}"


@stage("comparison", is_model=False)
def assess(work: Work, params: AssessParams, **cells: ModelRef) -> dict[str, float]:
    """Asks every model of every arm about the test rows, and compares them pair by pair.

    Args:
        work: The rows.
        params: The arms.
        cells: Models by `cell`; every arm in the same repeats.
    """
    test = work.rows.open_test()
    if not len(test):
        raise DataError("there is no labelled test row; label more, or raise prepare.test_share")
    right: dict[str, NDArray[np.bool_]] = {}
    trained: dict[str, float] = {}
    for name, ref in cells.items():
        ask, shown = asking(work.rows.modality, work.files(ref)), _shown(work, name)
        right[name] = ask(test).argmax(1) == test.labels
        trained[name] = float((ask(shown).argmax(1) == shown.labels).mean())
    tables = {arm.name: np.stack(_of(right, arm.name)).astype(float) for arm in params.arms}
    arms = tuple(_arm(arm, tables, _of(trained, arm.name)) for arm in params.arms)
    found = Comparison(
        rows=len(test),
        repeats=len(tables[CONTROL]),
        arms=arms,
        pretraining=_pretraining(tables),
    )
    (work.folder / REPORT_FILE).write_text(found.model_dump_json(indent=2), encoding="utf-8")
    evidence = pyarrow.table({"row": test.names.tolist(), **right})
    pyarrow.parquet.write_table(evidence, work.folder / RIGHT_FILE, compression="zstd")
    draw_plot(found, work.folder / PLOT_FILE)
    return {f"{arm.named.name}.accuracy": arm.accuracy.value for arm in arms}


def _shown(work: Work, name: str) -> Part:
    """The training rows whose labels the control was shown in a cell's draw."""
    draw = int(name.rsplit("/", 2)[1])
    return Rows(work.rows.folder, work.rows.budget.redraw(draw=draw)).train.labelled


def _of(values: dict[str, T], arm: str) -> list[T]:
    return [value for name, value in values.items() if name.rsplit("/", 2)[0] == arm]


def _arm(named: Named, tables: dict[str, NDArray[np.float64]], trained: list[float]) -> Arm:
    table = tables[named.name]
    return Arm(
        named=named,
        accuracy=bootstrap(table),
        gain=None if named.name == CONTROL else bootstrap(table - tables[CONTROL]),
        train_accuracy=float(np.mean(trained)),
    )


def _pretraining(tables: dict[str, NDArray[np.float64]]) -> Gain | None:
    if UNPRETRAINED not in tables:
        return None
    return bootstrap(tables[DISTILLED] - tables[UNPRETRAINED])


def draw_plot(found: Comparison, path: Path) -> None:
    """Accuracies with their intervals, the control as a line, as a picture."""
    with picture(path, height=1 + INCHES_PER_ARM * len(found.arms)) as axes:
        for at, arm in enumerate(reversed(found.arms)):
            interval = arm.accuracy
            axes.plot([interval.low, interval.high], [at, at], color="C0", linewidth=2)
            axes.plot(interval.value, at, "o", color="C0")
        axes.axvline(found.of(CONTROL).accuracy.value, color="0.5", linestyle=":")
        axes.set_yticks(range(len(found.arms)), [arm.named.name for arm in reversed(found.arms)])
        axes.set_xlabel(
            f"accuracy on {found.rows} test rows ({found.repeats} repeats, 95% intervals)"
        )
