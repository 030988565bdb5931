"""Who answers at an address, and what there is to start."""

import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows import services
from flows.services import (
    DEPLOYMENTS,
    Running,
    mlflow_trouble,
    plan,
    prefect_trouble,
    runner_trouble,
)
from tasks.errors import SetupError
from tasks.processes import Process
from tasks.settings import Settings

PREFECT = {"/api/health": "true"}
MLFLOW = {"/health": "OK", "/version": "3.17.2"}
PAGE = "<!doctype html><p>Router</p>"


@pytest.fixture
def answering():
    """A server that gives these answers by path, to GET and POST; its address."""
    servers = []

    def start(answers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                text = answers.get(self.path, answers.get("*"))
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def free():
    """Ports that nothing listens on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def settings(tmp_path, monkeypatch, free):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / ".stillmark").mkdir()
    return Settings(project=tmp_path, prefect_port=free[0], mlflow_port=free[1])


def test_the_right_ones_have_no_trouble(answering):
    assert prefect_trouble(f"{answering(PREFECT)}/api") is None
    assert mlflow_trouble(answering(MLFLOW)) is None


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {"*": PAGE},
            "is not Prefect's API: it answers '<!doctype html><p>Router</p>' to ",
        ),
        ({}, "is not Prefect's API: it answers 404 Not Found to "),
        (MLFLOW | {"/api/health": "OK"}, "is not Prefect's API: it answers 'OK' to "),
    ],
)
def test_something_else_is_not_prefect(answering, answers, said):
    address = answering(answers)
    assert prefect_trouble(f"{address}/api") == f"{said}{address}/api/health"


@pytest.mark.parametrize("answers", [{"*": PAGE}, {"*": "OK"}, {"/health": "OK"}, PREFECT])
def test_something_else_is_not_mlflow(answering, answers):
    assert mlflow_trouble(answering(answers)).startswith("is not MLflow: it answers ")


@pytest.mark.parametrize("trouble", [prefect_trouble, mlflow_trouble])
def test_nobody_and_no_address(trouble, free):
    assert trouble(f"http://127.0.0.1:{free[0]}") == (
        "does not answer ([Errno 111] Connection refused)"
    )
    assert trouble("127.0.0.1:9").startswith("does not answer (")


def test_the_runner_is_healthy_once_it_asked_after_every_deployment(answering):
    now = datetime.now(UTC)
    polled = [{"name": name, "last_polled": now.isoformat()} for name in DEPLOYMENTS]
    late = [*polled[1:], {"name": polled[0]["name"], "last_polled": None}]
    whole = answering({"*": json.dumps(polled)})
    assert runner_trouble(whole, (now - timedelta(seconds=5)).isoformat()) is None
    assert "does not serve" in runner_trouble(whole, (now + timedelta(seconds=5)).isoformat())
    part = answering({"*": json.dumps(late)})
    assert runner_trouble(part, now.isoformat()) == f"does not serve {polled[0]['name']} yet"
    assert "does not answer as it should" in runner_trouble(answering({}), now.isoformat())


def test_on_one_machine_there_are_three(settings):
    planned = plan(settings)
    assert [service.name for service in planned.services] == ["prefect", "mlflow", "runner"]
    assert planned.prefect == f"http://127.0.0.1:{settings.prefect_port}/api"
    assert planned.mlflow == f"http://127.0.0.1:{settings.mlflow_port}"
    assert planned.runner.environment["PREFECT_API_URL"] == planned.prefect
    assert planned.runner.command[-1] == "sole"


def test_a_teams_servers_are_used_and_not_started(answering, settings, monkeypatch):
    prefect, mlflow = f"{answering(PREFECT)}/api", answering(MLFLOW)
    monkeypatch.setenv("PREFECT_API_URL", prefect)
    planned = plan(settings.model_copy(update={"mlflow_uri": f"{mlflow}/"}))
    assert [service.name for service in planned.services] == ["runner"]
    assert (planned.prefect, planned.mlflow) == (prefect, mlflow)
    assert "sole" not in planned.runner.command
    assert planned.runner.environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_a_password_of_the_store_is_no_argument(settings):
    uri = "postgresql://stillmark:open-sesame@db/mlflow"
    planned = plan(settings.model_copy(update={"mlflow_uri": uri}))
    (mlflow,) = [service for service in planned.services if service.name == "mlflow"]
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == uri
    assert "open-sesame" not in f"{mlflow} {mlflow.command}"


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_port_that_is_taken(settings, name):
    port = getattr(settings, f"{name}_port")
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(SetupError, match=rf"^port {port} is taken .*--{name}-port or STILLMARK_"),
    ):
        plan(settings)


def test_one_port_for_both(settings):
    both = settings.model_copy(update={"mlflow_port": settings.prefect_port})
    with pytest.raises(SetupError, match="is given to both servers; give them two"):
        plan(both)


def test_a_teams_address_that_answers_with_something_else(answering, settings, monkeypatch):
    wrong = answering({"*": PAGE})
    with pytest.raises(SetupError, match=r"^MLflow's server at .* is not MLflow.*correct STILLM"):
        plan(settings.model_copy(update={"mlflow_uri": wrong}))
    monkeypatch.setenv("PREFECT_API_URL", f"{wrong}/api")
    with pytest.raises(SetupError, match=r"^Prefect's server at .* is not Prefect's API.*correct"):
        plan(settings)


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "4.2", ""])
def test_a_port_in_the_environment_that_is_none(monkeypatch, value, tmp_path):
    monkeypatch.setenv("STILLMARK_PREFECT_PORT", value)
    with pytest.raises(SetupError, match=r"^STILLMARK_PREFECT_PORT is '.*'; expected a port, 1 to"):
        Settings(project=tmp_path)


def test_ports_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLMARK_PREFECT_PORT", "4300")
    monkeypatch.setenv("STILLMARK_MLFLOW_PORT", "5300")
    found = Settings(project=tmp_path)
    assert (found.prefect_port, found.mlflow_port) == (4300, 5300)


def test_the_note_counts_while_its_process_lives(tmp_path):
    assert Running.of(tmp_path) is None
    note = Running(prefect="http://a/api", mlflow="http://b", process=Process.mine())
    note.write(tmp_path)
    assert Running.of(tmp_path) == note
    assert [path.name for path in tmp_path.iterdir()] == [services.NOTE_FILE]
    for gone in ({"started": 1}, {"boot": "an earlier one"}, {"host": "elsewhere"}):
        process = note.process.model_copy(update=gone)
        note.model_copy(update={"process": process}).write(tmp_path)
        assert Running.of(tmp_path) is None
    note.write(tmp_path)
    Running.remove(tmp_path)
    Running.remove(tmp_path)
    assert Running.of(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", '{"prefect": 1}'])
def test_a_note_of_another_release_is_none(tmp_path, text):
    (tmp_path / services.NOTE_FILE).write_text(text)
    assert Running.of(tmp_path) is None
