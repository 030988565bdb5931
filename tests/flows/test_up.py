"""`stillmark up` over small stand-ins for its services: real processes, ports and signals."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from flows import up as module
from flows.services import NOTE_FILE, Running
from flows.up import STARTS, last_line, make_room
from tests.conftest import OWN, REPOSITORY

SERVICE = """
import signal, sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
name, port, told, how = sys.argv[1:]
def tell(word):
    with open(told, "a") as file:
        file.write(f"{name} {word}\\n")
def stop(*_):
    tell("stops")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "stubborn" else stop)
tell("starts")
print("last words of", name, flush=True)
if how == "broken":
    sys.exit(3)
server = HTTPServer(("127.0.0.1", int(port)), SimpleHTTPRequestHandler)
if how == "weak":
    if open(told).read().count(f"{name} starts") == 1:
        server.handle_request()  # healthy at first
    sys.exit(4)
server.serve_forever()
"""
UP = """
import json, signal, sys
from pathlib import Path
from flows import up as module
from flows.services import Plan, Service, _trouble
from tasks.errors import StillmarkError
from tasks.settings import Settings
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
ports, hows, check = json.loads(sys.argv[1])
program = Path("service.py").resolve()
def service(name):
    words = (sys.executable, str(program), name, str(ports[name]), "told", hows.get(name, ""))
    address = f"http://127.0.0.1:{ports[name]}"
    return Service(name, address, words, {}, lambda: _trouble(address, "(?s).*", name, 2), 5.0)
def plan(settings):
    one, two, three = map(service, ("prefect", "mlflow", "runner"))
    return Plan(one.address + "/api", two.address, (sys.executable, "-c", check), (one, two), three)
module.plan = plan
module.RESTART_SECONDS = (0.1, 0.1)
say = lambda line: print(f"said: {line}", file=sys.stderr, flush=True)
try:
    module.up(Settings(), lambda planned: print("healthy", flush=True), say)
except StillmarkError as error:
    sys.exit(f"stillmark: {error}")
"""
FINE = "pass"
REFUSES = "import sys; sys.exit('params.yaml is missing\\ndata/ is empty')"


@pytest.fixture
def project(tmp_path):
    """A folder that is enough of a project."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@pytest.fixture
def ports():
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        numbers = [one.getsockname()[1] for one in found]
        return dict(zip(("prefect", "mlflow", "runner"), numbers, strict=True))


@pytest.fixture
def start(project, ports):
    """Starts a supervisor over the stand-ins; `how` each of them behaves is up to the caller."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    environment = plain | {"PYTHONPATH": str(REPOSITORY)}
    with contextlib.ExitStack() as started:

        def run(check=FINE, **how):
            words = [sys.executable, "-c", UP, json.dumps([ports, how, check])]
            process = subprocess.Popen(
                words,
                cwd=project,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.callback(end, process)
            return process

        yield run


def end(process):
    process.kill()
    process.communicate()


def beneath(process):
    return psutil.Process(process.pid).children(recursive=True)


def are_free(ports):
    for port in ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    return True


def told(project):
    return (project / "told").read_text().splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_start_in_turn_and_a_signal_stops_all_the_runner_first(start, project, ports, number):
    process = start()
    assert process.stdout.readline() == "healthy\n"
    note = Running.of(project / ".stillmark")
    assert note.process.pid == process.pid
    assert note.mlflow == f"http://127.0.0.1:{ports['mlflow']}"
    assert sorted(told(project)[:2]) == ["mlflow starts", "prefect starts"]
    assert told(project)[2] == "runner starts"
    below = beneath(process)
    process.send_signal(number)
    assert process.wait(30) == 0
    assert process.stderr.read() == f"said: {STARTS}\n"
    assert told(project)[3:] == ["runner stops", "mlflow stops", "prefect stops"]
    assert not [one for one in below if one.is_running()]
    assert not (project / ".stillmark" / NOTE_FILE).exists()
    assert are_free(ports)
    assert "last words of mlflow" in (project / ".stillmark/logs/mlflow.log").read_text()


def test_killed_it_takes_all_with_it_and_another_one_can_start(start, project, ports):
    process = start()
    process.stdout.readline()
    below = beneath(process)
    process.kill()
    assert psutil.wait_procs(below, 20)[1] == []
    assert Running.of(project / ".stillmark") is None
    assert are_free(ports)
    assert start().stdout.readline() == "healthy\n"


def test_a_second_one_says_that_the_first_runs(start, ports):
    first = start()
    first.stdout.readline()
    second = start()
    assert second.wait(30) == 1
    (line,) = second.stderr.read().splitlines()
    assert line.startswith("stillmark: `stillmark up` already runs for this project (Prefect: http")
    assert first.poll() is None


def test_a_service_that_is_killed_is_started_again(start, project, ports):
    process = start()
    process.stdout.readline()
    (mlflow,) = [one for one in beneath(process) if one.cmdline()[2:3] == ["mlflow"]]
    mlflow.kill()
    process.stderr.readline()
    line = process.stderr.readline()
    assert line.startswith("said: mlflow ended (exit code 137: ")
    until = time.monotonic() + 20
    while told(project).count("mlflow starts") < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 0


def test_one_that_ends_again_and_again_stops_all_with_one_line(start, project, ports):
    process = start(runner="weak")
    assert process.wait(60) == 1
    *said, line = process.stderr.read().splitlines()
    assert len(said) == 3
    assert line.startswith("stillmark: runner ended (exit code 4: ")
    assert "3 times in a row; see " in line
    assert told(project)[-2:] == ["mlflow stops", "prefect stops"]
    assert are_free(ports)


def test_one_that_ends_at_its_start_leaves_nothing(start, project, ports):
    process = start(mlflow="broken")
    assert process.wait(30) == 1
    _, line = process.stderr.read().splitlines()
    assert line.startswith(
        "stillmark: mlflow ended at its start (exit code 3: last words of mlflow); see "
    )
    assert "runner starts" not in told(project)
    assert are_free(ports)


def test_a_project_that_is_not_fit_starts_nothing(start, project):
    process = start(check=REFUSES)
    assert process.wait(30) == 1
    assert process.stderr.read() == "stillmark: params.yaml is missing\ndata/ is empty\n"
    assert not (project / "told").exists()


def test_a_signal_during_the_check_ends_it(start, project):
    process = start(check="print('here', file=open('checking', 'w')); import time; time.sleep(600)")
    until = time.monotonic() + 20
    while not (project / "checking").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    (check,) = beneath(process)
    process.terminate()
    assert process.wait(30) == 0
    assert not check.is_running()


def test_a_second_signal_is_for_the_impatient(start, ports):
    process = start(runner="stubborn")
    process.stdout.readline()
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    began = time.monotonic()
    process.terminate()
    assert process.wait(30) == 0
    assert time.monotonic() - began < 4
    assert are_free(ports)


def test_a_log_that_grew_long_makes_room_and_one_older_is_kept(tmp_path, monkeypatch):
    log = tmp_path / "mlflow.log"
    make_room(log)
    monkeypatch.setattr(module, "LOG_BYTES", 10)
    log.write_text("0123456789")
    make_room(log)
    assert log.exists()
    for text in ("first" * 3, "second" * 2):
        log.write_text(text)
        make_room(log)
    assert not log.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.log.1"]
    assert (tmp_path / "mlflow.log.1").read_text() == "second" * 2


def test_the_last_line_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == "it said nothing"
    log.write_text("first\nthe cause\n\n  \n")
    assert last_line(log) == "the cause"
