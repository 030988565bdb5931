"""What `prefect deploy` reads, and a real worker that runs one of it."""

import inspect
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.services import DEPLOYMENTS as SERVED
from tests.conftest import REPOSITORY
from tests.flows.machine import copied, running

FILE = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
DEPLOYMENTS = {found["name"]: found for found in FILE["deployments"]}
OTHER_NAMES = {"audit": "verify", "gc": "collect"}


def test_every_flow_that_a_page_may_start_is_deployed_and_time_starts_the_watch_alone():
    retraining = ["retrain", "watch", "backfill", "gc", "fit-budget"]
    promotion = ["promote", "rollback", "settle"]
    lineage = ["audit", "trace", "verify", "replay", "impact", "forget"]
    assert list(DEPLOYMENTS) == [*retraining, *promotion, *lineage]
    for name, found in DEPLOYMENTS.items():
        assert found["work_pool"]["name"] == "default"
        assert "parameters" not in found
        assert found.get("schedules") == ([{"interval": 300}] if name == "watch" else None)


@pytest.mark.parametrize("name", SERVED)
def test_a_machine_of_its_own_serves_the_same_flows(name):
    path, _, flow = DEPLOYMENTS[name]["entrypoint"].partition(":")
    assert SERVED[name] == f"{path.removesuffix('.py').replace('/', '.')}:{flow}"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_an_entrypoint_is_a_flow_whose_parameters_are_described(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"])
    assert flow.name == OTHER_NAMES.get(name, name)
    assert flow.description
    taken = inspect.signature(flow.fn).parameters
    found = parameter_schema(flow)
    assert list(found.properties) == list(taken)
    needed = [key for key, one in taken.items() if one.default is inspect.Parameter.empty]
    assert found.required == needed
    for asked in found.properties.values():
        assert asked["description"]


@pytest.mark.slow
def test_a_worker_runs_what_was_deployed_to_a_pool(fresh, tmp_path):
    project = copied(fresh, tmp_path / "project")
    shutil.copy(REPOSITORY / "prefect.yaml", project.root)
    with running(project) as machine:
        environment = project.environment | {"PREFECT_API_URL": machine.addresses["prefect"]}

        def prefect(*words):
            program = Path(sys.executable).with_name("prefect")
            done = project.command(program, "--no-prompt", *words, env=environment)
            assert done.returncode == 0, done.stdout + done.stderr

        prefect("work-pool", "create", "default", "--type", "process")
        prefect("deploy", "--name", "verify", "--name", "gc")
        run = machine.trigger("verify/verify")
        prefect("worker", "start", "--pool", "default", "--run-once")
        assert machine.wait(run, "COMPLETED")
