"""The services of one machine: by what each is started, where it answers, and who answers there."""

import json
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import SetupError
from tasks.processes import Process
from tasks.settings import Settings

LOOPBACK = "127.0.0.1"
NOTE_FILE, PULSE_FILE = "up.json", "runner.pulse"
PREFECT_ADDRESS = "PREFECT_API_URL"
ANSWER_SECONDS = 5.0
SHOWN = 80  # characters of an answer that is not the expected one
SERVER_STOP_SECONDS = 5.0
RUNNER_STOP_SECONDS = 20.0  # a flow has 10 to write its checkpoint and end
HEARTBEAT_SECONDS = "30"  # Prefect's shortest
# What the runner serves: deployment and flow. prefect.yaml offers more to a team's work pool.
DEPLOYMENTS = {
    "retrain": "flows.retrain:retrain",
    "watch": "flows.watch:watch",
    "promote": "flows.promote:promote",
    "rollback": "flows.promote:rollback",
    "settle": "flows.promote:settle",
    "audit": "flows.audit:verify",
    "backfill": "flows.backfill:backfill",
    "gc": "flows.collect:collect",
}

Trouble = Callable[[], str | None]


class Running(BaseModel):
    """What `stillmark up` leaves for commands while it runs.

    Attributes:
        prefect: Address of Prefect's API.
        mlflow: Address of MLflow's server.
        process: The supervisor; the note counts only while it lives.
    """

    model_config = ConfigDict(frozen=True)

    prefect: str
    mlflow: str
    process: Process

    @classmethod
    def of(cls, home: Path) -> "Running | None":
        """The note of an `up` that runs on this machine, or None."""
        try:
            found = cls.model_validate_json((home / NOTE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValidationError):  # no `up` that can be asked, or that of another release
            return None
        return found if found.process.is_alive() else None

    def write(self, home: Path) -> None:
        """Leaves the note, whole or not at all."""
        fresh = home / f"{NOTE_FILE}.new"
        fresh.write_text(self.model_dump_json(), encoding="utf-8")
        fresh.replace(home / NOTE_FILE)

    @staticmethod
    def remove(home: Path) -> None:
        """Takes the note away."""
        (home / NOTE_FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Service:
    """A program that goes on until it is ended.

    Attributes:
        name: For people, and of its log.
        address: Where a person opens it; empty where there is no page.
        command: The program and its arguments.
        environment: Variables beside those of this process.
        trouble: Why it is not healthy, or None where it is; asks it in earnest.
        stop_seconds: How long it may take to end.
        pulse: A file that it touches again and again while it lives, where `trouble` asks another
            service, whose silence is not its own.
        obstacle: Why it cannot be started again yet, or None: another service has to answer first.
    """

    name: str
    address: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    trouble: Trouble = field(repr=False)
    stop_seconds: float = SERVER_STOP_SECONDS
    pulse: Path | None = None
    obstacle: Trouble | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Plan:
    """What is to run here, and what already runs elsewhere.

    Attributes:
        prefect: Address of Prefect's API, wherever it is.
        mlflow: Address of MLflow's server, wherever it is.
        check: Ends with 0 where the project is fit to be run, else with lines that say why not.
        servers: Services that the runner needs, in the order of their start.
        runner: Serves the deployments.
    """

    prefect: str
    mlflow: str
    check: tuple[str, ...]
    servers: tuple[Service, ...]
    runner: Service

    @property
    def services(self) -> tuple[Service, ...]:
        """All of them, the runner last."""
        return (*self.servers, self.runner)


def plan(settings: Settings) -> Plan:
    """What `up` has to start, every address and port looked at.

    Raises:
        SetupError: A port is taken, or an address answers with something else.
    """
    own = {"STILLMARK_PROJECT": str(settings.root)}
    elsewhere = os.environ.get(PREFECT_ADDRESS)
    servers: list[Service] = []
    if elsewhere is None:
        _refuse_taken(settings.prefect_port, "prefect")
        servers.append(prefect_server(settings.prefect_port, own))
    elif trouble := prefect_trouble(elsewhere):
        raise SetupError(
            f"Prefect's server at {elsewhere} {trouble}; correct STILLMARK_PREFECT_URI or "
            f"{PREFECT_ADDRESS}, which end in /api"
        )
    prefect = elsewhere or f"{servers[0].address}/api"
    mlflow = settings.tracking_uri.rstrip("/")
    if not mlflow.startswith(("http://", "https://")):
        _refuse_taken(settings.mlflow_port, "mlflow")
        servers.append(mlflow_server(settings.mlflow_port, settings.tracking_uri))
        mlflow = servers[-1].address
    elif trouble := mlflow_trouble(mlflow):
        raise SetupError(f"MLflow's server at {mlflow} {trouble}; correct STILLMARK_MLFLOW_URI")
    if len({server.address for server in servers}) < len(servers):
        raise SetupError(f"port {settings.mlflow_port} is given to both servers; give them two")
    check = (sys.executable, "-m", "flows.serve", "check")
    serving = runner(prefect, own, settings.home / PULSE_FILE, sole=elsewhere is None)
    return Plan(prefect, mlflow, check, tuple(servers), serving)


def prefect_server(port: int, environment: Mapping[str, str]) -> Service:
    """Prefect's API, page and scheduler."""
    address = f"http://{LOOPBACK}:{port}"
    return Service(
        name="prefect",
        address=address,
        command=(sys.executable, "-m", "flows.server", "page", str(port)),
        # Without it the page asks port 4200, wherever it is itself.
        environment={
            **environment,
            "PREFECT_SERVER_UI_API_URL": f"{address}/api",
            "PREFECT__SERVER_FINAL": "1",
            "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",  # done before, under a lock
        },
        trouble=lambda: prefect_trouble(f"{address}/api"),
    )


def mlflow_server(port: int, store: str) -> Service:
    """MLflow's API and page, on one worker and without helpers, which cost 240 MB each."""
    address = f"http://{LOOPBACK}:{port}"
    words = ["server", "--workers", "1", "--host", LOOPBACK, "--port", str(port)]
    return Service(
        name="mlflow",
        address=address,
        command=(sys.executable, "-m", "mlflow", *words, "--uvicorn-opts", "--log-level warning"),
        # Not an argument: everybody can read those, and an address may hold a password.
        environment={
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        trouble=lambda: mlflow_trouble(address),
    )


def runner(api: str, environment: Mapping[str, str], pulse: Path, *, sole: bool) -> Service:
    """The process that serves the deployments, on a Prefect server that may be a team's.

    Args:
        api: Address of Prefect's API.
        environment: Of the project.
        pulse: What it touches while it lives.
        sole: Nobody else serves them there.
    """
    asked = datetime.now(UTC).isoformat()
    # A team's server can tell a dead run by its heartbeats alone; here the next runner knows.
    beats = {} if sole else {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT_SECONDS}
    return Service(
        name="runner",
        address="",
        command=(sys.executable, "-m", "flows.serve", *["sole"] * sole),
        environment={
            **environment,
            **beats,
            PREFECT_ADDRESS: api,
            "PREFECT_LOGGING_LEVEL": "INFO",
        },
        trouble=lambda: runner_trouble(api, asked),
        stop_seconds=RUNNER_STOP_SECONDS,
        pulse=pulse,
        obstacle=lambda: prefect_trouble(api),
    )


def prefect_trouble(api: str, seconds: float = ANSWER_SECONDS) -> str | None:
    """What is wrong with Prefect's API at an address, as the end of a sentence, or None."""
    return _trouble(f"{api.rstrip('/')}/health", "true", "Prefect's API", seconds)


def mlflow_trouble(address: str, seconds: float = ANSWER_SECONDS) -> str | None:
    """What is wrong with MLflow's server at an address, as the end of a sentence, or None."""
    place = address.rstrip("/")
    return _trouble(f"{place}/health", "OK", "MLflow", seconds) or _trouble(
        f"{place}/version", r"\d+\.\d+\S*", "MLflow", seconds
    )


def runner_trouble(api: str, since: str) -> str | None:
    """Which deployment nobody has asked after since a moment in UTC, or None."""
    asked = {"deployments": {"name": {"any_": list(DEPLOYMENTS)}}}
    try:
        found = post(f"{api.rstrip('/')}/deployments/filter", asked)
    except SetupError as error:
        return str(error)
    polled = {one["name"] for one in found if (one["last_polled"] or "") >= since[:19]}
    missing = sorted(DEPLOYMENTS.keys() - polled)
    return f"does not serve {', '.join(missing)} yet" if missing else None


def post(address: str, question: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> Any:  # noqa: ANN401 - JSON
    """What an API answers to a question.

    Raises:
        SetupError: Nothing, or nothing that is JSON.
    """
    request = urllib.request.Request(  # noqa: S310 - the user's own address
        address, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310 - as above
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise SetupError(f"{address} does not answer as it should ({error})") from None


def _trouble(address: str, expected: str, name: str, seconds: float) -> str | None:
    try:
        with urllib.request.urlopen(address, timeout=seconds) as answer:  # noqa: S310 - as above
            text = answer.read(10_000).decode("utf-8", "replace").strip().strip('"')
    except HTTPError as error:
        return f"is not {name}: it answers {error.code} {error.reason} to {address}"
    except (OSError, ValueError) as error:
        return f"does not answer ({getattr(error, 'reason', error)})"
    if re.fullmatch(expected, text):
        return None
    shown = " ".join(text.split())[:SHOWN]
    return f"is not {name}: it answers '{shown}' to {address}"


def _refuse_taken(port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise SetupError(
                f"port {port} is taken ({error.strerror}); choose another with --{name}-port or "
                f"STILLMARK_{name.upper()}_PORT"
            ) from None
