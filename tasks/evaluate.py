"""Evaluation: the test split, opened once for all models of the chain, and measured latency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks import estimators
from tasks.answers import Ask, asking
from tasks.errors import DataError
from tasks.exporters import MODEL_FILE
from tasks.measure import (
    effort,
    host,
    interleaved,
    network_row,
    peak_memory_kib,
    percentiles_ms,
    throughputs,
)
from tasks.membership import Membership, membership
from tasks.refs import ModelRef
from tasks.rows import Part
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.statistics import Share, paired, share

REPORT_FILE, PREDICTIONS_FILE = "evaluation.json", "predictions.parquet"
ATTACKED = ("control", "edge")


class EvaluateParams(Section):
    """Section `evaluate` of params.yaml.

    Attributes:
        latency_calls: Calls per model at batch 1 on one thread, the models taking turns.
        membership_rows: Most training rows, and as many held out, that membership-inference attacks
            on the edge model and its control are tried on.
    """

    latency_calls: Annotated[int, Field(ge=10)] = 300
    membership_rows: Annotated[int, Field(ge=100)] = 5000


class ZeroShot(BaseModel):
    """Accuracy where some classes were never labelled (Xian et al. 2018, arXiv:1707.00600).

    Attributes:
        seen: Accuracy on rows of labelled classes, among all classes.
        unseen: Accuracy on rows of never labelled classes, among all classes.
        harmonic_mean: Of the two.
        among_unseen: Accuracy on rows of never labelled classes, among these alone.
    """

    model_config = ConfigDict(frozen=True)

    seen: float
    unseen: float
    harmonic_mean: float
    among_unseen: float

    @classmethod
    def of(
        cls, probabilities: NDArray[np.float32], labels: NDArray[np.int64], unseen: list[int]
    ) -> "ZeroShot":
        """Figures of one model.

        Args:
            probabilities: (N, classes).
            labels: (N,).
            unseen: Numbers of the classes never labelled; at least one row carries one of them.
        """
        new = np.isin(labels, unseen)
        right = probabilities.argmax(1) == labels
        seen_share, unseen_share = float(right[~new].mean()), float(right[new].mean())
        among = np.asarray(unseen)[probabilities[new][:, unseen].argmax(1)]
        total = seen_share + unseen_share
        return cls(
            seen=seen_share,
            unseen=unseen_share,
            harmonic_mean=2 * seen_share * unseen_share / total if total else 0.0,
            among_unseen=float((among == labels[new]).mean()),
        )


class Measured(BaseModel):
    """One model of the chain, as measured on this host.

    Attributes:
        role: What the model is in the chain.
        accuracy: Share of test rows it gets right, with the interval in `low` and `high`.
        low: Lower end of the 95% Wilson interval.
        high: Upper end.
        parameters: Trainable values; None of an estimator.
        macs: Multiply-accumulates per row; None of an estimator.
        size_bytes: Size of its ONNX file, or of the estimator's.
        latency_p50_ms: Median time of a call at batch 1 on one thread of this host.
        latency_p95_ms: 95th percentile of the same.
        throughput_rows_per_second: Rows per second at batch 256 on one thread; None of an estimator
            and in reports from before it was measured.
        peak_memory_kib: What loading and running it takes, see `tasks.measure.peak_memory_kib`;
            None of the same.
        zero_shot: Where some classes were never labelled.
        membership: How well its training rows can be told from others; of the edge model and its
            control.
    """

    model_config = ConfigDict(frozen=True)

    role: str
    accuracy: float
    low: float
    high: float
    parameters: int | None
    macs: int | None
    size_bytes: int
    latency_p50_ms: float
    latency_p95_ms: float
    throughput_rows_per_second: float | None = None
    peak_memory_kib: float | None = None
    zero_shot: ZeroShot | None = None
    membership: Membership | None = None


class Evaluation(BaseModel):
    """The report of one evaluation.

    Attributes:
        rows: Test rows.
        majority_share: Accuracy of always naming the most frequent class.
        host: Processor that latency was measured on.
        models: In the order of the chain.
        gain_over_control: Accuracy of the edge model minus the control's, on the same rows.
        p_value: Exact McNemar test of "the edge model is no better than the control".
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    majority_share: float
    host: str
    models: tuple[Measured, ...]
    gain_over_control: float
    p_value: float

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Reads the report in a folder."""
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())

    def of(self, role: str) -> Measured:
        """The figures of one model."""
        return next(found for found in self.models if found.role == role)


@stage("evaluation", is_model=False)
def evaluate(work: Work, params: EvaluateParams, **models: ModelRef) -> dict[str, float]:
    """Predicts every test row with every model, as the edge would, and measures their latency."""
    test = work.rows.open_test()
    if not len(test):
        raise DataError(
            "there is no labelled test row; label more rows, or raise prepare.test_share"
        )
    folders = {role: work.files(ref) for role, ref in models.items()}
    classifiers = {role: asking(work.rows.modality, folder) for role, folder in folders.items()}
    probabilities = {role: ask(test) for role, ask in classifiers.items()}
    right = {role: found.argmax(1) == test.labels for role, found in probabilities.items()}
    one = test.first()
    calls = {role: (lambda ask=ask: ask(one)) for role, ask in classifiers.items()}
    times = interleaved(calls, params.latency_calls)
    speeds = throughputs(
        {role: ask for role, ask in classifiers.items() if _is_network(folders[role])}, test
    )
    measured = [
        _measured(work, role, folders[role], share(right[role]), times[role]).model_copy(
            update={
                "throughput_rows_per_second": speeds.get(role),
                "zero_shot": _zero_shot(work, probabilities[role], test),
                "membership": _membership(work, params, classifiers[role], test)
                if role in ATTACKED
                else None,
            }
        )
        for role in models
    ]
    against = paired(right["edge"], right["control"])
    evaluation = Evaluation(
        rows=len(test),
        majority_share=float(np.bincount(test.labels).max() / len(test)),
        host=host(),
        models=tuple(measured),
        gain_over_control=against.gain,
        p_value=against.p_value,
    )
    (work.folder / REPORT_FILE).write_text(evaluation.model_dump_json(indent=2), encoding="utf-8")
    write_predictions(work.folder / PREDICTIONS_FILE, test, work.rows.classes, probabilities)
    return {f"{found.role}.test_accuracy": found.accuracy for found in measured}


def _zero_shot(work: Work, probabilities: NDArray[np.float32], test: Part) -> ZeroShot | None:
    if not np.isin(test.labels, work.rows.unseen).any():
        return None
    return ZeroShot.of(probabilities, test.labels, work.rows.unseen)


def _membership(work: Work, params: EvaluateParams, ask: Ask, test: Part) -> Membership:
    return membership(ask, work.rows.train, test, params.membership_rows)


def _measured(
    work: Work, role: str, folder: Path, right: Share, seconds: NDArray[np.float64]
) -> Measured:
    row = network_row(work.rows.modality, work.rows.train)
    parameters, macs = effort(folder, torch.from_numpy(row))
    model = folder / MODEL_FILE
    is_network = _is_network(folder)
    p50, p95 = percentiles_ms(seconds)
    return Measured(
        role=role,
        accuracy=right.value,
        low=right.low,
        high=right.high,
        parameters=parameters,
        macs=macs,
        size_bytes=(model if is_network else folder / estimators.ESTIMATOR_FILE).stat().st_size,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        peak_memory_kib=peak_memory_kib(model, row) if is_network else None,
    )


def _is_network(folder: Path) -> bool:
    return (folder / MODEL_FILE).is_file()


def write_predictions(
    path: Path, rows: Part, classes: Sequence[str], probabilities: dict[str, NDArray[np.float32]]
) -> None:
    """Per-row evidence: row digest, true label, and label and probability by each model."""
    names = np.asarray(classes)
    columns: dict[str, Any] = {"row": rows.names.tolist(), "label": names[rows.labels].tolist()}
    for role, found in probabilities.items():
        columns[role] = names[found.argmax(1)].tolist()
        columns[f"{role}_probability"] = found.max(1)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")
