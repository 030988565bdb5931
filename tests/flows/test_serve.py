"""The runner: what it serves, how it ends, and, slowly, all of it in earnest."""

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
import time
from datetime import timedelta

import psutil
import pytest

from flows.serve import PULSE_SECONDS, beat, deployment, end_all, main
from flows.services import DEPLOYMENTS, NOTE_FILE, PULSE_FILE, prefect_trouble
from tasks.journal import Journal
from tasks.params import load
from tasks.settings import Settings
from tests.flows.machine import HASTY, copied, running
from tests.postgres import postgres, postgres_url  # noqa: F401 - fixtures

IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""
LISTENS = IGNORES.replace("signal.SIG_IGN", "lambda *_: (_ for _ in ()).throw(SystemExit(5))")


@pytest.fixture
def project(untrained, inside):
    """An untrained project that this process stands in."""
    inside(untrained.root)
    return untrained


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_time_starts_the_watch_alone(name, project):
    project.change("schedule", {"every_minutes": 2.5})
    found = deployment(name, load(project.root))
    module, _, flow = DEPLOYMENTS[name].partition(":")
    assert found.name == name
    assert found.entrypoint == f"{module}.{flow}"
    every = [one.schedule.interval for one in found.schedules or []]
    assert every == ([timedelta(minutes=2.5)] if name == "watch" else [])
    assert found.concurrency_limit == (1 if name == "watch" else None)


def test_a_project_that_is_fit_passes_the_check(project, capsys):
    assert main(["check"]) == 0
    assert capsys.readouterr().err == ""


def test_an_invalid_cron_and_a_missing_parameter_fail_it_in_a_line_each(project, capsys):
    project.change("schedule", {"triggers": [{"name": "cron", "expression": "61 * * * *"}]})
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("params.yaml: 'schedule.triggers[0]")
    (project.root / "params.yaml").unlink()
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{project.root}/params.yaml is missing")


def test_a_wrong_password_of_the_ledger_fails_it_in_one_line(
    project,
    capsys,
    monkeypatch,
    postgres,  # noqa: F811 - the fixture
):
    monkeypatch.setenv("STILLMARK_LEDGER_URI", postgres.url(password="wrong"))  # noqa: S106
    assert main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "password authentication failed" in line
    assert "correct the user and the password in its address" in line


@pytest.mark.parametrize(("program", "code"), [(LISTENS, 5), (IGNORES, -signal.SIGKILL)])
def test_what_runs_beneath_ends_with_it(program, code):
    async def end():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        assert await child.stdout.readline() == b"ready\n"
        seconds = 0.5 if program is IGNORES else 20
        await end_all([psutil.Process(child.pid)], seconds)
        return await asyncio.wait_for(child.wait(), 20)

    assert asyncio.run(end()) == code


def test_while_its_loop_turns_it_shows_that(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.serve.PULSE_SECONDS", 0.01)
    pulse, seen = tmp_path / "pulse", []

    async def look():
        beating = asyncio.ensure_future(beat(pulse))
        for _ in range(3):
            await asyncio.sleep(0.1)
            seen.append(pulse.stat().st_mtime_ns)
        beating.cancel()

    asyncio.run(look())
    assert len(set(seen)) == 3


# In earnest.


@pytest.fixture(scope="module")
def machine(fresh, tmp_path_factory):
    """A project with its services, shared: nobody stops it."""
    with running(copied(fresh, tmp_path_factory.mktemp("machine") / "project")) as found:
        yield found


@pytest.fixture(scope="module")
def retrained(machine):
    """A retraining that was started through the API: its run and how that ended."""
    why = {"trigger": "data", "why": "12 rows arrived", "about": "ab" * 32}
    run = machine.trigger("retrain/retrain", **why)
    return run, machine.wait(run, "COMPLETED")


@pytest.mark.slow
def test_the_runner_shows_that_it_lives(machine):
    pulse = machine.project.root / ".stillmark" / PULSE_FILE
    seen = pulse.stat().st_mtime_ns
    time.sleep(3 * PULSE_SECONDS)
    assert pulse.stat().st_mtime_ns > seen


@pytest.mark.slow
def test_the_deployments_are_there_and_the_next_look_is_planned(machine):
    found = machine.ask("/deployments/filter", {})
    assert sorted(one["name"] for one in found) == sorted(DEPLOYMENTS)
    assert {one["status"] for one in found} == {"READY"}
    planned = {one["name"]: one["schedules"] for one in found}
    assert [one["schedule"]["interval"] for one in planned.pop("watch")] == [300.0]
    assert not any(planned.values())


@pytest.mark.slow
def test_a_retraining_from_the_page_runs_with_its_reason(machine, retrained):
    settings = Settings(project=machine.project.root)
    newest = Journal.of(settings, "digits").newest(1)[0]
    assert newest.flow_run == retrained[0]
    assert (newest.reason.trigger, newest.reason.sentence) == ("data", "12 rows arrived")
    assert newest.reason.about == "ab" * 32
    assert newest.outcome == "promoted"
    wanted = {"artifacts": {"flow_run_id": {"any_": [retrained[0]]}}}
    kinds = {one["type"] for one in machine.ask("/artifacts/filter", wanted)}
    assert {"markdown", "table", "image", "progress"} <= kinds


@pytest.mark.slow
def test_commands_ask_its_servers(machine, retrained):
    def runs():
        return machine.ask("/flow_runs/count", {"flows": {"name": {"any_": ["verify"]}}})

    before = runs()
    done = machine.project.stillmark("verify", "--all")
    assert done.returncode == 0, done.stderr
    assert runs() == before + 1
    found = json.loads(machine.project.stillmark("status", "--json").stdout)
    assert {one["name"]: one["healthy"] for one in found["services"]} == dict.fromkeys(
        ("prefect", "mlflow", "runner"), True
    )
    assert found["retraining"]["reason"]["trigger"] == "data"
    assert found["scheduled"][0]["deployment"] == "watch"


@pytest.mark.slow
def test_a_second_one_is_refused(machine):
    done = machine.project.command(
        sys.executable, "-c", "from flows.up_commands import up; up(as_json=True)"
    )
    assert done.returncode == 1
    assert f"already runs for this project (Prefect: {machine.addresses['prefect']}" in done.stderr


@pytest.mark.slow
def test_a_flow_that_is_killed_is_crashed_and_the_next_one_runs(machine, retrained):
    run = machine.trigger("retrain/retrain")
    machine.wait(run, "RUNNING")
    (flow,) = machine.children("prefect.engine")
    flow.kill()
    assert "SIGKILL" in machine.wait(run, "CRASHED")["message"]
    assert machine.wait(machine.trigger("retrain/retrain"), "COMPLETED")


@pytest.mark.slow
def test_prefects_server_is_killed_in_mid_run_and_nothing_is_lost(machine, retrained):
    machine.project.change("pretrain.fit.steps", 14)  # so that every stage has to be trained anew
    run = machine.trigger("retrain/retrain")
    machine.wait(run, "RUNNING")
    mine = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200}
    until = time.monotonic() + 200
    while len(machine.ask("/task_runs/filter", mine)) < 3:
        assert time.monotonic() < until
        time.sleep(0.2)
    (server,) = machine.children("flows.server page")
    server.kill()
    psutil.wait_procs([server], 20)
    while prefect_trouble(machine.addresses["prefect"]):
        assert time.monotonic() < until
        time.sleep(0.5)
    machine.wait(run, "COMPLETED")
    tasks = machine.ask("/task_runs/filter", mine)
    assert {one["state"]["type"] for one in tasks} == {"COMPLETED"}
    settings = Settings(project=machine.project.root)
    newest = Journal.of(settings, "digits").newest(1)[0]
    assert newest.flow_run == run
    assert newest.outcome in {"promoted", "rejected"}
    assert newest.trained > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("words", ["mlflow", "flows.serve sole", "flows.server page"])
def test_a_service_that_lives_and_answers_nothing_comes_back(fresh, tmp_path, words):
    with running(copied(fresh, tmp_path / "project"), HASTY) as machine:
        stopped = machine.children(words)
        for one in stopped:
            one.suspend()
        assert psutil.wait_procs(stopped, 120)[1] == []
        until = time.monotonic() + 200
        while not machine.children(words) or prefect_trouble(machine.addresses["prefect"]):
            assert time.monotonic() < until
            time.sleep(0.3)
        assert machine.wait(machine.trigger("collect/gc"), "COMPLETED")
        assert machine.end() == (0, [])
        said = machine.process.stderr.read()
    assert " 3 times in a row, and was ended; starting it again in 1 s" in said
    assert len(said.splitlines()) == 2


@pytest.mark.slow
def test_a_signal_with_a_flow_at_work_leaves_nothing(fresh, tmp_path):
    """And what was killed with its runner, or due while none ran, the next one puts in order."""
    project = copied(fresh, tmp_path / "project")
    project.change("schedule", {"every_minutes": 0.25})  # sooner than `up` starts
    home = project.root / ".stillmark"

    def retrain(machine):
        run = machine.trigger("retrain/retrain")
        machine.wait(run, "RUNNING")
        return run

    with running(project) as first:
        run = retrain(first)
        began = time.monotonic()
        assert first.end(signal.SIGINT) == (0, [])
        assert time.monotonic() - began < 45
        assert not (home / NOTE_FILE).exists()
    with contextlib.closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        said = database.execute("SELECT state_type FROM flow_run WHERE id = ?", [run])
        assert said.fetchone() == ("CRASHED",)
    with running(project) as second:
        run = retrain(second)
        assert second.end(signal.SIGKILL)[1] == []
    with running(project) as third:
        assert third.state(run)["type"] == "CRASHED"
        assert "its process was gone" in third.state(run)["message"]
        skipped = {"flow_runs": {"state": {"name": {"any_": ["Skipped"]}}}}
        assert third.ask("/flow_runs/filter", skipped)
