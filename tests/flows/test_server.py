"""Prefect's server of one command, in processes of its own."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import psutil
import pytest

from flows.server import reach_api, start_own_server
from flows.services import Running
from tasks.errors import SetupError
from tasks.processes import Process
from tasks.settings import Settings
from tests.flows.own_server import WAIT, waiting
from tests.flows.test_kill_anywhere import at_work_in

ASK = """
from flows.server import reach_api, start_own_server
from tasks.settings import Settings
start_own_server(Settings())
reach_api()
"""


@pytest.fixture
def command(untrained):
    """A process that has a server of its own, until its standard input closes."""
    with waiting(untrained) as process:
        yield process


def test_it_answers_while_the_command_runs_and_not_after(command):
    address = command.stdout.readline().strip()
    with urllib.request.urlopen(f"{address}/health") as answer:  # noqa: S310
        assert json.loads(answer.read()) is True
    (server,) = psutil.Process(command.pid).children()
    assert os.getsid(server.pid) == server.pid  # Ctrl-C at the command does not reach it
    command.stdin.close()
    assert command.wait(30) == 0
    assert not server.is_running()


def test_killed_it_is_started_again_and_who_asks_meanwhile_only_waits(command):
    address = command.stdout.readline().strip()
    parent = psutil.Process(command.pid)
    (first,) = parent.children()
    first.kill()
    with urllib.request.urlopen(f"{address}/health", timeout=120) as answer:  # noqa: S310
        assert json.loads(answer.read()) is True
    (second,) = parent.children()
    assert second != first
    command.stdin.close()
    assert command.wait(30) == 0
    assert not second.is_running()


def test_what_it_gave_up_for_is_one_line_and_no_password(untrained):
    address = "postgresql+asyncpg://somebody:open-sesame@127.0.0.1:9/prefect"
    environment = untrained.environment | {"PREFECT_API_DATABASE_CONNECTION_URL": address}
    done = untrained.command(sys.executable, "-c", ASK, env=environment)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("tasks.errors.SetupError: Prefect's server ended at its start: ")
    assert "Prefect's database at postgresql://127.0.0.1:9/prefect cannot be used (" in line
    assert line.endswith("see that the database runs and can be reached, then run again")
    assert "open-sesame" not in done.stderr
    assert at_work_in(untrained.root) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again_in_mid_run_it_costs_the_run_nothing(untrained):
    """What a retraining makes and what Prefect knows of it afterwards is whole."""
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "retrain", "--json"],
        cwd=untrained.root,
        env=untrained.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            for stage in ("teach", "distill", "evaluate"):
                wait_for(lambda stage=stage: is_at_work(untrained, stage))
                (server,) = servers(process)
                server.kill()
                server.wait(20)
                wait_for(lambda server=server: servers(process) not in ([], [server]))
            out, err = process.communicate(timeout=400)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert json.loads(out)["outcome"] == "promoted"
    assert err.count("Prefect's server was ended by SIGKILL; starting it again") == 3
    assert "Traceback" not in err
    assert states(untrained, "flow_run") == {"COMPLETED"}
    assert states(untrained, "task_run") == {"COMPLETED"}
    wait_for(lambda: at_work_in(untrained.root) == [])


def servers(process):
    """Prefect's servers beneath a command that live."""
    below = psutil.Process(process.pid).children()
    return [one for one in below if one.status() != "zombie" and "flows.server" in one.cmdline()]


def is_at_work(project, stage):
    query = (
        "SELECT count(*) FROM runs r JOIN tags t ON r.run_uuid = t.run_uuid"
        " WHERE t.key = 'stillmark.stage' AND t.value = ?"
    )
    with contextlib.suppress(sqlite3.OperationalError):
        connection = sqlite3.connect(f"file:{project.root / 'mlflow.db'}?mode=ro", uri=True)
        with contextlib.closing(connection):
            return connection.execute(query, [stage]).fetchone()[0]
    return 0


def states(project, table):
    """How the runs of a kind ended, as Prefect's database has it."""
    place = project.root / ".stillmark" / "prefect" / "prefect.db"
    with contextlib.closing(sqlite3.connect(place)) as connection:
        return {found for (found,) in connection.execute(f"SELECT state_type FROM {table}")}  # noqa: S608


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


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
    fake = SimpleNamespace(address="http://127.0.0.1:1/api", stop=None)
    monkeypatch.setattr("flows.server.OwnServer", lambda *_: started.append(1) or fake)
    monkeypatch.setattr("flows.server.own", [])
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
