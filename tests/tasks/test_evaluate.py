import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tasks.evaluate import (
    WARM_UP_CALLS,
    Evaluation,
    evaluate,
    host,
    interleaved,
    write_predictions,
)
from tasks.params import load
from tasks.refs import DataRef
from tasks.rows import Part
from tasks.stage import Run
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


def test_models_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = interleaved(calls, 5)
    assert order == sorted("abc" * WARM_UP_CALLS) + list("abc") * 5
    assert {name: found.shape for name, found in times.items()} == dict.fromkeys("abc", (5,))
    assert all((found >= 0).all() for found in times.values())


def test_predictions_are_written_row_by_row(tmp_path):
    part = Part(np.array(["r0", "r1"]), np.zeros((2, 2, 2, 1), np.uint8), np.array([1, 0]))
    chances = np.array([[0.25, 0.75], [0.4, 0.6]], np.float32)
    write_predictions(tmp_path / "p.parquet", part, ["cat", "dog"], {"edge": chances})
    found = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert found["row"] == ["r0", "r1"]
    assert found["label"] == ["dog", "cat"]
    assert found["edge"] == ["dog", "dog"]
    assert found["edge_probability"] == pytest.approx([0.75, 0.6])


def test_the_host_is_named():
    assert "cores" in host()
    assert not host().startswith(",")


def test_the_same_run_is_found_by_its_key(report, finished, inside):
    """The plan's own question, for the last stage: nothing has to run."""
    _, store = report
    params = load(finished.project.root)
    run = Run(params.project, params.compute, DataRef(**finished.outcome["data"]))
    inside(finished.project.root)
    refs = {role: store.ref_of(store.versions(f"digits.{role}")[0]) for role in ROLES}
    assert evaluate.find(store, run, params.evaluate, **refs) is not None
    assert evaluate.find(store, run, params.evaluate, **(refs | {"edge": refs["student"]})) is None
