"""The watch: looks whether it is time for a retraining, and starts one where it is."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from flows.look import look_now
from flows.once import NOTED
from tasks.errors import SetupError, StillmarkError
from tasks.lineage.digests import digest_of_value
from tasks.reasons import Reason
from tasks.settings import Settings
from tasks.watch import Look

DEPLOYMENT = "retrain/retrain"
SOON = timedelta(minutes=1)
UNFINISHED = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


@flow(name="watch", validate_parameters=False, **NOTED)
def watch() -> State[Any]:
    """Asks the triggers of section `schedule`, and starts `retrain` where one says it is time.

    A trigger that cannot look is said in one line and keeps no other from it; the run fails after
    the others were asked.
    """
    try:
        found = look_now(Settings())
    except StillmarkError as error:
        return Failed(message=_line(error))
    said, failures = found.sentence, found.failures
    if found.reason is not None:
        try:
            said = f"{said}; {start(found.reason)}"
        except StillmarkError as error:
            failures = [*failures, _line(error)]
    show(found, said)
    if failures:
        return Failed(message="; ".join([*failures, said]))
    return Completed(message=said)


def _line(error: StillmarkError) -> str:
    return "; ".join(str(error).splitlines())


def start(reason: Reason) -> str:
    """Starts the deployment `retrain`, unless a run of it is on its way; says which it was.

    Raises:
        SetupError: There is no such deployment.
    """
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise SetupError(
                f"there is no deployment '{DEPLOYMENT}' to start; run `stillmark up`, or deploy "
                "the flows: `prefect --no-prompt deploy --all`"
            ) from None
        of_it = FlowRunFilterDeploymentId(any_=[deployment.id])
        going = _on_its_way(client, of_it)
        if going is not None:
            return f"retraining {going.name} is {going.state_name} already"
        # Of the flow, not of the deployment, which may have been made anew since.
        newest = client.read_flow_runs(
            flow_filter=FlowFilter(id=FlowFilterId(any_=[deployment.flow_id])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=1,
        )
    if newest and _was_cancelled(newest[0], reason):
        return f"not started: {newest[0].name} was, and a person cancelled it"
    # Two looks at once name the same run before: the server starts one retraining for both.
    before = str(newest[0].id) if newest else ""
    made: Any = run_deployment(
        DEPLOYMENT,
        parameters={"trigger": reason.trigger, "why": reason.sentence, "about": reason.about},
        timeout=0,
        idempotency_key=digest_of_value([reason.trigger, reason.about, before]),
        as_subflow=False,
    )
    return f"retraining {made.name} was started"


def _was_cancelled(run: FlowRun, reason: Reason) -> bool:
    """Whether somebody stopped a retraining for just this reason."""
    same = run.parameters.get("trigger"), run.parameters.get("about")
    return run.state_type == StateType.CANCELLED and same == (reason.trigger, reason.about)


def _on_its_way(
    client: SyncPrefectClient, of_deployment: FlowRunFilterDeploymentId
) -> FlowRun | None:
    """A run that has not ended and is not planned for later."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(deployment_id=of_deployment, state=unfinished),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )
    soon = datetime.now(UTC) + SOON
    planned = (run for run in runs if run.expected_start_time and run.expected_start_time > soon)
    later = {run.id for run in planned}
    return next((run for run in runs if run.id not in later), None)


def show(found: Look, said: str) -> None:
    """Leaves the answers on Prefect's page."""
    rows = [
        {
            "trigger": answer.trigger,
            "answer": "failed" if answer.failed else "retrain" if answer.reason else "rests",
            "why": answer.sentence,
        }
        for answer in found.answers
    ]
    note = f" ({found.note})" if found.note else ""
    create_table_artifact(rows, key="watch", description=f"{said}{note}")
