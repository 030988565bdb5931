"""Promotion, rollback and approval as flows: by command, or from Prefect's page."""

from typing import Any, TypeVar

from prefect import Flow, flow
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.documents import document
from flows.naming import refuse_unknown
from flows.once import NOTED, in_process, preflight, wait_for_task_states
from tasks.errors import StillmarkError
from tasks.ledger import Entry, Request
from tasks.params import load
from tasks.promote import Decision
from tasks.promote import promote as judge_and_promote
from tasks.promote import rollback as roll_back
from tasks.promote import settle as settle_request
from tasks.refs import VersionRef
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking
from tasks.versioning import Versions

Result = TypeVar("Result")


def find_version(tracking: Tracking, name: str, number: int | None) -> VersionRef:
    """A registered version; the newest where no number is given.

    Raises:
        RegistryError: There is no such model or version; says which there are.
    """
    refuse_unknown(tracking, name)
    newest = int(tracking.versions(name)[0].version)
    return tracking.version(name, newest if number is None else number)


def said(reason: str, name: str) -> str:
    """A person's reason, without the space around it.

    Raises:
        StillmarkError: Nothing was said.
    """
    if not reason.strip():
        raise StillmarkError(f"{name} is empty; say why, it stands in the ledger for ever")
    return reason.strip()


def show_verdicts(decision: Decision) -> None:
    """Leaves the verdicts and the way to the version on Prefect's page."""
    rows = [found.model_dump(include={"gate", "passed", "sentence"}) for found in decision.verdicts]
    version = decision.challenger
    create_table_artifact(rows, key="verdicts", description=decision.sentence)
    address = Settings().tracking_uri
    if address.startswith("http"):  # a local store has no page until `stillmark open mlflow`
        page = f"{address.rstrip('/')}/#/models/{version.name}/versions/{version.version}"
        text = f"{version.name} version {version.version}"
        create_link_artifact(page, link_text=text, key="version")


@flow(name="promote", validate_parameters=False, **NOTED)
def promote(
    model: str, version: int | None = None, *, again: str | None = None, dry_run: bool = False
) -> Decision:
    """Judges a registered version against the champion, and promotes it if all gates pass.

    Args:
        model: Registered name, for example `digits.edge`.
        version: The newest where none is given.
        again: A reason to judge a version that was rolled back once.
        dry_run: Only says what the gates say.
    """
    again = None if again is None else said(again, "again")
    settings = Settings()
    params = load(settings.root)
    challenger = find_version(Tracking(settings.tracking_uri, settings.home), model, version)
    data = Versions.of(settings).current()
    run = Run(params.project, params.compute, data)
    decision = judge_and_promote(run, params.promote, challenger, again=again, dry_run=dry_run)
    show_verdicts(decision)
    if decision.outcome == "promoted" and not dry_run:
        document(challenger)
    return decision


@flow(name="rollback", validate_parameters=False, **NOTED)
def rollback(model: str, reason: str, to: int | None = None) -> Entry:
    """Makes an earlier version champion again.

    Args:
        model: Registered name.
        reason: Stands in the ledger.
        to: Version; by default the champion before the present one.
    """
    settings = Settings()
    find_version(Tracking(settings.tracking_uri, settings.home), model, to)
    entry = roll_back(model, to, said(reason, "reason"))
    create_table_artifact([entry.model_dump()], key="rollback", description=reason)
    return entry


@flow(name="settle", validate_parameters=False, **NOTED)
def settle(request: str, reason: str, *, approved: bool) -> Request:
    """Approves or rejects what a promotion asked for.

    Args:
        request: Its id, as the promotion named it.
        reason: Stands in the ledger.
        approved: Whether the challenger becomes champion.
    """
    found = settle_request(request, said(reason, "reason"), approved=approved)
    create_table_artifact([found.model_dump()], key="request", description=reason)
    if approved:
        tracking = Tracking(Settings().tracking_uri, Settings().home)
        document(tracking.version(found.model, found.version))
    return found


def in_project(called: Flow[..., Result], *given: Any, **named: Any) -> Result:  # noqa: ANN401
    """Checks what a flow needs, runs it in this process and waits until Prefect has heard of it.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    preflight(Settings())
    result, flow_run = in_process(called, *given, **named)
    wait_for_task_states(flow_run)
    return result
