import pytest

from tasks.errors import RegistryError, SetupError
from tasks.tracking import Tracking


def test_nothing_is_found_in_an_empty_store(bench):
    assert bench.tracking.find("digits", "no key") is None
    assert bench.tracking.last_runs("digits", 5) == []
    assert bench.tracking.versions("digits.edge") == []


def test_one_store_is_read_while_another_is_open(bench, toy, tmp_path, monkeypatch):
    ref = toy.make(bench)
    Tracking(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    assert bench.tracking.fetch(ref).ref == ref
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError):
        Tracking("http://127.0.0.1:9", tmp_path)
    assert bench.tracking.fetch(ref).ref == ref


def test_a_model_that_is_not_there_is_one_line(bench):
    with pytest.raises(RegistryError, match=r"models:/digits\.edge/1 cannot be loaded: "):
        bench.tracking.load_pyfunc("models:/digits.edge/1")
