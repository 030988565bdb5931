"""The watch as a flow and as a command; nothing is trained here."""

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import typer
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import Cancelled, Completed, Scheduled
from typer.testing import CliRunner

import flows.retrain
from flows import watch_commands
from flows.watch import start, watch
from tasks.reasons import Reason
from tests.conftest import Project


@pytest.fixture
def reason():
    """Each test's own: Prefect remembers those before."""
    return Reason(trigger="data", sentence="data/ changed", about=f"{uuid4().hex}.dir")


@pytest.fixture(scope="module")
def looked_at(fresh, tmp_path_factory):
    root = tmp_path_factory.mktemp("watched") / "project"
    shutil.copytree(fresh.root, root, symlinks=True)
    return Project(root)


@pytest.fixture
def project(looked_at, tmp_path, inside):
    """A project that nothing was trained in, with a trigger that says so."""
    root = tmp_path / "project"
    shutil.copytree(looked_at.root, root, symlinks=True)
    project = Project(root)
    project.change("schedule", {"triggers": [{"name": "data"}]})
    inside(root)
    return project


@pytest.fixture
def deployment():
    """Of a flow by that name; nobody serves it."""
    with get_client(sync_client=True) as client:
        found = Deployed(client)
        yield found
        client.delete_deployment(found.id)


@flow(name="retrain", validate_parameters=False)
def never(trigger: str = "", why: str = "", about: str = ""):
    """Takes what `retrain` takes."""


class Deployed:
    def __init__(self, client):
        self.client = client
        self.id = client.create_deployment(client.create_flow(never), name="retrain")

    def make_anew(self):
        self.client.delete_deployment(self.id)
        self.id = self.client.create_deployment(self.client.create_flow(never), name="retrain")

    @property
    def runs(self):
        wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[self.id]))
        return self.client.read_flow_runs(flow_run_filter=wanted)

    def end(self):
        for run in self.runs:
            self.client.set_flow_run_state(run.id, Completed(), force=True)


def artifact():
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["watch"]))
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC)[0]


def test_a_reason_starts_one_retraining_and_leaves_a_table(project, deployment):
    first = watch(return_state=True)
    assert first.is_completed()
    (run,) = deployment.runs
    raw = json.loads(json.dumps(run.parameters))["about"]
    assert run.parameters == {
        "trigger": "data",
        "why": "nothing was ever trained on data/",
        "about": raw,
    }
    assert raw in (project.root / "data.dvc").read_text()
    assert (
        first.message
        == f"data: nothing was ever trained on data/; retraining {run.name} was started"
    )
    row = {"trigger": "data", "answer": "retrain", "why": "nothing was ever trained on data/"}
    assert json.loads(artifact().data) == [row]
    assert artifact().description == first.message

    second = watch(return_state=True)
    assert second.message.endswith(f"retraining {run.name} is Scheduled already")
    assert [found.id for found in deployment.runs] == [run.id]


def test_two_looks_at_once_start_one_and_the_next_reason_starts_another(
    deployment, reason, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("flows.watch._on_its_way", lambda *given: None)
        start(reason)
        (run,) = deployment.runs
        # The other look saw what this one saw before it started anything.
        patch.setattr("flows.watch.digest_of_value", lambda value: run.idempotency_key)
        assert run.name in start(reason)
    assert len(deployment.runs) == 1
    deployment.end()
    start(reason)
    assert len(deployment.runs) == 2


def test_what_a_person_cancelled_is_not_started_again(deployment, reason):
    start(reason)
    deployment.client.set_flow_run_state(deployment.runs[0].id, Cancelled(), force=True)
    assert start(reason).endswith("was, and a person cancelled it")
    assert len(deployment.runs) == 1
    assert "was started" in start(reason.model_copy(update={"about": "y.dir"}))


def test_a_deployment_that_was_made_anew_starts_anew(deployment, reason):
    """Prefect takes a key for one of the flow, whatever deployment it came from."""
    start(reason)
    deployment.end()
    deployment.make_anew()
    assert "was started" in start(reason)
    assert len(deployment.runs) == 1


def test_a_run_that_is_planned_for_later_is_none_that_is_on_its_way(deployment, reason):
    later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    deployment.client.create_flow_run_from_deployment(deployment.id, state=later)
    assert "was started" in start(reason)
    assert len(deployment.runs) == 2


def test_what_cannot_look_fails_the_run_after_the_others_were_asked(project, deployment):
    triggers = [{"name": "drift"}, {"name": "data"}, {"name": "performance"}]
    project.change("schedule", {"triggers": triggers, "incoming": "arrivals"})
    found = watch(return_state=True)
    assert found.is_failed()
    assert found.message.startswith("drift: arrivals/ is missing; make it")
    assert "performance: arrivals/ is missing" in found.message
    assert len(deployment.runs) == 1
    answers = [row["answer"] for row in json.loads(artifact().data)]
    assert answers == ["failed", "retrain", "failed"]


def test_without_a_deployment_the_reason_is_said_and_the_run_fails(project):
    found = watch(return_state=True)
    assert found.is_failed()
    assert "there is no deployment 'retrain/retrain' to start; run `stillmark up`" in found.message
    assert found.message.endswith("data: nothing was ever trained on data/")
    assert [row["answer"] for row in json.loads(artifact().data)] == ["retrain"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"triggers": [{"name": "cron", "expression": "3 am"}]},
            "'schedule.triggers[0].cron.expression' is \"3 am\": it has 2 fields, expected five",
        ),
        ({"trigers": []}, "unknown parameter 'schedule.trigers'; did you mean 'triggers'?"),
        ({"every_minutes": 0.0}, "'schedule.every_minutes' is 0.0"),
    ],
)
def test_wrong_parameters_are_one_line(project, section, message):
    project.change("schedule", section)
    found = watch(return_state=True)
    assert found.is_failed()
    assert message in found.message
    assert len(found.message.splitlines()) == 1


@pytest.fixture
def command(project):
    app = typer.Typer()
    for found in watch_commands.COMMANDS:
        app.command()(found)
    return lambda *words: CliRunner().invoke(app, list(words))


def test_the_command_says_what_each_trigger_found(command, project):
    said = command()
    assert said.exit_code == 0
    assert said.output == "data         retrain  nothing was ever trained on data/\n"
    found = json.loads(command("--json").output)
    assert found["reason"]["trigger"] == "data"
    assert found["outcome"] is None
    assert [answer["failed"] for answer in found["answers"]] == [False]

    project.change("schedule", {"triggers": [{"name": "drift"}]})
    said = command()
    assert said.exit_code == 1
    assert said.output.startswith("drift        failed   incoming/ is missing")
    project.change("schedule", {})
    assert command().output == "there are no triggers; add some to schedule.triggers\n"


def test_the_command_retrains_here_where_it_is_asked_to(command, project, monkeypatch):
    woken = []

    class Done:
        class retraining:  # noqa: N801
            outcome, sentence, run_id = "promoted", "it is better", "r"

    def run_once(reason):
        woken.append(reason)
        return Done

    monkeypatch.setattr(flows.retrain, "run_once", run_once)
    said = command("--run")
    assert [reason.trigger for reason in woken] == ["data"]
    assert said.output.splitlines()[-1] == "promoted: it is better"
    assert json.loads(command("--run", "--json").output)["outcome"]["run_id"] == "r"
    project.change("schedule", {"triggers": [{"name": "cron", "expression": "0 0 1 1 *"}]})
    assert command("--run").exit_code == 0
    assert len(woken) == 2


LIGHT = """
import sys, time
import flows.look
from tasks.settings import Settings
started = time.monotonic()
found = flows.look.look_now(Settings())
print(len(found.answers), found.failures, round(time.monotonic() - started, 2))
print(sorted({"torch", "sklearn", "prefect"} & set(sys.modules)))
"""


def test_looking_at_time_data_and_code_imports_nothing_heavy(project):
    cron = {"name": "cron", "expression": "0 3 * * *"}
    project.change("schedule", {"triggers": [cron, {"name": "data"}, {"name": "code"}]})
    for _ in range(2):
        done = project.command(sys.executable, "-c", LIGHT)
        assert done.returncode == 0, done.stderr
    counts, imported = done.stdout.splitlines()
    assert counts.startswith("3 [] ")
    assert imported == "[]"
