"""A database of MLflow's or Prefect's that cannot be used: one line, and nothing half started."""

import pytest

from tests.flows.machine import ports
from tests.flows.test_kill_anywhere import at_work_in
from tests.postgres import postgres  # noqa: F401 - a fixture

SLOW = pytest.mark.slow
GUESS = "guessed-wrong"
# Whose it is, the variable that names it, and the driver it needs.
MLFLOW = ("MLflow's store", "STILLMARK_MLFLOW_URI", "postgresql")
PREFECT = ("Prefect's database", "PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg")
NOBODY = f"//somebody:{GUESS}@127.0.0.1:9/nowhere"


@pytest.mark.parametrize(
    ("command", "whose", "is_there"),
    [
        pytest.param("retrain", MLFLOW, True),
        pytest.param("retrain", PREFECT, True),
        pytest.param("retrain", MLFLOW, False, marks=SLOW),
        pytest.param("retrain", PREFECT, False, marks=SLOW),
        pytest.param("up", MLFLOW, True, marks=SLOW),
        pytest.param("up", PREFECT, True, marks=SLOW),
        pytest.param("up", PREFECT, False, marks=SLOW),
    ],
)
def test_it_is_one_line_without_its_password(
    untrained,
    postgres,  # noqa: F811 - the fixture
    command,
    whose,
    is_there,
):
    name, variable, scheme = whose
    place = postgres.url(password=GUESS).removeprefix("postgresql:") if is_there else NOBODY
    words = [f"--{one}-port={port}" for one, port in ports().items()] if command == "up" else []
    environment = untrained.environment | {variable: f"{scheme}:{place}"}
    done = untrained.stillmark(command, *words, env=environment)
    assert done.returncode == 2, done.stderr
    *before, line = done.stderr.splitlines()
    assert [one for one in before if "starting the services" not in one] == []
    assert f"{name} at postgresql://" in line
    if is_there:
        assert 'password authentication failed for user "stillmark"' in line
        assert "correct the user and the password in its address, then run again" in line
    else:
        assert "see that the database runs and can be reached, then run again" in line
    assert GUESS not in done.stdout + done.stderr
    for log in (untrained.root / ".stillmark").rglob("*.log"):
        assert GUESS not in log.read_text()
    assert at_work_in(untrained.root) == []
    assert list((untrained.root / ".stillmark").glob("running/*")) == []
