"""`stillmark up` in earnest, for the slow tests: real servers, a real runner, a real project."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus

import psutil

PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.3
FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
COMMAND = "import sys; from flows.up_commands import up; import typer; typer.run(up)"
HASTY = """
import functools, typer
from flows import up_commands
from flows.kept import Patience
hasty = Patience(ask_seconds=1.0, misses=3)
up_commands.run = functools.partial(up_commands.run, patience=hasty)
typer.run(up_commands.up)
"""


class Machine:
    """A project whose services run.

    Attributes:
        project: The project.
        process: The supervisor.
        addresses: What it said: `prefect` (the API) and `mlflow`.
    """

    def __init__(self, project, command=COMMAND, **environment):
        self.project = project
        words = [f"--{name}-port={port}" for name, port in ports().items()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, *words, "--json"],
            cwd=project.root,
            env=project.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.addresses = json.loads(self.process.stdout.readline() or "null")
            assert self.addresses, self.process.stderr.read()
        except BaseException:
            self.process.kill()
            raise

    def ask(self, path, question=None):
        """What Prefect's API answers; where it is busy it is asked again, as its client does."""
        request = urllib.request.Request(  # noqa: S310 - its own address
            self.addresses["prefect"] + path,
            None if question is None else json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)

    def trigger(self, deployment, **parameters):
        """Starts a deployment as the page does; gives the run's id."""
        found = self.ask(f"/deployments/name/{deployment}")
        path = f"/deployments/{found['id']}/create_flow_run"
        return self.ask(path, {"parameters": parameters})["id"]

    def state(self, run):
        return self.ask(f"/flow_runs/{run}")["state"]

    def wait(self, run, *types):
        """Waits until a run is in a state of these types; gives the state."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (state := self.state(run))["type"] not in types:
            assert state["type"] not in FINAL, state
            assert time.monotonic() < until, state
            time.sleep(LOOK_SECONDS)
        return state

    def children(self, words=""):
        """Processes beneath the supervisor whose command holds these words, guards left out."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        commands = [(one, " ".join(one.cmdline())) for one in below if one.is_running()]
        return [one for one, said in commands if words in said and "guard.py" not in said]

    def end(self, number=signal.SIGTERM):
        """Ends it by a signal; gives the exit code, and what is left of the processes."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        code = self.process.wait(90)
        _, left = psutil.wait_procs(below, 60)
        return code, left


def ports():
    """Two that nobody listens on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        return {"prefect": one.getsockname()[1], "mlflow": two.getsockname()[1]}


@contextlib.contextmanager
def running(project, command=COMMAND, **environment):
    """A machine, gone afterwards; a `HASTY` one waits seconds where others wait minutes."""
    machine = Machine(project, command, **environment)
    try:
        yield machine
    finally:
        if machine.process.poll() is None:
            machine.end()
        machine.process.communicate()


def copied(project, place):
    """A copy of a project, to be changed at will."""
    shutil.copytree(project.root, place, symlinks=True)
    return type(project)(place)
