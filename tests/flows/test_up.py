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

from flows.services import NOTE_FILE, Running
from flows.up import STARTS
from tests.conftest import OWN, REPOSITORY

SERVICE = """
import pathlib, signal, sys, threading, time
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
if how == "once" and open(told).read().count(f"{name} starts") > 1:
    time.sleep(600)
if how == "broken":
    sys.exit(3)
def beat():
    while True:
        pathlib.Path("pulse").touch()
        time.sleep(0.02)
if how == "beats":
    threading.Thread(target=beat, daemon=True).start()
if how == "late" and open(told).read().count(f"{name} starts") > 1:
    time.sleep(2)
server = HTTPServer(("127.0.0.1", int(port)), SimpleHTTPRequestHandler)
if how == "late":
    tell("answers")
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
from flows.kept import Patience
from flows.services import Plan, Service, _trouble
from tasks.errors import StillmarkError
from tasks.settings import Settings
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
ports, hows, check, patience = json.loads(sys.argv[1])
program = Path("service.py").resolve()
def service(name):
    words = (sys.executable, str(program), name, str(ports[name]), "told", hows.get(name, ""))
    address = f"http://127.0.0.1:{ports[name]}"
    if hows.get(name) == "beats":  # and asks another one, as the real runner does
        asked, pulse = f"http://127.0.0.1:{ports['prefect']}", Path("pulse").resolve()
    else:
        asked, pulse = address, None
    obstacle = lambda: _trouble(f"http://127.0.0.1:{ports['prefect']}", "(?s).*", "prefect", 2)
    trouble = lambda: _trouble(asked, "(?s).*", name, hows.get("answer_seconds", 2))
    given = (STOP_SECONDS, pulse, obstacle if name == "runner" else None)
    return Service(name, address, words, {}, trouble, *given)
def plan(settings):
    one, two, three = map(service, ("prefect", "mlflow", "runner"))
    return Plan(one.address + "/api", two.address, (sys.executable, "-c", check), (one, two), three)
module.plan = plan
say = lambda line: print(f"said: {line}", file=sys.stderr, flush=True)
try:
    patience = Patience(restart_seconds=(0.1, 0.1), **patience)
    module.up(Settings(), lambda planned: print("healthy", flush=True), say, patience)
except StillmarkError as error:
    sys.exit(f"stillmark: {error}")
"""
UP = UP.replace("STOP_SECONDS", "1.0 if patience else 5.0")
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

        def run(check=FINE, patience=(), **how):
            told = json.dumps([ports, how, check, dict(patience)])
            words = [sys.executable, "-c", UP, told]
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


def test_the_runner_is_not_started_again_before_prefect_answers(start, project):
    process = start(prefect="late")
    process.stdout.readline()
    both = [standing_in(process, name)[0] for name in ("prefect", "runner")]
    for one in both:
        one.kill()
    wait_for(lambda: told(project).count("runner starts") == 2)
    assert told(project)[-3:] == ["prefect starts", "prefect answers", "runner starts"]
    process.terminate()
    assert process.wait(30) == 0


# A process that is stopped (SIGSTOP) lives, and answers nothing.


@pytest.fixture
def stopped():
    """Stops processes; lets go of those that are left."""
    with contextlib.ExitStack() as left:

        def stop(process):
            process.suspend()
            left.callback(release, process)

        yield stop


def release(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()


def standing_in(process, name):
    """A service's process, and its guard."""
    (found,) = [one for one in beneath(process) if one.cmdline()[2:3] == [name]]
    return found, found.parent()


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [("mlflow", "", "does not answer (timed out)"), ("runner", "beats", "gives no sign of life")],
)
def test_one_that_answers_nothing_is_ended_and_started_again(
    start, stopped, project, name, how, said
):
    process = start(patience={"ask_seconds": 0.2, "misses": 2}, **{name: how})
    process.stdout.readline()
    mute = standing_in(process, name)
    stopped(mute[0])
    process.stderr.readline()
    assert process.stderr.readline() == (
        f"said: {name} {said}, 2 times in a row, and was ended; starting it again in 0.1 s\n"
    )
    assert not any(one.is_running() for one in mute)
    wait_for(lambda: told(project).count(f"{name} starts") == 2)
    process.terminate()
    assert process.wait(30) == 0
    assert told(project)[-3:] == ["runner stops", "mlflow stops", "prefect stops"]


def test_one_that_is_slow_for_a_while_goes_on(start, stopped, project):
    """Misses that something came between are no row, however many they are."""
    process = start(patience={"ask_seconds": 0.2, "misses": 4}, answer_seconds=0.5)
    process.stdout.readline()
    slow, _ = standing_in(process, "mlflow")
    for _ in range(5):  # one miss or two each
        stopped(slow)
        time.sleep(1.2)
        slow.resume()
        time.sleep(0.5)
    assert standing_in(process, "mlflow")[0] == slow
    process.terminate()
    assert process.wait(30) == 0
    assert process.stderr.read() == f"said: {STARTS}\n"


def test_another_ones_silence_is_not_taken_for_the_runners(start, stopped, project):
    process = start(patience={"ask_seconds": 0.2, "misses": 2}, runner="beats")
    process.stdout.readline()
    runner, _ = standing_in(process, "runner")
    stopped(standing_in(process, "prefect")[0])
    process.stderr.readline()
    assert process.stderr.readline().startswith("said: prefect does not answer (timed out), 2")
    wait_for(lambda: told(project).count("prefect starts") == 2)
    assert runner.is_running()
    process.terminate()
    assert process.wait(30) == 0
    assert "said: runner" not in process.stderr.read()
    assert told(project).count("runner starts") == 1


@pytest.mark.slow
def test_one_that_never_answers_after_its_restart_is_ended_too(start, project, ports):
    patience = {"start_seconds": 8, "ask_seconds": 0.2, "misses": 2}
    process = start(patience=patience, mlflow="once")
    process.stdout.readline()
    standing_in(process, "mlflow")[0].kill()
    process.stderr.readline()
    assert process.stderr.readline().startswith("said: mlflow ended (exit code 137: ")
    mute = (
        "mlflow does not answer ([Errno 111] Connection refused) 8 s after its start and was ended"
    )
    assert process.stderr.readline() == f"said: {mute}; starting it again in 0.1 s\n"
    assert process.wait(60) == 1
    line = process.stderr.read()
    assert line.startswith(f"stillmark: {mute} 3 times in a row; see ")
    assert len(line.splitlines()) == 1
    assert are_free(ports)


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


def test_a_signal_ends_also_what_was_stopped(start, stopped, ports):
    """A question that nobody answers keeps nobody from ending."""
    process = start(patience={"ask_seconds": 0.1, "misses": 1000})
    process.stdout.readline()
    stopped(standing_in(process, "prefect")[0])
    process.terminate()
    assert process.wait(30) == 0
    assert are_free(ports)
