"""A scikit-learn model as a teacher: it says what it knows of every training row."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from tasks import estimators
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS, Estimator
from tasks.keep import keep_schema
from tasks.rows import HIDDEN, Part
from tasks.sections import Section
from tasks.stage import Work, stage


class ConsultParams(Section):
    """One entry of section `consult` of params.yaml.

    Attributes:
        estimator: The model, and how it uses labels and pool.
        folds: With 2 or more, what it answers on a labelled row comes from a fit that did not see
            that row's label: the labels are dealt into so many parts, and each is hidden in turn. A
            model that repeats the labels it was given teaches nothing about them. 0 asks the one
            fit on all labels about all rows; other rows are always answered by that one.
    """

    estimator: Annotated[Estimator, ESTIMATORS]
    folds: Annotated[int, Field(ge=0)] = 0

    @field_validator("folds")
    @classmethod
    def _leaves_labels(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("a single fold would hide every label; take 0, or 2 or more")
        return folds


@stage("teacher")
def consult(work: Work, params: ConsultParams) -> dict[str, float]:
    """Fits an estimator on the shown labels and the pool, and keeps its answers."""
    pool, validation = work.rows.train, work.rows.validation
    refuse_few(pool, params.folds)
    metrics: dict[str, float] = {}
    fitted = params.estimator.fit(pool, work.compute.seed)
    if params.folds and len(pool.labelled):
        answers = out_of_fold(fitted.answers, params, pool, work)
        fitted = replace(fitted, answers=answers)
        known = pool.labels != HIDDEN
        right = answers[known].argmax(axis=1) == pool.labels[known]
        metrics["out_of_fold_accuracy"] = float(right.mean())
    estimators.save(work.folder, params.estimator, fitted)
    keep_schema(work.folder, work.rows)
    if len(validation):
        said = params.estimator.logits(fitted.model, validation).argmax(axis=1)
        metrics["validation_accuracy"] = float((said == validation.labels).mean())
    return metrics


def refuse_few(pool: Part, folds: int) -> None:
    """Checks that every class with labels leaves some to learn from in each fold.

    Raises:
        ParamsError: A class has fewer labels than there are folds.
    """
    numbers, counts = np.unique(pool.labelled.labels, return_counts=True)
    for number, count in zip(numbers, counts, strict=True):
        if count < folds:
            raise ParamsError(
                f"consult.folds is {folds}, but class '{pool.encoding.classes[number]}' has "
                f"{count} labelled training rows; take at most as many folds, or 0"
            )


def out_of_fold(
    answers: NDArray[np.float32], params: ConsultParams, pool: Part, work: Work
) -> NDArray[np.float32]:
    """Answers, with those on labelled rows replaced by fits that did not see these labels.

    Args:
        answers: Of the fit on all labels, (N, classes) logits.
        params: The estimator, and how many folds.
        pool: Every training row.
        work: Seed and progress.
    """
    from sklearn.model_selection import StratifiedKFold

    seed = work.compute.seed
    found, known = answers.copy(), np.flatnonzero(pool.labels != HIDDEN)
    dealt = StratifiedKFold(params.folds, shuffle=True, random_state=estimators.short(seed))
    for at, (_, held) in enumerate(dealt.split(known, pool.labels[known]), start=1):
        rows = known[held]
        labels = pool.labels.copy()
        labels[rows] = HIDDEN
        found[rows] = params.estimator.fit(replace(pool, labels=labels), seed).answers[rows]
        work.watch.progress(at, params.folds, {})
    return found
