import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import hmean
from sklearn.linear_model import LogisticRegression as Regression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.consult import ConsultParams, consult
from tasks.errors import DataError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.evaluate import (
    EvaluateParams,
    Evaluation,
    ZeroShot,
    evaluate,
    write_predictions,
)
from tasks.lineage.digests import digest_of_files, digests_of_folder
from tasks.params import load
from tasks.refs import DataRef
from tasks.rows import Rows
from tasks.stage import Run, stage
from tasks.statistics import paired, share
from tasks.tracking import Tracking, payload_of

ROLES = ["control", "teacher", "student", "pruned", "edge"]


@pytest.fixture(scope="module")
def report(finished):
    """The evaluation's folder, and the store it lies in."""
    store = Tracking(finished.project.uri, finished.project.root / ".stillmark")
    runs = store.last_runs("digits", 50)
    (run,) = [run for run in runs if run.data.tags["stillmark.stage"] == "evaluate"]
    return payload_of(Path(run.info.artifact_uri.removeprefix("file://"))), store


def test_the_figures_follow_from_the_stored_predictions(report, finished):
    folder, _ = report
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()
    labels = np.asarray(rows["label"])
    right = {role: np.asarray(rows[role]) == labels for role in ROLES}
    found = Evaluation.read(folder)
    assert [model.role for model in found.models] == ROLES
    assert found.rows == len(labels) == len(set(rows["row"]))
    _, counts = np.unique(labels, return_counts=True)
    assert found.majority_share == pytest.approx(counts.max() / len(labels))
    for role in ROLES:
        expected = share(right[role])
        figures = found.of(role)
        assert figures.accuracy == pytest.approx(expected.value)
        assert (figures.low, figures.high) == pytest.approx((expected.low, expected.high))
        assert all(1 / 3 <= value <= 1 for value in rows[f"{role}_probability"])
    against = paired(right["edge"], right["control"])
    assert found.gain_over_control == pytest.approx(against.gain)
    assert found.p_value == pytest.approx(against.p_value)
    assert finished.outcome["evaluation"] == json.loads(found.model_dump_json())


def test_sizes_are_file_sizes_and_the_edge_is_smallest(report):
    folder, store = report
    found = Evaluation.read(folder)
    for role in ROLES:
        (version,) = store.versions(f"digits.{role}")
        model = payload_of(store.fetch(store.ref_of(version)).folder) / "model.onnx"
        assert found.of(role).size_bytes == model.stat().st_size
    sizes = [found.of(role).size_bytes for role in ("teacher", "student", "pruned", "edge")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert found.of("pruned").parameters < found.of("student").parameters
    assert found.of("pruned").macs < found.of("student").macs
    assert found.of("edge").macs == found.of("pruned").macs
    assert found.of("control").parameters == found.of("student").parameters
    assert all(0 < model.latency_p50_ms <= model.latency_p95_ms for model in found.models)


def test_the_test_rows_are_none_that_training_saw(report, finished):
    folder, _ = report
    manifest = pyarrow.parquet.read_table(finished.project.root / "prepared" / "manifest.parquet")
    split = dict(zip(manifest["row"].to_pylist(), manifest["split"].to_pylist(), strict=True))
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet")["row"].to_pylist()
    assert {split[row] for row in rows} == {"test"}


def test_metrics_hang_on_each_model(report):
    folder, store = report
    found = Evaluation.read(folder)
    for role in ROLES:
        (version,) = store.versions(f"digits.{role}")
        model = store.client.get_logged_model(store.ref_of(version).model_id)
        metrics = {metric.key: metric.value for metric in model.metrics}
        assert metrics["test_accuracy"] == pytest.approx(found.of(role).accuracy)
        assert metrics["latency_p50_ms"] == pytest.approx(found.of(role).latency_p50_ms)


def test_predictions_are_written_row_by_row(tmp_path, part):
    rows = part(np.zeros((2, 2, 2, 1)), [1, 0])
    chances = np.array([[0.25, 0.75], [0.4, 0.6]], np.float32)
    write_predictions(tmp_path / "p.parquet", rows, ["cat", "dog"], {"edge": chances})
    found = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert found["row"] == rows.names.tolist()
    assert found["label"] == ["dog", "cat"]
    assert found["edge"] == ["dog", "dog"]
    assert found["edge_probability"] == pytest.approx([0.75, 0.6])


def test_the_same_run_is_found_by_its_key(report, finished, inside):
    """The plan's own question, for the last stage: nothing has to run."""
    _, store = report
    params = load(finished.project.root)
    run = Run(params.project, params.compute, DataRef(**finished.outcome["data"]))
    inside(finished.project.root)
    refs = {role: store.ref_of(store.versions(f"digits.{role}")[0]) for role in ROLES}
    assert evaluate.find(store, run, params.evaluate, **refs) is not None
    assert evaluate.find(store, run, params.evaluate, **(refs | {"edge": refs["student"]})) is None


# Estimators beside networks


@pytest.fixture
def evaluated(bench, toy):
    """Evaluates toy models and a consulted estimator; the report, its folder and that teacher."""
    params = ConsultParams(estimator=LogisticRegression())
    models = {
        "control": toy.make(bench, "lazy"),
        "teacher": stage("teacher")(consult.function)._run(bench.run, params),
        "edge": toy.make(bench, "good"),
    }
    judge = stage("evaluation", is_model=False)(evaluate.function)
    ref = judge._run(bench.run, EvaluateParams(latency_calls=10), **models)
    folder = payload_of(bench.tracking.fetch(ref).folder)
    teacher = payload_of(bench.tracking.fetch(models["teacher"]).folder)
    return Evaluation.read(folder), folder, teacher


def test_an_estimator_is_measured_as_networks_are(evaluated, bench):
    report, folder, stored = evaluated
    teacher, rows = report.of("teacher"), Rows(bench.root / "prepared")
    shown, test = rows.train.labelled, rows.open_test()
    flat = [part.inputs.reshape(len(part), -1) / 255 for part in (shown, test)]
    model = make_pipeline(StandardScaler(), Regression(max_iter=1000)).fit(flat[0], shown.labels)
    predicted = model.predict(flat[1])
    written = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()
    assert written["teacher"] == [rows.classes[label] for label in predicted]
    assert written["teacher_probability"] == pytest.approx(
        model.predict_proba(flat[1]).max(1), abs=1e-4
    )
    assert teacher.accuracy == pytest.approx((predicted == test.labels).mean())
    assert teacher.size_bytes == (stored / "estimator.skops").stat().st_size
    assert teacher.latency_p50_ms > 0


def test_an_estimator_has_neither_parameters_nor_macs(evaluated):
    report, _, _ = evaluated
    assert (report.of("teacher").parameters, report.of("teacher").macs) == (None, None)
    assert Evaluation.model_validate_json(report.model_dump_json()) == report


def test_networks_have_a_throughput_and_a_peak_of_memory_and_estimators_do_not(evaluated):
    report, folder, _ = evaluated
    for role in ("control", "edge"):
        assert report.of(role).throughput_rows_per_second > 0
        assert report.of(role).peak_memory_kib > 0
    teacher = report.of("teacher")
    assert (teacher.throughput_rows_per_second, teacher.peak_memory_kib) == (None, None)
    plain = json.loads((folder / "evaluation.json").read_text())
    for model in plain["models"]:
        del model["throughput_rows_per_second"], model["peak_memory_kib"]
    old = Evaluation.model_validate(plain)
    assert old.of("edge").peak_memory_kib is None
    assert old.host == report.host


def test_without_unseen_classes_there_are_no_zero_shot_figures(evaluated):
    report, _, _ = evaluated
    assert [model.zero_shot for model in report.models] == [None] * 3


# Classes that were never labelled

CHANCES = np.array(
    [
        [0.7, 0.2, 0.1],  # a, right
        [0.1, 0.2, 0.7],  # a, taken for the unseen c
        [0.3, 0.6, 0.1],  # b, right
        [0.2, 0.7, 0.1],  # b, right
        [0.5, 0.1, 0.4],  # c, taken for a
        [0.1, 0.2, 0.7],  # c, right
    ],
    np.float32,
)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def test_zero_shot_figures_by_hand():
    found = ZeroShot.of(CHANCES, LABELS, [2])
    assert found.seen == pytest.approx(3 / 4)
    assert found.unseen == pytest.approx(1 / 2)
    assert found.harmonic_mean == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert found.among_unseen == 1.0  # there is no other to take it for


def test_among_unseen_classes_only_those_are_compared():
    found = ZeroShot.of(CHANCES, LABELS, [1, 2])
    assert found.seen == pytest.approx(1 / 2)
    assert found.unseen == pytest.approx(3 / 4)
    # The first c is nearer to c than to b, whatever it says of a.
    assert found.among_unseen == 1.0
    swapped = CHANCES[:, [0, 2, 1]]
    assert ZeroShot.of(swapped, LABELS, [1, 2]).among_unseen == 0.0


def test_who_never_names_an_unseen_class_has_a_mean_of_0():
    chances = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], np.float32)
    found = ZeroShot.of(chances, np.array([0, 1, 2]), [2])
    assert (found.seen, found.unseen, found.harmonic_mean) == (1.0, 0.0, 0.0)
    wrong = ZeroShot.of(chances[:, [1, 2, 0]], np.array([0, 1, 1]), [1])
    assert (wrong.seen, wrong.unseen, wrong.harmonic_mean) == (0.0, 0.0, 0.0)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 3))
def test_zero_shot_figures_are_those_of_loops(seed, count, new):
    classes = count + new
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, 20)])
    chances = softmax(random.normal(size=(len(labels), classes)), axis=1).astype(np.float32)
    unseen = sorted(random.choice(classes, new, replace=False).tolist())
    hits = {"seen": [], "unseen": [], "among": []}
    for row, label in zip(chances, labels, strict=True):
        hits["unseen" if label in unseen else "seen"].append(row.argmax() == label)
        if label in unseen:
            hits["among"].append(max(unseen, key=lambda at: row[at]) == label)
    expected = {name: sum(each) / len(each) for name, each in hits.items()}
    found = ZeroShot.of(chances, labels, unseen)
    assert found.seen == pytest.approx(expected["seen"])
    assert found.unseen == pytest.approx(expected["unseen"])
    assert found.among_unseen == pytest.approx(expected["among"])
    both = [expected["seen"], expected["unseen"]]
    assert found.harmonic_mean == pytest.approx(hmean(both) if min(both) else 0.0)


def rewrite(bench, change):
    """Changes the manifest of prepared rows; the run that sees them so."""
    folder = bench.root / "prepared"
    path = folder / "manifest.parquet"
    columns = pyarrow.parquet.read_table(path).to_pydict()
    schema = json.loads((folder / "schema.json").read_text())
    change(columns, schema)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    (folder / "schema.json").write_text(json.dumps(schema))
    content = digest_of_files(digests_of_folder(folder))
    return replace(bench.run, data=bench.run.data.model_copy(update={"content": content}))


def run_with(bench, toy, change):
    """An evaluation of toy models on changed rows."""
    models = {"control": toy.make(bench, "lazy"), "edge": toy.make(bench, "good")}
    run = rewrite(bench, change)
    judge = stage("evaluation", is_model=False)(evaluate.function)
    ref = judge._run(run, EvaluateParams(latency_calls=10), **models)
    return Evaluation.read(payload_of(bench.tracking.fetch(ref).folder))


def never_labelled(columns, schema):
    schema["budget"]["unseen_classes"] = ["1"]


def test_with_unseen_classes_every_model_has_zero_shot_figures(bench, toy):
    report = run_with(bench, toy, never_labelled)
    test = Rows(bench.root / "prepared").open_test()
    lazy, good = (report.of(role).zero_shot for role in ("control", "edge"))
    named = (test.labels[test.labels != 1] == 0).mean()  # it names class 0 alone
    assert (lazy.seen, lazy.unseen) == (pytest.approx(named), 0.0)
    assert good.seen > 0.8
    assert good.unseen > 0.8
    share = (test.labels == 1).mean()
    total = good.seen * (1 - share) + good.unseen * share
    assert total == pytest.approx(report.of("edge").accuracy)


def test_without_a_test_row_there_is_nothing_to_evaluate(bench, toy):
    def untested(columns, _schema):
        columns["split"] = ["train" if one == "test" else one for one in columns["split"]]

    with pytest.raises(DataError, match="no labelled test row"):
        run_with(bench, toy, untested)
