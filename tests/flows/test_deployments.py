"""What `prefect deploy` reads."""

import inspect

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from tests.conftest import REPOSITORY

FILE = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
DEPLOYMENTS = {found["name"]: found for found in FILE["deployments"]}


def test_every_flow_that_a_page_may_start_is_deployed_without_a_schedule():
    promotion, lineage = (
        ["promote", "rollback", "settle"],
        ["trace", "verify", "replay", "impact", "forget"],
    )
    assert list(DEPLOYMENTS) == ["retrain", "fit-budget", *promotion, *lineage]
    for found in DEPLOYMENTS.values():
        assert found["work_pool"]["name"] == "default"
        assert not {"schedule", "schedules", "parameters"} & set(found)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_an_entrypoint_is_a_flow_whose_parameters_are_described(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"])
    assert flow.name == name
    assert flow.description
    taken = inspect.signature(flow.fn).parameters
    found = parameter_schema(flow)
    assert list(found.properties) == list(taken)
    needed = [key for key, one in taken.items() if one.default is inspect.Parameter.empty]
    assert found.required == needed
    for asked in found.properties.values():
        assert asked["description"]
