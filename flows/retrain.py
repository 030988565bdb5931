"""The main job: from data to a registered edge model that is promoted or turned down."""

import base64
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import flow
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.chain import P, walk, warmed
from flows.documents import document
from flows.once import (
    NOTED,
    alone,
    flow_run_id,
    in_process,
    is_deployed,
    preflight,
    wait_for_task_states,
)
from flows.services import Running
from tasks.data import data
from tasks.evaluate import Evaluation
from tasks.incoming import resume, woken_by_rows
from tasks.journal import Ending, Facts, Journal, Page, Retraining, sections_of
from tasks.lineage import origin
from tasks.params import Params, load
from tasks.pictures import Dot, trade_off
from tasks.project_lock import locked
from tasks.promote import Decision, promote
from tasks.reasons import BY_HAND, Reason
from tasks.refs import ModelRef, VersionRef
from tasks.register import register
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.tracking import payload_of
from tasks.watch import take_in

KIB = 1024
DIGITS = 4
PICTURE_FILE = "trade-off.png"

log = logging.getLogger("stillmark")


@dataclass(frozen=True)
class Outcome:
    """What a retraining made.

    Attributes:
        run: What its stages shared.
        versions: The registered version of each model, by role.
        evaluation: Figures of every model on the same test rows.
        decision: What became of the edge model, and why; None where it was not to be judged.
        retraining: Its entry in the journal.
    """

    run: Run
    versions: dict[str, VersionRef]
    evaluation: Evaluation
    decision: Decision | None
    retraining: Retraining


@flow(name="retrain", validate_parameters=False, **NOTED)
def retrain(
    trigger: str = BY_HAND.trigger,
    why: str = BY_HAND.sentence,
    about: str = "",
    *,
    wait_minutes: float | None = None,
    promotes: bool = True,
) -> Outcome:
    """Retrains the project in the working directory (or in STILLMARK_PROJECT), and notes why.

    Args:
        trigger: What woke it.
        why: The same for people.
        about: Digest of what the trigger looked at.
        wait_minutes: How long to wait where another retraining of the project is going on; by
            default not at all if a person started it, else `schedule.wait_minutes`.
        promotes: False registers the models and leaves the champion alone.

    Raises:
        StillmarkError: Whatever stood in the way, in one line; the journal has it, too.
    """
    settings = Settings()
    params = preflight(settings) if is_deployed() else load(settings.root)
    if wait_minutes is None:
        wait_minutes = 0.0 if trigger == BY_HAND.trigger else params.schedule.wait_minutes
    journal = Journal.of(settings, params.project)
    facts = Facts(
        reason=Reason(trigger=trigger, sentence=why, about=about),
        code=origin.code().digest,
        sections=sections_of(params.plain()),
        flow_run=flow_run_id(),
    )
    with (
        journal.write(facts) as page,
        alone(settings, wait_seconds=60 * wait_minutes, about=why),
    ):
        _take_in(settings, params, about)
        run, versions, evaluation = _train(journal, params, page)
        decision = promote(run, params.promote, versions["edge"]) if promotes else None
        if decision is not None and decision.outcome == "promoted":
            document(versions["edge"])
        page.outcome, page.sentence = _ending(journal, page, decision)
    outcome = Outcome(run, versions, evaluation, decision, journal.entry(page.run_id))
    try:
        _show(settings, journal, outcome)
    except httpx.HTTPError as error:
        log.warning("Prefect's page does not show what came of it: %s", error)
    return outcome


def _take_in(settings: Settings, params: Params, about: str) -> None:
    """Moves the rows that woke it into the data, and finishes what a killed run had begun."""
    resume(settings.root, settings.home)
    if params.schedule.absorb and woken_by_rows(about):
        take_in(settings, params.prepare, params.schedule.incoming)


def _train(
    journal: Journal, params: Params, page: Page
) -> tuple[Run, dict[str, VersionRef], Evaluation]:
    """The chain, from the data to registered versions."""
    page.data = data(params.compute)
    run = Run(params.project, params.compute, page.data, journal=page.run_id)

    def execute(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        return stage.run(run, section, **inputs)

    models = walk(warmed(execute, journal.tracking, run, params), params)
    evaluation = models.pop("evaluation")
    versions = register(run, models, evaluation)
    report = Evaluation.read(payload_of(journal.tracking.fetch(evaluation).folder))
    return run, versions, report


def _ending(journal: Journal, page: Page, decision: Decision | None) -> tuple[Ending, str]:
    """What the journal says of a retraining that came to its end."""
    made = len(journal.trained(page.run_id))
    if decision is None:
        return "unchanged" if not made else "registered", f"{made} stages trained; nobody judged"
    if decision.outcome == "unchanged" and not made:
        return "unchanged", f"nothing has changed: {decision.sentence}"
    return decision.outcome, decision.sentence


def _show(settings: Settings, journal: Journal, outcome: Outcome) -> None:
    """Leaves on Prefect's page what a person would look for there."""
    said, evaluation = outcome.retraining, outcome.evaluation
    create_markdown_artifact(
        f"**{said.outcome}**: {said.sentence}\n\nwoken by `{said.reason.trigger}`: "
        f"{said.reason.sentence}\n\n{said.trained} stages trained",
        key="outcome",
    )
    create_table_artifact(_rows(evaluation), key="models", description=said.sentence)
    if said.trained:
        with tempfile.TemporaryDirectory() as scratch:
            picture = draw(evaluation, Path(scratch) / PICTURE_FILE)
            journal.tracking.store_report(said.run_id, picture.parent)
            # A page without the file's server shows it, too (RFC 2397).
            content = base64.b64encode(picture.read_bytes()).decode("ascii")
        create_image_artifact(f"data:image/png;base64,{content}", key="trade-off")
    here = Running.of(settings.home)
    address = settings.mlflow_uri or (here.mlflow if here else "")
    if address.startswith("http"):  # else no page is there until somebody opens one
        edge = outcome.versions["edge"]
        page = f"{address.rstrip('/')}/#/models/{edge.name}/versions/{edge.version}"
        create_link_artifact(page, link_text=f"{edge.name} version {edge.version}", key="version")


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The figures of each model, as short as people want them."""
    return [
        {
            name: round(value, DIGITS) if isinstance(value, float) else value
            for name, value in found.model_dump(exclude={"membership", "zero_shot"}).items()
        }
        for found in evaluation.models
    ]


def draw(evaluation: Evaluation, path: Path) -> Path:
    """The trade-off of the chain as a picture."""
    dots = [
        Dot(one.role, one.size_bytes / KIB, one.accuracy, one.low, one.high, one.latency_p50_ms)
        for one in evaluation.models
    ]
    with trade_off(path, dots, f"{evaluation.rows} test rows"):
        return path


def run_once(reason: Reason = BY_HAND, *, wait_seconds: float = 0.0) -> Outcome:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Args:
        reason: What woke it.
        wait_seconds: How long to wait where another retraining of the project is going on.

    Raises:
        BusyError: Another run of the project is going on.
        StillmarkError: Whatever else stood in the way, in one line.
    """
    settings = Settings()
    params = preflight(settings)
    if not wait_seconds:  # said at once, before Prefect has heard of a run
        with locked(settings, params.project):
            pass
    outcome, flow_run = in_process(
        retrain, reason.trigger, reason.sentence, reason.about, wait_minutes=wait_seconds / 60
    )
    wait_for_task_states(flow_run)
    return outcome


if __name__ == "__main__":
    from flows.cli import program

    program(["retrain", *sys.argv[1:]])
