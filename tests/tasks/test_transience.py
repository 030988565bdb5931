import sqlite3
import urllib.request
from types import SimpleNamespace

import httpx
import pytest
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException, RestException
from prefect import flow, task
from prefect.states import Failed

from tasks.errors import (
    ArtifactError,
    BusyError,
    DataError,
    LedgerError,
    ParamsError,
    RegistryError,
    SetupError,
    TimeLimitError,
    TrainingError,
)
from tasks.stage import Stage
from tasks.transience import RETRIES, is_transient, worth_another_try

NOBODY = "http://127.0.0.1:9/"  # the port of RFC 863, which nobody serves


def raised_by(call, *words, **options):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        call(*words, **options)
    return caught.value


def busy():
    """What SQLite says of a file that another connection writes."""
    connections = [sqlite3.connect("file:busy?mode=memory&cache=shared", uri=True) for _ in "12"]
    first, second = connections
    first.execute("CREATE TABLE t (x)")
    first.execute("BEGIN IMMEDIATE")
    first.execute("INSERT INTO t VALUES (1)")
    error = raised_by(second.execute, "BEGIN IMMEDIATE")
    for connection in connections:
        connection.close()
    return error


def answered(status):
    """What httpx makes of an answer, as Prefect's client passes it on."""
    return raised_by(httpx.Response(status, request=httpx.Request("GET", NOBODY)).raise_for_status)


def as_mlflow_does(error):
    """MLflow raises its own while it handles the true one."""
    found = MlflowException(f"API request to {NOBODY} failed with exception {error}")
    found.__context__ = error
    return found


def setup_from(error):
    found = SetupError("MLflow's store does not answer")
    found.__cause__ = error
    return found


def params_while_away():
    found = ParamsError("wrong")
    found.__cause__ = ConnectionRefusedError()
    return found


PASSING = {
    "refused": lambda: raised_by(urllib.request.urlopen, NOBODY).reason,
    "httpx": lambda: raised_by(httpx.get, NOBODY),
    "requests": lambda: raised_by(requests.get, NOBODY, timeout=1),
    "mlflow": lambda: as_mlflow_does(raised_by(requests.get, NOBODY, timeout=1)),
    "reset": ConnectionResetError,
    "timeout": TimeoutError,
    "502": lambda: answered(502),
    "503": lambda: answered(503),
    "429": lambda: answered(429),
    "busy": busy,
    "busy of MLflow": lambda: RestException(
        {"error_code": "TEMPORARILY_UNAVAILABLE", "message": f"OperationalError: {busy()}"}
    ),
    "a store that is away": lambda: setup_from(ConnectionRefusedError()),
    "postgresql": lambda: sqlalchemy.exc.OperationalError(
        "SELECT 1", {}, Exception("server closed the connection unexpectedly")
    ),
}
STAYING = {
    **{
        kind.__name__: lambda kind=kind: kind("no luck")
        for kind in (
            ParamsError,
            DataError,
            SetupError,
            TrainingError,
            TimeLimitError,
            ArtifactError,
            RegistryError,
            LedgerError,
            BusyError,
            ValueError,
            MlflowException,
        )
    },
    "404": lambda: answered(404),
    "401": lambda: answered(401),
    "no table": lambda: raised_by(sqlite3.connect(":memory:").execute, "SELECT * FROM nothing"),
    "full": lambda: sqlite3.OperationalError("database or disk is full"),
    "no file": lambda: FileNotFoundError("params.yaml"),
    "a parameter, though while a server was away": params_while_away,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(name):
    assert is_transient(PASSING[name]())


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("name", STAYING)
def test_what_does_not_pass_fails_at_once(name):
    assert not is_transient(STAYING[name]())


def test_errors_that_lead_to_each_other_come_to_an_end():
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_transient(first)


def test_prefect_asks_it():
    assert worth_another_try(None, None, Failed(data=ConnectionResetError()))
    assert not worth_another_try(None, None, Failed(data=ParamsError("wrong")))
    assert not worth_another_try(None, None, Failed())


def test_every_stage_asks_it():
    made = Stage(lambda work, params: {}, "edge", is_model=True)
    assert made.run.retry_condition_fn is worth_another_try
    assert made.run.retries == len(made.run.retry_delay_seconds) == RETRIES["retries"]


@pytest.mark.parametrize(
    ("error", "calls"), [(ConnectionResetError("once"), 2), (DataError("for good"), 1)]
)
def test_in_a_flow(prefect_database, error, calls):
    made = SimpleNamespace(calls=0)

    @task(**(RETRIES | {"retry_delay_seconds": 0}))
    def fetch():
        made.calls += 1
        if made.calls == 1:
            raise error

    @flow
    def around():
        fetch()

    state = around(return_state=True)
    assert made.calls == calls
    assert state.is_completed() is (calls == 2)
