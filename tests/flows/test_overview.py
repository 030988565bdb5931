"""What `stillmark status` says, with and without anything that answers."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import yaml

from flows.overview import lines, overview, reach
from flows.services import DEPLOYMENTS, Running
from tasks.errors import ParamsError
from tasks.journal import Facts, Journal
from tasks.processes import Process
from tasks.reasons import Reason
from tasks.settings import Settings
from tests.flows.test_services import MLFLOW, PREFECT, answering  # noqa: F401 - a fixture

DRIFT = Reason(trigger="drift", sentence="p = 0.001 on 40 rows")
CRON = {"name": "cron", "expression": "30 2 * * *"}
AT = "2030-01-02T03:04:05Z"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No server of a team."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.fixture
def schedule(bench):
    """Writes section `schedule`."""

    def write(**section):
        tree = yaml.safe_load((bench.root / "params.yaml").read_text())
        text = yaml.safe_dump(tree | {"schedule": section})
        (bench.root / "params.yaml").write_text(text)

    return write


@pytest.fixture
def settings(bench, schedule):
    schedule()
    return Settings(project=bench.root)


@pytest.fixture
def entry(bench):
    """Writes into the journal."""
    journal = Journal(bench.tracking, bench.run.project)

    def write(outcome, reason=DRIFT):
        facts = Facts(reason=reason, code="c", sections={})
        if outcome == "running":
            return journal.open(facts)
        with journal.write(facts) as page:
            page.outcome, page.sentence = outcome, f"it was {outcome}"
        return page.run_id

    return write


def test_a_new_project_of_which_nothing_runs(bench, settings):
    found = overview(settings, bench.tracking)
    assert {
        name: found[name]
        for name in ("services", "scheduled", "models", "going_on", "retraining", "runs")
    } == {
        "services": [],
        "scheduled": [],
        "models": [],
        "going_on": [],
        "retraining": None,
        "runs": [],
    }
    assert found["problems"] == []
    assert lines(found) == [
        "no servers run here; `stillmark up` starts them",
        "watch looks every 5 minutes while `stillmark up` runs: no triggers",
        "'digits' has no models yet; run `stillmark retrain`",
    ]


def test_the_last_retraining_and_the_one_that_goes_on(bench, settings, entry):
    entry("rejected", Reason(trigger="data", sentence="12 rows arrived"))
    last = entry("unchanged")
    going = entry("running", Reason(trigger="cron", sentence="it was time"))
    found = overview(settings, bench.tracking)
    assert found["retraining"]["run_id"] == last
    assert found["retraining"]["reason"]["sentence"] == DRIFT.sentence
    assert [one["run_id"] for one in found["going_on"]] == [going]
    said = lines(found)
    at = said.index(next(line for line in said if line.startswith("last retraining: ")))
    assert said[at].endswith("Z, unchanged")
    assert said[at + 1 : at + 3] == [
        "  woken by drift: p = 0.001 on 40 rows",
        "  it was unchanged",
    ]
    assert any(
        line.startswith("retraining since 2") and line.endswith("woken by cron: it was time")
        for line in said
    )
    json.dumps(found)


def test_what_params_yaml_asks_of_the_watch(bench, settings, schedule):
    schedule(every_minutes=2.5, triggers=[CRON, {"name": "data"}])
    found = overview(settings, bench.tracking)
    assert found["watch"] == {"every_minutes": 2.5, "triggers": [CRON, {"name": "data"}]}
    assert (
        "watch looks every 2.5 minutes while `stillmark up` runs: cron 30 2 * * *, data"
        in lines(found)
    )


def test_the_services_of_up_and_what_is_due(
    bench,
    settings,
    answering,  # noqa: F811 - the fixture
):
    now = datetime.now(UTC).isoformat()
    served = [{"id": name, "name": name, "last_polled": now} for name in DEPLOYMENTS]
    due = [{"deployment_id": "watch", "expected_start_time": AT}]
    prefect = answering(
        PREFECT
        | {
            "/api/deployments/filter": json.dumps(served),
            "/api/flow_runs/filter": json.dumps([*due, {"deployment_id": None}]),
        }
    )
    note = Running(prefect=f"{prefect}/api", mlflow=answering(MLFLOW), process=Process.mine())
    note.write(settings.home)
    found = overview(settings, bench.tracking)
    assert {one["name"]: one["healthy"] for one in found["services"]} == {
        "prefect": True,
        "runner": True,
        "mlflow": True,
    }
    assert found["scheduled"] == [{"deployment": "watch", "at": AT}]
    said = "\n".join(lines(found))
    assert f"prefect  {prefect}" in said
    assert "watch looks every 5 minutes: no triggers\n  next: watch at 2030-01-02 03:04:05Z" in said
    note.model_copy(update={"mlflow": "http://127.0.0.1:9"}).write(settings.home)
    (mlflow,) = [
        one for one in overview(settings, bench.tracking)["services"] if one["name"] == "mlflow"
    ]
    assert not mlflow["healthy"]
    assert mlflow["trouble"].startswith("does not answer")


def test_with_nothing_reachable_it_says_so_and_says_the_rest(settings, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    away = settings.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"})
    assert reach(away) is None
    found = overview(away, None)
    said = lines(found)
    assert said[0].startswith("prefect  http://127.0.0.1:9")
    assert "does not answer" in said[0]
    assert said[-1] == "problem: MLflow's server at http://127.0.0.1:9 does not answer"
    assert not any("has no models" in line for line in said)


def test_a_local_store_is_always_reached(bench, settings):
    assert reach(settings).uri == bench.tracking.uri


@pytest.mark.parametrize("text", ["{}", "project: [1]"])
def test_params_that_name_no_project(bench, settings, text):
    (bench.root / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="'project' is missing"):
        overview(settings, bench.tracking)


def test_it_loads_neither_torch_nor_prefect():
    program = "import sys, flows.overview; sys.exit(bool({'torch', 'prefect'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
