"""One run of a project at a time, in this process, ended cleanly."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.context import FlowRunContext

from flows.server import reach_api
from tasks.compute import Compute
from tasks.errors import SetupError, StillmarkError
from tasks.params import Params, load
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
    Versions(settings.root, settings.home).check()
    for done in Succession.of(settings).reconcile():
        log.warning(done)
    return params


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Holds the project's lock, and lets a signal or an error of ours end the flow without noise.

    Raises:
        SetupError: Another run of the project holds it, or Prefect's server does not answer.
    """
    lock = FileLock(settings.home / "retrain.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SetupError(
            f"another run of {settings.root} is going on; wait until it has ended"
        ) from None
    try:
        end_on_sigterm()
        hide_known_failures()
        reach_api()
        yield
    finally:
        lock.release()


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
    end_on_sigterm()
    hide_known_failures()
    reach_api()
    ids: list[str] = []

    def note(flow: object, flow_run: FlowRun, state: object) -> None:  # noqa: ARG001 - Prefect's names
        ids.append(str(flow_run.id))

    return called.with_options(on_completion=[note])(*given, **named), ids[0]


def flow_run_id() -> str:
    """Prefect's id of the flow run around this call; empty outside of one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def end_on_sigterm() -> None:
    """Lets SIGTERM unwind: a process that it ends at once leaves Prefect's server behind."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))


def hide_known_failures() -> None:
    """Keeps Prefect's traces of our own errors off the terminal; the command says them."""

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, StillmarkError) and "Finished in state" not in str(record.msg)

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_news)


def wait_for_task_states(flow_run_id: str) -> None:
    """Prefect sends task states in the background; a process that ends early loses the last."""
    deadline = time.monotonic() + FINAL_STATE_SECONDS
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            # The server names 200 at most; the newest are those whose last state may be on the way.
            newest = TaskRunSort.EXPECTED_START_TIME_DESC
            runs = client.read_task_runs(flow_run_filter=wanted, sort=newest)
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(0.1)
