"""The main job: from data to a registered edge model that is promoted or turned down."""

import sys
from dataclasses import dataclass

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.chain import P, walk
from flows.documents import document
from flows.once import alone, flow_run_id, preflight, wait_for_task_states
from tasks.data import data
from tasks.evaluate import Evaluation
from tasks.params import load
from tasks.promote import Decision, promote
from tasks.refs import ModelRef, VersionRef
from tasks.register import register
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.tracking import Tracking, payload_of


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
    if decision.outcome == "promoted":
        document(versions["edge"])
    tracking = Tracking(settings.tracking_uri, settings.home)
    report = Evaluation.read(payload_of(tracking.fetch(evaluation).folder))
    create_table_artifact(
        [found.model_dump() for found in report.models], key="models", description=decision.sentence
    )
    return Outcome(run, versions, report, decision, flow_run_id())


def run_once() -> Outcome:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    preflight(settings)
    with alone(settings):
        outcome = retrain()
        wait_for_task_states(outcome.flow_run_id)
    return outcome


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(["retrain", *sys.argv[1:]]))
