"""What stands in the way of a database; what is kept in one is the ledger's tests' matter."""

import socket
import sys
import time

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from tasks.database import reach, trouble
from tasks.errors import SetupError
from tests.postgres import postgres  # noqa: F401 - a fixture

WHAT = "MLflow's store"


def refused(url):
    began = time.monotonic()
    with pytest.raises(SetupError) as caught:
        reach(WHAT, url)
    assert time.monotonic() - began < 15
    (line,) = str(caught.value).splitlines()
    return line


def test_one_that_answers(postgres):  # noqa: F811
    reach(WHAT, postgres.url())
    reach(WHAT, postgres.url().replace("postgresql:", "postgresql+psycopg2:"))


@pytest.mark.parametrize("url", ["http://nobody:1", "sqlite:///nowhere/x.db", "mlruns", "", "a:b"])
def test_other_addresses_are_no_matter_of_it(url):
    reach(WHAT, url)


def test_a_wrong_password(postgres):  # noqa: F811
    line = refused(postgres.url(password="guessed-wrong"))  # noqa: S106
    assert line.startswith(f"{WHAT} at postgresql://{postgres.folder}/postgres cannot be used (")
    assert "password authentication failed" in line
    assert line.endswith("correct the user and the password in its address, then run again")
    assert "guessed-wrong" not in line


def test_a_database_that_is_not_there(postgres):  # noqa: F811
    assert "correct the name in its address, or create it" in refused(postgres.url("nothing"))


def test_nobody_there():
    line = refused("postgresql://me:open-sesame@127.0.0.1:9/mlflow")
    assert line.startswith(f"{WHAT} at postgresql://127.0.0.1:9/mlflow cannot be used (")
    assert line.endswith("see that the database runs and can be reached, then run again")
    assert "open-sesame" not in line


def test_somebody_who_says_nothing(monkeypatch):
    monkeypatch.setattr("tasks.database.CONNECT_SECONDS", 2)  # the least that libpq waits
    with socket.create_server(("127.0.0.1", 0)) as mute:
        line = refused(f"postgresql://me@127.0.0.1:{mute.getsockname()[1]}/mlflow")
    assert "timeout" in line


def test_a_driver_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    assert "needs psycopg2, which is not installed" in refused("postgresql://127.0.0.1:9/mlflow")


@pytest.mark.parametrize(
    "place", ["postgresql://me:se%20same@db/x", "postgresql://db/x?password=se same"]
)
def test_a_driver_that_repeats_the_password(place):
    error = OperationalError("", {}, ValueError("se same is\nwrong"))
    said = trouble("a database", make_url(place), error)
    assert said.startswith("a database at postgresql://db/x cannot be used (*** is wrong): ")
