"""A process that is killed while its flow starts, on a Prefect server that outlives it."""

import json
import re
import signal
import sys
import urllib.request

import pytest

from tests.flows.own_server import waiting

KILLED = """
import os, signal
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import FlowRunEngine
from prefect.states import Pending, Scheduled
from flows.once import in_process
@flow
def look():
    pass
with get_client(sync_client=True) as client:
    for state in (Pending(), Scheduled()):
        print(client.create_flow_run(look, state=state).id, flush=True)
def begin_run(engine):  # Prefect knows the run, and nobody has noted its id
    print(engine.flow_run.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
FlowRunEngine.begin_run = begin_run
in_process(look)
"""
NEXT = """
from flows.once import alone
from tasks.settings import Settings
with alone(Settings()):
    pass
"""


@pytest.fixture
def address(untrained):
    """Of a server that goes on until the test ends."""
    with waiting(untrained) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def test_the_next_start_ends_its_run_and_no_other(untrained, address):
    environment = untrained.environment | {"PREFECT_API_URL": address}

    def states(ids):
        found = []
        for one in ids:
            with urllib.request.urlopen(f"{address}/flow_runs/{one}") as answer:  # noqa: S310
                found.append(json.load(answer)["state"])
        return found

    killed = untrained.command(sys.executable, "-c", KILLED, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ids = killed.stdout.split()
    assert [one["type"] for one in states(ids)] == ["PENDING", "SCHEDULED", "PENDING"]

    done = untrained.command(sys.executable, "-c", NEXT, env=environment)
    assert done.returncode == 0, done.stderr
    pending, scheduled, lost = states(ids)
    assert (pending["type"], scheduled["type"]) == ("PENDING", "SCHEDULED")
    assert lost["type"] == "CRASHED"
    assert re.search(r"process \d+ on .* died before it could end this", lost["message"])
    assert re.search(r"flow run \S+ was cut off: process \d+ on \S+ died", done.stderr)
    assert list((untrained.root / ".stillmark" / "running").iterdir()) == []
