"""The runner: serves the flows as deployments of a Prefect server, and runs what is due.

A program of its own, which `stillmark up` starts: `python -m flows.serve [check|sole]`. Each flow
run is a process beneath it.
"""

import asyncio
import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    StateType,
)
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType

from flows.once import preflight
from flows.services import DEPLOYMENTS, PULSE_FILE
from tasks.errors import StillmarkError
from tasks.params import Params, load
from tasks.processes import kill
from tasks.settings import Settings

NAME = "stillmark"
END_SECONDS = 12.0  # a flow ends within 10
POLL_SECONDS = 5.0
REAP_SECONDS = 0.1
PULSE_SECONDS = 2.0
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class Served(Runner):
    """Prefect's runner, but for how it ends: what it serves has ended, and said so, before it."""

    on_sigterm: Callable[[], object] = sys.exit

    def handle_sigterm(self, *_given: Any, **_named: Any) -> None:  # noqa: ANN401 - as Prefect has it
        """Passes it on. Prefect's own answer leaves a run behind that is Running for ever."""
        self.on_sigterm()

    async def cancel_all(self) -> None:
        """Cancels nothing: Prefect's would call a run cancelled that a signal has ended."""


def deployment(name: str, params: Params) -> RunnerDeployment:
    """One of the deployments, as Prefect wants it; `watch` is the one that time starts.

    Args:
        name: A key of `flows.services.DEPLOYMENTS`.
        params: The project's.
    """
    module, _, found = DEPLOYMENTS[name].partition(":")
    flow = getattr(importlib.import_module(module), found)
    timed: dict[str, Any] = {}
    if name == "watch":
        # On a slow machine looks would pile up, and take the runner's places from retrainings.
        one = ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        )
        timed = {
            "interval": timedelta(minutes=params.schedule.every_minutes),
            "concurrency_limit": one,
        }
    return RunnerDeployment.from_flow(
        flow, name, entrypoint_type=EntrypointType.MODULE_PATH, **timed
    )


async def serve(params: Params, pulse: Path, *, sole: bool) -> None:
    """Serves until SIGTERM; then ends the flows that run, so that each says how it ended.

    Args:
        params: The project's.
        pulse: A file to touch meanwhile.
        sole: Nobody else serves these deployments on that server.
    """
    runner = Served(NAME, query_seconds=POLL_SECONDS, pause_on_shutdown=False)
    served = [await runner.aadd_deployment(deployment(name, params)) for name in DEPLOYMENTS]
    if sole:
        await mark_dead(served)
        await skip_missed(served)
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    runner.on_sigterm = lambda: loop.call_soon_threadsafe(asked.set)
    works = [asyncio.ensure_future(one) for one in (runner.start(), asked.wait(), beat(pulse))]
    serving, waiting, beating = works
    await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        await end_all(psutil.Process().children(), END_SECONDS)
        await runner.astop()
    waiting.cancel()
    if beating.done():
        beating.result()
    beating.cancel()
    await serving


async def beat(pulse: Path) -> None:
    """Shows that this event loop turns, whatever Prefect's server does.

    Raises:
        OSError: The file cannot be touched; a full disk does not hinder that.
    """
    while True:
        pulse.touch()
        await asyncio.sleep(PULSE_SECONDS)


async def end_all(children: list[psutil.Process], seconds: float) -> None:
    """Ends processes that this one started, by force those that take too long."""
    deadline = time.monotonic() + seconds
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    # To wait for a child is to take its exit code, which the event loop waits for.
    while any(child.is_running() for child in children) and time.monotonic() < deadline:
        await asyncio.sleep(REAP_SECONDS)
    for child in (one for one in children if one.is_running()):
        kill(child)


async def mark_dead(served: list[UUID]) -> None:
    """Ends the runs whose runner was killed with them: nobody else could have."""
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=served),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    crashed = Crashed(message="its process was gone when the runner started again")
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=wanted):
            await client.set_flow_run_state(run.id, crashed, force=True)


async def skip_missed(served: list[UUID]) -> None:
    """Passes over what was due while nothing ran: one look now finds all that they would have."""
    planned = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=served),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )
    skipped = Cancelled(name="Skipped", message="it was due while no runner ran")
    now = datetime.now(UTC)
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=planned):
            if run.auto_scheduled and run.expected_start_time and run.expected_start_time < now:
                await client.set_flow_run_state(run.id, skipped, force=True)


def main(words: list[str]) -> int:
    """Checks what the flows need (`check`), or serves; an error of ours is its lines and 2."""
    try:
        if words == ["check"]:
            preflight(Settings())
        else:
            settings = Settings()
            pulse = settings.home / PULSE_FILE
            asyncio.run(serve(load(settings.root), pulse, sole=words == ["sole"]))
    except StillmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
