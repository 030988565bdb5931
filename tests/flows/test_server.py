"""Prefect's server of one command, in processes of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from flows.server import reach_api, start_own_server
from flows.services import Running
from tasks.errors import SetupError
from tasks.processes import Process
from tasks.settings import Settings

WAIT = """
import os, sys
from flows.server import reach_api, start_own_server
from flows.services import Running
from tasks.settings import Settings
start_own_server(Settings())
assert "prefect" not in sys.modules
reach_api()
start_own_server(Settings())  # the same one
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def command(untrained):
    """A process that has a server of its own, until its standard input closes."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=untrained.root,
        env=untrained.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def test_it_answers_while_the_command_runs_and_not_after(command):
    address = command.stdout.readline().strip()
    with urllib.request.urlopen(f"{address}/health") as answer:  # noqa: S310
        assert json.loads(answer.read()) is True
    (server,) = psutil.Process(command.pid).children()
    assert os.getsid(server.pid) == server.pid  # Ctrl-C at the command does not reach it
    command.stdin.close()
    assert command.wait(30) == 0
    assert not server.is_running()


def test_it_ends_with_a_command_that_was_killed(command):
    command.stdout.readline()
    (server,) = psutil.Process(command.pid).children()
    command.send_signal(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 20
    while server.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.is_running()


@pytest.mark.slow
def test_two_on_a_new_project_make_one_database(untrained):
    """And what one killed at once leaves is taken up by the next."""
    (untrained.root / ".stillmark" / "prefect" / "prefect.db").unlink()
    start = WAIT.replace("sys.stdin.read()", "os.kill(os.getpid(), 9)").replace("reach_api()", "")
    assert untrained.command(sys.executable, "-c", start).returncode == -signal.SIGKILL
    two = [
        subprocess.Popen(
            [sys.executable, "-c", WAIT],
            cwd=untrained.root,
            env=untrained.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.wait(120) for process in two] == [0, 0]
    for process in two:
        assert process.stdout.read().startswith("http://127.0.0.1:")
        process.stdout.close()


def test_another_server_is_taken_where_there_is_one(monkeypatch, inside, untrained):
    inside(untrained.root)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    before = psutil.Process().children()
    start_own_server(Settings())
    assert psutil.Process().children() == before
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


@pytest.mark.parametrize(("alive", "answers"), [(True, True), (False, True), (True, False)])
def test_the_server_of_up_is_asked_while_it_lives_and_answers(
    command, monkeypatch, inside, untrained, alive, answers
):
    address = command.stdout.readline().strip() if answers else "http://127.0.0.1:9/api"
    process = Process.mine() if alive else Process.mine().model_copy(update={"started": 1})
    note = Running(prefect=address, mlflow="http://127.0.0.1:9", process=process)
    note.write(untrained.root / ".stillmark")
    started = []
    monkeypatch.setattr("flows.server._start", lambda *_: started.append(1))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    monkeypatch.setenv("PREFECT_API_URL", "")  # so that it is as before afterwards
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    start_own_server(Settings(project=untrained.root))
    assert bool(started) is not (alive and answers)
    assert (os.environ["PREFECT_API_URL"] == address) is (alive and answers)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "127.0.0.1:9", "file:///etc/hosts"])
def test_a_server_that_does_not_answer_is_one_line(monkeypatch, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(SetupError, match=r"^Prefect's server at .* does not answer .* unset") as e:
        reach_api()
    assert len(str(e.value).splitlines()) == 1


def test_no_server_to_reach_is_fine(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    reach_api()
