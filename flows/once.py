"""One run of a project at a time, in this process, ended cleanly; what died before is found."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import Flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.context import FlowRunContext

from flows.server import reach_api
from tasks.compute import Compute
from tasks.errors import StillmarkError
from tasks.interruption import ends_in_time
from tasks.params import Params, load
from tasks.processes import Note
from tasks.project_lock import locked
from tasks.recovery import announce, note_of, recover, scratch
from tasks.settings import Settings
from tasks.signing import refuse_key
from tasks.succession import Succession
from tasks.versioning import Versions

FINAL_STATE_SECONDS = 10.0

Result = TypeVar("Result")

log = logging.getLogger("stillmark")


def preflight(settings: Settings) -> Params:
    """Refuses what cannot succeed, and finishes what a killed promotion left, before all else.

    Raises:
        StillmarkError: A parameter, the data, a folder or the store stands in the way.
    """
    params = load(settings.root)
    Compute.resolve(params.compute)
    settings.writable_home()
    if settings.signing_key is not None:
        refuse_key(settings.signing_key, settings.signing_password)
    Versions.of(settings).check()
    for done in Succession.of(settings).reconcile():
        log.warning(done)
    return params


def note_start(flow: object, flow_run: FlowRun, state: object) -> None:  # noqa: ARG001 - Prefect's names
    """Notes which process runs a flow, so that its end is found if that process is killed."""
    Note.mine(str(flow_run.name)).write(note_of(Settings(), flow_run.id))


def note_end(flow: object, flow_run: FlowRun, state: object) -> None:  # noqa: ARG001 - as above
    """Takes that note away."""
    note_of(Settings(), flow_run.id).unlink(missing_ok=True)


NOTED: dict[str, Any] = {
    "on_running": [note_start],
    "on_completion": [note_end],
    "on_failure": [note_end],
    "on_crashed": [note_end],
    "on_cancellation": [note_end],
}
"""For `@flow(…)`: whoever starts it, a runner too, its end is found if its process is killed."""


@contextmanager
def alone(settings: Settings, *, wait_seconds: float = 0.0, about: str = "") -> Iterator[None]:
    """Has the project to itself, tidies up after processes that died, and ends cleanly.

    A signal or an error of ours ends the block without noise; SIGTERM and Ctrl-C within seconds.

    Args:
        settings: Where the project is.
        wait_seconds: How long to wait where another run of the project is going on.
        about: What for; who has to wait is told.

    Raises:
        BusyError: Another run of the project is going on; says whose.
        SetupError: Prefect's server or MLflow's store does not answer.
    """
    project = load(settings.root).project
    with ends_in_time():
        end_on_sigterm()
        hide_known_failures()
        with locked(settings, project, wait_seconds=wait_seconds, about=about), scratch(settings):
            reach_api()
            for found in recover(settings, project):
                log.warning(found)
            yield


def in_process(
    called: Flow[..., Result],
    *given: Any,  # noqa: ANN401 - whatever the flow takes
    **named: Any,  # noqa: ANN401
) -> tuple[Result, str]:
    """Runs a flow in this process.

    Returns:
        What it gives, and Prefect's id of the run.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    ids: list[str] = []
    settings = Settings()

    def note_id(flow: object, flow_run: FlowRun, state: object) -> None:
        note_start(flow, flow_run, state)
        note_of(settings, tag).unlink(missing_ok=True)
        ids.append(str(flow_run.id))

    hooks: dict[str, Any] = NOTED | {"on_running": [note_id]}
    with ends_in_time():
        end_on_sigterm()
        hide_known_failures()
        reach_api()
        tag = announce(settings)
        with tags(tag):
            result = called.with_options(**hooks)(*given, **named)
        return result, ids[0]


def flow_run_id() -> str:
    """Prefect's id of the flow run around this call; empty outside of one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def is_deployed() -> bool:
    """Whether the flow run around this call was started by a deployment, not by a command."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def end_on_sigterm() -> None:
    """Lets SIGTERM unwind: a process that it ends at once leaves Prefect's server behind.

    Where somebody handles it already, as Prefect does within a flow, that stays.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if on_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))


def hide_known_failures() -> None:
    """Keeps Prefect's traces of our own errors off the terminal; the command says them."""

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, StillmarkError) and "Finished in state" not in str(record.msg)

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_news)


def wait_for_task_states(flow_run_id: str) -> None:
    """Prefect sends task states in the background; a process that ends early loses the last.

    Where its server is away by now, that is said, and is no failure of the run.
    """
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    try:
        _await_task_states(wanted, time.monotonic() + FINAL_STATE_SECONDS)
    except httpx.HTTPError as error:
        log.warning("Prefect's server went away before it knew how all tasks ended: %s", error)


def _await_task_states(wanted: FlowRunFilter, deadline: float) -> None:
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            # The server names 200 at most; the newest are those whose last state may be on the way.
            newest = TaskRunSort.EXPECTED_START_TIME_DESC
            runs = client.read_task_runs(flow_run_filter=wanted, sort=newest)
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(0.1)
