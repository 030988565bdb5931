"""Registration: every model of the chain becomes a version, once per content."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.evaluate import Evaluation
from tasks.refs import ModelRef, VersionRef
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import DATA_TAG, EVALUATION_TAG, Tracking, payload_of
from tasks.transience import RETRIES


@task(name="register", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def register(run: Run, models: dict[str, ModelRef], evaluation: ModelRef) -> dict[str, VersionRef]:
    """Registers models as `<project>.<role>`; a model that already is a version stays that one.

    Args:
        run: The run.
        models: By role.
        evaluation: The report whose figures are logged on the models.

    Returns:
        The versions by role.
    """
    settings = Settings()
    tracking = Tracking(settings.tracking_uri, settings.home)
    report = Evaluation.read(payload_of(tracking.fetch(evaluation).folder))
    tags = {EVALUATION_TAG: evaluation.record, DATA_TAG: run.data.prepared}
    versions: dict[str, VersionRef] = {}
    for role, ref in models.items():
        versions[role] = tracking.register(f"{run.project}.{role}", ref, tags)
    for found in report.models:
        figures = {"test_accuracy": found.accuracy, "latency_p50_ms": found.latency_p50_ms}
        if found.membership and (attack := found.membership.strongest):
            figures |= {
                "membership_auc": attack.auc,
                "membership_auc_low": attack.low,
                "membership_auc_high": attack.high,
            }
        tracking.log_metrics(evaluation.run_id, figures, model=models[found.role], data=run.data)
    return versions
