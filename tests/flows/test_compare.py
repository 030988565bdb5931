import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from flows.arms import Arm as Way
from flows.arms import arms
from flows.chain import plan
from flows.compare import _run, advice, cells_of, interval, rows_of
from tasks.compare import (
    CONTROL,
    DISTILLED,
    RIGHT_FILE,
    UNPRETRAINED,
    Arm,
    Comparison,
    Named,
    cell,
)
from tasks.params import load
from tasks.refs import ModelRef
from tasks.rows import Rows
from tasks.stage import Run
from tasks.statistics import Gain
from tasks.tracking import Tracking, payload_of
from tasks.versioning import Versions

NAMES = [
    CONTROL,
    "labels only without views",
    "self-training",
    "teacher",
    "teacher-2",
    "teacher-3",
    DISTILLED,
    "teacher of shuffled labels",
    "logistic regression",
    "all labels",
]


# A real one: retrained, compared, and compared again


def store(project):
    return Tracking(project.uri, project.root / ".stillmark")


def stage_runs(project):
    """The runs of stages; that of the promotion is none, nor the journal's."""
    runs = store(project).last_runs("digits", 999)
    return [run for run in runs if tags(run)["stillmark.stage"] not in {"promote", "retrain"}]


def tags(run):
    return run.data.tags


def right_of(project):
    """The table of right test rows that the report holds."""
    found = store(project)
    (run,) = [run for run in stage_runs(project) if tags(run)["stillmark.stage"] == "assess"]
    folder = found.fetch(ModelRef.model_validate_json(tags(run)["stillmark.ref"])).folder
    return pyarrow.parquet.read_table(payload_of(folder) / RIGHT_FILE)


def test_the_chains_other_shape_is_registered(compared):
    """Two members and an estimator teach; nothing is pretrained or pruned."""
    roles = ["control", "teacher", "teacher-2", "teacher-3", "student", "edge"]
    assert compared.retrained["versions"] == dict.fromkeys(roles, 1)
    found = store(compared.project)
    assert found.registered() == sorted(f"digits.{role}" for role in roles)
    models = {model["role"]: model for model in compared.retrained["evaluation"]["models"]}
    assert list(models) == roles
    assert models["teacher-3"]["parameters"] is None
    contents = {
        role: found.versions(f"digits.{role}")[0].tags["stillmark.content"] for role in models
    }
    assert len(set(contents.values())) == len(roles)


def test_the_student_and_the_edge_name_their_parents(compared):
    found = store(compared.project)
    parents = {}
    for role in ("student", "edge"):
        ref = found.ref_of(found.versions(f"digits.{role}")[0])
        record = json.loads((found.fetch(ref).folder / "record.json").read_bytes())
        parents[role] = {parent["role"]: parent["record"] for parent in record["parents"]}
    digests = {
        role: found.ref_of(found.versions(f"digits.{role}")[0]).record
        for role in ("student", "teacher", "teacher-2", "teacher-3")
    }
    assert parents["edge"] == {"dense": digests.pop("student")}
    assert parents["student"] == digests


def test_the_plan_reuses_what_the_other_shape_made(compared):
    project = compared.project
    params = load(project.root)
    data = Versions(project.root, project.root / ".stillmark").current()
    found = plan(store(project), Run(params.project, params.compute, data), params)
    assert found == dict.fromkeys(
        ["teach", "teach-2", "consult", "distill", "quantize", "supervise", "evaluate"], True
    )


def test_every_arm_has_its_row(compared):
    found = compared.compared["arms"]
    assert [row["arm"] for row in found] == NAMES
    for row in found:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["what"]
        gains = [row["gain_low"], row["gain"], row["gain_high"]]
        assert gains == ([None] * 3 if row["arm"] == CONTROL else sorted(gains))
    assert compared.compared["advice"]


def test_the_picture_lies_where_the_command_says(compared):
    path = Path(compared.compared["plot"])
    assert path == compared.project.root / ".stillmark" / "comparison.png"
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"


def test_every_arm_answers_the_same_test_rows(compared):
    table = right_of(compared.project)
    test = Rows(compared.project.root / "prepared").open_test()
    assert table["row"].to_pylist() == test.names.tolist()
    assert table.column_names == ["row", *(cell(name, 0, 0) for name in NAMES)]


def test_gains_are_paired_by_row(compared):
    table = right_of(compared.project)
    for row in compared.compared["arms"]:
        mine, control = (
            np.array(table[cell(name, 0, 0)].to_pylist(), float) for name in (row["arm"], CONTROL)
        )
        assert row["accuracy"] == pytest.approx(mine.mean())
        if row["gain"] is not None:
            assert row["gain"] == pytest.approx((mine - control).mean())
            same = (mine == control).all()
            assert (row["gain_low"] == row["gain_high"]) == bool(same)


def test_what_the_retraining_made_is_taken(compared):
    """Its stages show up in the comparison, and none of them ran twice."""
    retraining, comparison, _, _ = compared.progress
    made = [line.split()[0] for line in retraining.splitlines() if " done in " in line]
    assert sorted(made) == sorted(
        ["teach", "teach", "consult", "distill", "quantize", "supervise", "evaluate"]
    )
    reused = Counter(line.split()[0] for line in comparison.splitlines() if " reused" in line)
    assert reused >= Counter(["supervise", "teach", "teach", "consult", "distill"])
    keys = Counter(tags(run)["stillmark.key"] for run in stage_runs(compared.project))
    stages = Counter(tags(run)["stillmark.stage"] for run in stage_runs(compared.project))
    assert max(keys.values()) == 1
    assert stages == {
        "supervise": 3,  # the control, the one without views, the oracle
        "teach": 5,  # two members, the same of shuffled labels, self-training
        "consult": 2,  # the teacher, also of shuffled labels; the baseline is the same model
        "distill": 2,
        "quantize": 1,
        "evaluate": 1,
        "assess": 1,
    }


def test_a_second_comparison_trains_nothing(compared):
    *_, again, rest = compared.progress
    words = [line.split()[1] for line in again.splitlines() if line]
    assert words
    assert set(words) == {"reused"}
    assert rest.strip() == ""


def test_people_are_shown_the_table_the_picture_and_the_advice(compared):
    text = compared.shown
    for row in compared.compared["arms"]:
        (line,) = [one for one in text.splitlines() if one.startswith(f" {row['arm']}  ")]
        assert f"{row['accuracy']:.2%}" in line
        if row["gain"] is not None:
            assert f"{100 * row['gain']:+.1f} ({100 * row['gain_low']:+.1f} to " in line
        assert f"{100 * row['train_test_gap']:+.1f}" in line
    flat = " ".join(text.split())
    assert compared.compared["advice"] in flat
    assert compared.compared["plot"] in flat
    assert "on the same 36 test rows, 1 repeat (label draws and seeds)" in flat
    assert max(len(line) for line in text.splitlines()) <= 100


def test_prefect_knows_the_cells_and_that_all_has_ended(compared):
    path = compared.project.root / ".stillmark" / "prefect" / "prefect.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with contextlib.closing(connection):
        flows = connection.execute("SELECT state_type FROM flow_run").fetchall()
        states = connection.execute("SELECT DISTINCT state_type FROM task_run").fetchall()
        cells = connection.execute("SELECT name FROM task_run WHERE name LIKE '%/%'").fetchall()
        query = "SELECT data, description FROM artifact WHERE key = 'comparison'"
        tables = connection.execute(query).fetchall()
    assert flows == [("COMPLETED",)] * 3
    assert states == [("COMPLETED",)]
    names = {cell(name, 0, 0) for name in NAMES}
    assert Counter(name for (name,) in cells) == dict.fromkeys(names, 2)
    assert len(tables) == 2
    for data, description in tables:
        assert all(name in data for name in NAMES)
        assert description == compared.compared["advice"]


# What a cell is


@pytest.fixture
def own(bench):
    """The run of a cell, by its arm's kind."""

    def make(kind, draw=0, seed=0, run=bench.run):
        arm = Way(Named(name="an arm", kind=kind, sentence=""), lambda meet, params: None)
        prepared = Rows(bench.root / "prepared").budget
        return _run(run, arm, prepared, draw, seed)

    return make


@pytest.fixture
def seen(bench, own):
    """The rows as a cell's stages see them."""

    def look(kind, draw=0, seed=0):
        return Rows(bench.root / "prepared", own(kind, draw, seed).redraw)

    return look


def labels(part):
    known = part.labelled
    return dict(zip(known.names.tolist(), known.labels.tolist(), strict=True))


def test_every_arm_has_a_cell_for_every_draw_and_seed(bench):
    section = bench.params.compare.model_copy(update={"draws": (3, 0), "seeds": (0, 5)})
    params = bench.params.model_copy(update={"compare": section})
    prepared = Rows(bench.root / "prepared").budget
    found = cells_of(bench.run, params, prepared)
    ways = arms(params)
    assert list(found) == [
        cell(way.named.name, draw, seed) for way in ways for draw in (3, 0) for seed in (0, 5)
    ]
    for way in ways:
        arm, run = found[cell(way.named.name, 3, 5)]
        assert arm.named == way.named
        assert run == _run(bench.run, way, prepared, 3, 5)


@pytest.mark.parametrize("kind", ["control", "teacher", "student", "baseline"])
def test_the_prepared_labels_are_the_retrainings_own(bench, own, kind):
    """The same run has the same stage keys."""
    assert own(kind) == bench.run


def test_another_draw_and_another_seed_are_other_runs(bench, own):
    found = [own("student", draw, seed) for draw in (0, 1, 2) for seed in (0, 1)]
    keys = {arms(bench.params)[0].build(Keys(run), bench.params).key for run in found}
    assert len(keys) == 6
    assert [run.compute.seed for run in found] == [0, 1] * 3
    for run in found:
        assert run.data == bench.run.data
        assert run.compute.model_copy(update={"seed": 0}) == bench.run.compute


class Keys:
    """Meets stages without running them: a result is named by its stage's key."""

    def __init__(self, run):
        self.run = run

    def __call__(self, stage, section, **inputs):
        return ModelRef(
            stage=stage.name,
            role=stage.role,
            key=stage.key(self.run, section, inputs),
            run_id="",
            model_id=None,
            record="",
            content="",
        )


def test_the_seed_is_counted_from_the_retrainings(bench, own):
    run = Run(bench.run.project, bench.run.compute.model_copy(update={"seed": 7}), bench.run.data)
    assert own("student", run=run) == run
    assert own("student", seed=2, run=run).compute.seed == 9


def test_draws_show_other_labels_of_the_same_rows(seen):
    first, second = seen("student"), seen("student", draw=1)
    assert labels(first.train).keys() != labels(second.train).keys()
    assert Counter(labels(first.train).values()) == Counter(labels(second.train).values())
    for part in ("train", "validation"):
        known, other = labels(getattr(first, part)), labels(getattr(second, part))
        assert all(known[name] == other[name] for name in known.keys() & other.keys())
    np.testing.assert_array_equal(first.train.names, second.train.names)
    np.testing.assert_array_equal(first.train.inputs, second.train.inputs)
    assert labels(first.open_test()) == labels(second.open_test())


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_shuffled_labels_are_wrong_for_training_rows_alone(seen, draw):
    right, wrong = seen("student", draw), seen("negative", draw)
    true, dealt = labels(right.train), labels(wrong.train)
    assert dealt.keys() == true.keys()
    assert Counter(dealt.values()) == Counter(true.values())
    same = np.mean([dealt[name] == true[name] for name in true])
    assert same < 0.6  # a third by chance, of three classes
    assert labels(wrong.validation) == labels(right.validation)
    assert labels(wrong.open_test()) == labels(right.open_test())


def test_the_oracle_sees_every_label_in_every_draw(bench, seen, own):
    rows = seen("oracle", draw=1)
    every = Rows(bench.root / "prepared").open_oracle()
    assert labels(rows.train) == labels(every)
    assert len(labels(rows.train)) > 3 * len(labels(seen("student").train))
    assert own("oracle", draw=1) == own("oracle", draw=0)
    assert own("oracle", seed=1) != own("oracle", seed=0)


def test_of_classes_without_labels_the_oracle_alone_sees_some(bench, own):
    prepared = Rows(bench.root / "prepared").budget.model_copy(update={"unseen_classes": ("1",)})

    def classes(kind):
        arm = Way(Named(name="an arm", kind=kind, sentence=""), lambda meet, params: None)
        redraw = _run(bench.run, arm, prepared, 1, 0).redraw
        return set(labels(Rows(bench.root / "prepared", redraw).train).values())

    assert classes("student") == classes("negative") == {0, 2}
    assert classes("oracle") == {0, 1, 2}


# The advice


def arm(name, kind, accuracy, gain=None, width=0.02):
    low, high = accuracy - width, accuracy + width
    return Arm(
        named=Named(name=name, kind=kind, sentence=f"what {name} is"),
        accuracy=Gain(accuracy, low, high),
        gain=gain,
        train_accuracy=0.9,
    )


CLEAR, UNCLEAR, WORSE = Gain(0.1, 0.05, 0.15), Gain(0.05, -0.01, 0.11), Gain(-0.1, -0.15, -0.05)


def comparison(*others, pretraining=None):
    control = arm(CONTROL, "control", 0.7)
    return Comparison(rows=100, repeats=3, arms=(control, *others), pretraining=pretraining)


def test_an_interval_without_zero_cuts_the_error():
    assert advice(comparison(arm(DISTILLED, "student", 0.8, CLEAR))) == (
        "'distilled' cuts the error from 30.0% to 20.0% (accuracy +10.0 points, 95% interval +5.0 "
        "to +15.0)."
    )


@pytest.mark.parametrize(
    "gain", [UNCLEAR, WORSE, Gain(0.1, 0.0, 0.2)], ids=["unclear", "worse", "zero at the end"]
)
def test_an_interval_with_zero_shows_no_help(gain):
    found = advice(comparison(arm(DISTILLED, "student", 0.7 + gain.value, gain)))
    assert "cuts" not in found
    assert found.startswith("No way to use the pool is shown to help here: the best, 'distilled', ")
    assert f"from 30.0% to {0.3 - gain.value:.1%}" in found


def test_the_best_student_is_named():
    found = advice(
        comparison(
            arm("self-training", "student", 0.75, CLEAR),
            arm(DISTILLED, "student", 0.85, CLEAR),
            arm("dist", "student", 0.8, CLEAR),
        )
    )
    assert found.startswith("'distilled' cuts the error from 30.0% to 15.0%")


def test_what_is_shown_to_help_goes_before_what_may():
    """A higher accuracy may be luck."""
    found = advice(
        comparison(
            arm("lucky", "student", 0.85, Gain(0.15, -0.01, 0.31)),
            arm(DISTILLED, "student", 0.8, CLEAR),
        )
    )
    assert found.startswith("'distilled' cuts the error")


def test_only_students_count_as_ways_to_use_the_pool():
    """Teachers and the oracle are no models for the edge, and another control has no pool."""
    found = advice(
        comparison(
            arm("dropout", "control", 0.95, CLEAR),
            arm("teacher", "teacher", 0.95, CLEAR),
            arm(DISTILLED, "student", 0.7, UNCLEAR),
            arm("all labels", "oracle", 0.99, CLEAR),
        )
    )
    assert found.startswith("No way to use the pool is shown to help")


@pytest.mark.parametrize(
    ("pretraining", "said"),
    [
        (CLEAR, "Pretraining helps (+10.0 points, 95% interval +5.0 to +15.0): keep it."),
        (UNCLEAR, "Pretraining adds nothing here (+5.0 points, 95% interval -1.0 to +11.0): leave"),
        (WORSE, "Pretraining adds nothing here (-10.0 points, 95% interval -15.0 to -5.0): leave"),
    ],
)
def test_pretraining_has_its_sentence(pretraining, said):
    students = (arm(DISTILLED, "student", 0.8, CLEAR), arm(UNPRETRAINED, "student", 0.78, CLEAR))
    assert said in advice(comparison(*students, pretraining=pretraining))
    assert "retraining" not in advice(comparison(*students))


@pytest.mark.parametrize(("accuracy", "warns"), [(0.80, True), (0.77, True), (0.6, False)])
def test_a_teacher_of_wrong_labels_that_does_as_well_is_a_warning(accuracy, warns):
    found = advice(
        comparison(
            arm(DISTILLED, "student", 0.8, CLEAR),
            arm("teacher of shuffled labels", "negative", accuracy, UNCLEAR),
        )
    )
    assert ("'teacher of shuffled labels' does as well" in found) is warns
    assert ("look for a mistake in the data" in found) is warns


def test_a_better_baseline_is_named_and_the_best_of_them():
    students = (arm(DISTILLED, "student", 0.8, CLEAR), arm("teacher", "teacher", 0.95, CLEAR))
    baselines = (
        arm("logistic regression", "baseline", 0.82, CLEAR),
        arm("gradient boosting", "baseline", 0.9, CLEAR),
    )
    assert advice(comparison(*students, *baselines)).endswith(
        "'gradient boosting' of scikit-learn reaches 90.0%, more than any student or control."
    )
    assert "scikit-learn" not in advice(comparison(*students))


@pytest.mark.parametrize("accuracy", [0.8, 0.75, 0.1])
def test_a_baseline_that_is_no_better_is_not_mentioned(accuracy):
    """Not even where it beats the best student, if a control is better than both."""
    for kind in ("student", "control"):
        best = arm("the best", kind, 0.8, CLEAR)
        worst = arm(DISTILLED, "student", 0.05, WORSE)
        baseline = arm("logistic regression", "baseline", accuracy, UNCLEAR)
        assert "scikit-learn" not in advice(comparison(worst, best, baseline))


def test_sentences_stand_one_after_another():
    found = advice(
        comparison(
            arm(DISTILLED, "student", 0.8, CLEAR),
            arm("teacher of shuffled labels", "negative", 0.8, CLEAR),
            arm("logistic regression", "baseline", 0.9, CLEAR),
            pretraining=None,
        )
    )
    assert "  " not in found
    assert found == found.strip()


def test_rows_are_plain_data():
    found = comparison(arm(DISTILLED, "student", 0.8, CLEAR))
    first, second = rows_of(found)
    assert (first["gain"], first["gain_low"], first["gain_high"]) == (None, None, None)
    assert second == {
        "arm": DISTILLED,
        "accuracy": 0.8,
        "low": pytest.approx(0.78),
        "high": pytest.approx(0.82),
        "gain": 0.1,
        "gain_low": 0.05,
        "gain_high": 0.15,
        "train_test_gap": pytest.approx(0.1),
        "what": "what distilled is",
    }
    assert json.loads(json.dumps([first, second], allow_nan=False))


def test_a_gain_of_nothing_is_a_figure_too():
    found = comparison(arm(DISTILLED, "student", 0.7, Gain(0.0, 0.0, 0.0)))
    assert rows_of(found)[1]["gain"] == 0.0
    assert interval(Gain(0.0, 0.0, 0.0)) == "+0.0 points, 95% interval +0.0 to +0.0"
    assert interval(None) == ""


# Interrupted


def start(project):
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "compare"],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(project, child, query, what):
    """Waits until a query of MLflow's database counts at least one row."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and child.poll() is None:
        connection = sqlite3.connect(project.root / "mlflow.db", timeout=5)
        with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
            if connection.execute(query).fetchone()[0]:
                return
        time.sleep(0.05)
    pytest.fail(f"{what} was not seen")


@pytest.fixture
def small(untrained):
    """A project with a comparison of some seconds."""
    untrained.change("compare", {"draws": [0, 1]})
    for section in ("pretrain", "teach.0", "distill", "supervise"):
        untrained.change(f"{section}.fit.steps", 12)
    return untrained


@pytest.mark.slow
def test_a_killed_comparison_goes_on_from_the_cells_that_were_done(small):
    child = start(small)
    half = "SELECT count(*) >= 3 AND max(CASE WHEN status = 'RUNNING' THEN 1 ELSE 0 END) FROM runs"
    wait_for(small, child, half, "a stage after the second")
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = {
        tags(run)["stillmark.key"]: run.info.run_id
        for run in stage_runs(small)
        if run.info.status == "FINISHED"
    }
    assert len(before) >= 2

    done = small.stillmark("compare", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"][0]["arm"] == CONTROL
    found = [run for run in stage_runs(small) if run.info.status == "FINISHED"]
    after = {tags(run)["stillmark.key"]: run.info.run_id for run in found}
    assert len(after) == len(found)
    assert before.items() < after.items()


@pytest.mark.slow
def test_a_terminated_comparison_ends_while_a_cell_trains(small):
    """Not only when the cell is done, which may take hours."""
    small.change("supervise.fit.steps", 1_000_000)
    child = start(small)
    try:
        wait_for(small, child, "SELECT count(*) FROM metrics", "training")
        child.terminate()
        assert child.wait(60) == 128 + signal.SIGTERM
        (run,) = stage_runs(small)
        assert run.info.status == "FAILED"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
