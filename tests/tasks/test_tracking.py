import sqlite3
from functools import partial

import mlflow
import pytest

from tasks import tracking as module
from tasks.errors import RegistryError, SetupError
from tasks.tracking import Tracking


def test_registration_happens_once_per_content(bench, toy):
    good, lazy = toy.make(bench), toy.make(bench, "lazy")
    first = bench.tracking.register("digits.edge", good, {"why": "test"})
    assert (first.name, first.version, first.model) == ("digits.edge", 1, good)
    assert bench.tracking.register("digits.edge", good, {}) == first
    second = bench.tracking.register("digits.edge", lazy, {})
    assert second.version == 2
    assert bench.tracking.register("digits.edge", good, {}) == first
    newest, oldest = bench.tracking.versions("digits.edge")
    assert (int(newest.version), int(oldest.version)) == (2, 1)
    assert oldest.tags["why"] == "test"
    assert oldest.tags["stillmark.content"] == good.content
    assert oldest.tags["stillmark.record"] == good.record
    assert oldest.run_id == good.run_id
    assert bench.tracking.ref_of(oldest) == good
    assert bench.tracking.registered() == ["digits.edge"]


def test_a_pending_model_is_never_registered(bench, toy):
    """MLflow itself would: a version, READY, without a single file."""
    ref = toy.make(bench)
    empty = bench.tracking.new_model(bench.run.project, ref.run_id, "edge", ref.key)
    pending = ref.model_copy(update={"model_id": empty})
    with pytest.raises(RegistryError):
        bench.tracking.register("digits.edge", pending, {})
    assert bench.tracking.versions("digits.edge") == []


def test_a_report_is_never_registered(bench, toy):
    report = toy.make(bench).model_copy(update={"model_id": None})
    with pytest.raises(RegistryError, match="is a report"):
        bench.tracking.register("digits.edge", report, {})
    assert bench.tracking.registered() == []


def test_an_alias_has_one_holder(bench, toy):
    tracking = bench.tracking
    assert tracking.holder("digits.edge", "champion") is None
    first = tracking.register("digits.edge", toy.make(bench), {})
    assert tracking.holder("digits.edge", "champion") is None
    tracking.set_alias(first, "champion")
    assert tracking.holder("digits.edge", "champion") == first
    second = tracking.register("digits.edge", toy.make(bench, "lazy"), {})
    tracking.set_alias(second, "champion")
    assert tracking.holder("digits.edge", "champion") == second


def test_a_version_of_other_origin_is_named(bench, toy):
    bench.tracking.client.create_registered_model("digits.edge")
    bench.tracking.client.create_model_version("digits.edge", source=str(bench.root))
    (foreign,) = bench.tracking.versions("digits.edge")
    with pytest.raises(RegistryError, match=r"digits\.edge version 1 was not registered by Still"):
        bench.tracking.ref_of(foreign)
    # It stands in nobody's way.
    assert bench.tracking.register("digits.edge", toy.make(bench), {}).version == 2


def test_parameters_are_logged_under_dotted_names(bench):
    tracking = bench.tracking
    run_id = tracking.start("digits", "teach", "k", bench.run.data)
    many = {f"p{at:03}": at for at in range(250)}
    tree = {"fit": {"steps": 3, "ema": None}, "losses": [{"name": "a"}], "widths": [1, 2]}
    tracking.log_params(run_id, {"teach": tree, "many": many, "long": "x" * 9000})
    found = tracking.client.get_run(run_id).data.params
    assert found["teach.fit.steps"] == "3"
    assert found["teach.fit.ema"] == "None"
    assert found["teach.losses.0.name"] == "a"
    assert found["teach.widths"] == "[1, 2]"
    assert found["many.p249"] == "249"
    assert set(found["long"]) == {"x"}


def test_metrics_hang_on_run_model_and_data(bench, toy):
    ref = toy.make(bench)
    figures = {"test_accuracy": 0.5}
    bench.tracking.log_metrics(ref.run_id, figures, step=7, model=ref, data=bench.run.data)
    model = bench.tracking.client.get_logged_model(ref.model_id)
    (metric,) = [metric for metric in model.metrics if metric.key == "test_accuracy"]
    assert (metric.value, metric.step) == (0.5, 7)
    assert (metric.dataset_name, metric.dataset_digest) == ("prepared", "prepared.dir")


def test_a_run_names_its_data(bench, toy):
    run = bench.tracking.client.get_run(toy.make(bench).run_id)
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == bench.run.data.prepared
    assert bench.run.data.manifest in used.dataset.source


def test_nothing_is_found_in_an_empty_store(bench):
    assert bench.tracking.find("digits", "no key") is None
    assert bench.tracking.last_runs("digits", 5) == []
    assert bench.tracking.versions("digits.edge") == []


def test_a_model_that_is_not_there_is_one_line(bench):
    with pytest.raises(RegistryError, match=r"models:/digits\.edge/1 cannot be loaded: "):
        bench.tracking.load_pyfunc("models:/digits.edge/1")


def test_a_stored_model_predicts_through_plain_mlflow(bench, toy, raw):
    ref = toy.make(bench)
    picture = next((raw / "1").iterdir()).read_bytes()
    found = mlflow.pyfunc.load_model(f"models:/{ref.model_id}").predict([picture])
    assert found["label"].tolist() == ["1"]


def test_a_store_that_someone_holds_is_named(bench, monkeypatch):
    quick = partial(sqlite3.connect, timeout=0.1)
    monkeypatch.setattr(module.sqlite3, "connect", lambda path, **_options: quick(path))
    path = bench.root / "mlflow.db"
    holder = sqlite3.Connection(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SetupError, match=rf"{path} cannot be written \(database is locked\)"):
            Tracking(f"sqlite:///{path}", bench.root / ".stillmark")
    finally:
        holder.close()
    Tracking(f"sqlite:///{path}", bench.root / ".stillmark")


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(SetupError, match=r"mlflow.db is no MLflow database .* move it away"):
        Tracking(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes().startswith(b"this is no database")


def test_another_programs_database_is_one_line(tmp_path):
    path = tmp_path / "mlflow.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE experiments (other TEXT)")
    other.commit()
    other.close()
    with pytest.raises(SetupError, match=r"does not answer: ") as caught:
        Tracking(f"sqlite:///{path}", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_one_store_is_read_while_another_is_open(bench, toy, tmp_path, monkeypatch):
    ref = toy.make(bench)
    Tracking(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    assert bench.tracking.fetch(ref).ref == ref
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError):
        Tracking("http://127.0.0.1:9", tmp_path)
    assert bench.tracking.fetch(ref).ref == ref


def test_a_server_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError, match=r"http://127.0.0.1:9 does not answer") as caught:
        Tracking("http://127.0.0.1:9", tmp_path)
    assert len(str(caught.value).splitlines()) == 1
