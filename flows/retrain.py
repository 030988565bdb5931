"""The main job: from data to a registered edge model that is promoted or turned down."""

import logging
import signal
import sys
import threading
import time
from dataclasses import dataclass
from uuid import UUID

from filelock import FileLock, Timeout
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext

from flows.chain import P, walk
from tasks.compute import Compute
from tasks.data import data
from tasks.errors import SetupError, StillmarkError
from tasks.evaluate import Evaluation
from tasks.params import Params, load
from tasks.promote import Decision, promote
from tasks.refs import ModelRef, VersionRef
from tasks.register import register
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.tracking import Tracking, payload_of
from tasks.versioning import Versions

FINAL_STATE_SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """What a retraining made.

    Attributes:
        run: What its stages shared.
        versions: The registered version of each model, by role.
        evaluation: Figures of every model on the same test rows.
        decision: What became of the edge model, and why.
        flow_run_id: Prefect's id of the run.
    """

    run: Run
    versions: dict[str, VersionRef]
    evaluation: Evaluation
    decision: Decision
    flow_run_id: str


@flow(name="retrain", validate_parameters=False)
def retrain() -> Outcome:
    """Retrains the project in the working directory (or in STILLMARK_PROJECT)."""
    settings = Settings()
    params = load(settings.root)
    run = Run(params.project, params.compute, data())

    def execute(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        return stage.run(run, section, **inputs)

    models = walk(execute, params)
    evaluation = models.pop("evaluation")
    versions = register(run, models, evaluation)
    decision = promote(run, params.promote, versions["edge"])
    tracking = Tracking(settings.tracking_uri, settings.home)
    report = Evaluation.read(payload_of(tracking.fetch(evaluation).folder))
    create_table_artifact(
        [found.model_dump() for found in report.models], key="models", description=decision.sentence
    )
    context = FlowRunContext.get()
    run_id = str(context.flow_run.id) if context and context.flow_run else ""
    return Outcome(run, versions, report, decision, run_id)


def preflight(settings: Settings) -> Params:
    """Refuses what cannot succeed, before anything is started.

    Raises:
        StillmarkError: A parameter, the data, a folder or the store stands in the way.
    """
    params = load(settings.root)
    Compute.resolve(params.compute)
    settings.writable_home()
    Versions(settings.root, settings.home).check()
    Tracking(settings.tracking_uri, settings.home)
    return params


def run_once() -> Outcome:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    preflight(settings)
    lock = FileLock(settings.home / "retrain.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SetupError(
            f"another retraining of {settings.root} is running; wait until it has ended"
        ) from None
    _end_on_sigterm()
    _hide_known_failures()
    try:
        outcome = retrain()
        _wait_for_task_states(outcome.flow_run_id)
    finally:
        lock.release()
    return outcome


def _end_on_sigterm() -> None:
    """Lets SIGTERM unwind: a process that it ends at once leaves Prefect's server behind."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))


def _hide_known_failures() -> None:
    """Keeps Prefect's traces of our own errors off the terminal; the command says them."""

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, StillmarkError) and "Finished in state" not in str(record.msg)

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_news)


def _wait_for_task_states(flow_run_id: str) -> None:
    """Prefect sends task states in the background; a process that ends early loses the last."""
    deadline = time.monotonic() + FINAL_STATE_SECONDS
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=wanted)
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(0.1)


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(["retrain", *sys.argv[1:]]))
