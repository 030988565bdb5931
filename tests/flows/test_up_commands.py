"""What `stillmark up` prints."""

import json

import pytest
import typer
from typer.testing import CliRunner

from flows import up_commands
from flows.services import Plan, plan
from tasks.settings import Settings

app = typer.Typer()
for command in up_commands.COMMANDS:
    app.command()(command)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs the command on services that are healthy at once; gives what it prints."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.setenv("STILLMARK_PROJECT", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    planned = []

    def run(settings: Settings, healthy, say):
        planned.append(plan(settings))
        found: Plan = planned[-1]
        if "team" in str(settings.mlflow_uri):
            found = Plan(found.prefect, "http://team", (), found.servers[:1], found.runner)
        healthy(found)
        say("mlflow ended; starting it again in 1 s")

    monkeypatch.setattr(up_commands, "run", run)

    def invoke(*words):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines(), done.stderr.splitlines()

    return invoke


def test_addresses_and_logs(call, tmp_path):
    out, err = call("--prefect-port", "14200", "--mlflow-port", "15000")
    assert [line.split() for line in out] == [
        ["prefect", "http://127.0.0.1:14200"],
        ["mlflow", "http://127.0.0.1:15000"],
        ["logs", str(tmp_path / ".stillmark" / "logs")],
        ["all", "are", "healthy;", "Ctrl-C", "stops", "them"],
    ]
    assert err[-1] == "stillmark: mlflow ended; starting it again in 1 s"


def test_json_is_one_line(call, tmp_path):
    (line,), _ = call("--prefect-port", "14200", "--mlflow-port", "15000", "--json")
    assert json.loads(line) == {
        "prefect": "http://127.0.0.1:14200/api",
        "mlflow": "http://127.0.0.1:15000",
        "logs": str(tmp_path / ".stillmark" / "logs"),
    }


def test_a_teams_server_is_named_as_such(call, monkeypatch):
    monkeypatch.setenv("STILLMARK_MLFLOW_URI", "sqlite:///team.db")
    out, _ = call("--prefect-port", "14200", "--mlflow-port", "15000")
    assert out[1].split() == ["mlflow", "http://team", "elsewhere"]


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_is_a_number_of_one(port):
    assert CliRunner().invoke(app, ["--prefect-port", port]).exit_code == 2
