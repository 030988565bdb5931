"""What a version is asked, beside what tests of promotion show."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from tasks import estimators
from tasks.consult import ConsultParams, consult
from tasks.errors import ArtifactError
from tasks.judge import Bench, teacher_of
from tasks.refs import VersionRef
from tasks.rows import HIDDEN, Rows
from tasks.sections import parse
from tasks.tracking import payload_of


@pytest.fixture
def gather(bench):
    """Evidence on a challenger alone."""
    desk = Bench(
        bench.tracking, Rows(bench.root / "prepared"), 40, 10, datetime(2026, 1, 1, tzinfo=UTC)
    )
    return lambda challenger, **how: replace(desk, **how).gather(challenger, None)


@pytest.fixture
def registered(bench):
    return lambda ref: VersionRef(name="digits.edge", version=1, model=ref)


@pytest.fixture
def alone(bench, monkeypatch):
    """Versions of these tests stand in no registry: none has siblings or an evaluation."""
    monkeypatch.setattr(type(bench.tracking), "sibling", lambda *_: None)
    monkeypatch.setattr(type(bench.tracking), "evaluation_of", lambda *_: None)


def test_what_its_stage_measured_comes_from_its_record(alone, bench, toy, gather, registered):
    ref = toy.make(bench)
    metrics = bench.tracking.record_of(ref.model_id, ref.record).metrics
    assert set(metrics) == {"weight"}
    assert gather(registered(ref)).challenger.metrics == metrics


def test_the_teacher_is_found_in_the_lineage_and_asked(alone, bench, toy, gather, registered):
    teacher = toy.make(bench, "lazy")
    student = toy.make(bench, "fair", teacher=teacher, other=toy.make(bench, "good"))
    edge = registered(toy.make(bench, "good", dense=student))
    stored = payload_of(bench.files(teacher))
    assert teacher_of(bench.tracking, edge).samefile(stored)
    found = gather(edge, ask_teacher=True)
    train = Rows(bench.root / "prepared").train
    assert len(found.pool) == min(40, int((train.labels == HIDDEN).sum())) > 0
    # The lazy one names the first class alone.
    assert found.teacher.tolist() == ["0"] * len(found.pool)
    assert len(np.unique(found.challenger.pool_labels)) > 1
    assert gather(edge).teacher is None


def test_a_teacher_of_scikit_learn_is_asked_too(alone, bench, toy, gather, registered):
    params = parse(ConsultParams, {"estimator": {"name": "logistic_regression"}})
    teacher = consult._run(bench.run, params)
    found = gather(registered(toy.make(bench, teacher=teacher)), ask_teacher=True)
    rows = Rows(bench.root / "prepared")
    # What it said of the same rows when it was made.
    kept = estimators.answers(payload_of(bench.files(teacher))).argmax(1)
    said = dict(zip(rows.train.names.tolist(), np.asarray(rows.classes)[kept], strict=True))
    assert found.teacher.tolist() == [said[name] for name in found.pool.tolist()]
    assert len(set(found.teacher.tolist())) > 1


def test_without_a_teacher_or_unlabelled_rows_nobody_is_asked(
    alone, bench, toy, gather, registered
):
    made = registered(toy.make(bench, other=toy.make(bench, "lazy")))
    assert teacher_of(bench.tracking, made) is None
    assert gather(made, ask_teacher=True).teacher is None
    taught = registered(toy.make(bench, "fair", teacher=toy.make(bench)))
    assert gather(taught, ask_teacher=True, pool_rows=0).teacher.tolist() == []


def test_a_damaged_teacher_is_not_asked(bench, toy, registered):
    teacher = toy.make(bench, "lazy")
    edge = registered(toy.make(bench, teacher=teacher))
    path = payload_of(bench.files(teacher)) / "salt.txt"
    path.write_text("1")
    with pytest.raises(ArtifactError, match=r"salt\.txt has sha256"):
        teacher_of(bench.tracking, edge)
