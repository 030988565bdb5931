"""MLflow's own word on whether a model is accurate enough."""

import mlflow

from tasks.tracking.failures import first_line


def validate(accuracy: float, floor: float) -> str | None:
    """Asks `mlflow.validate_evaluation_results`; returns its reason where it says no."""
    from mlflow.models import (  # noqa: PLC0415 - half a second that no other command needs
        EvaluationResult,
        MetricThreshold,
    )
    from mlflow.models.evaluation.validation import (  # noqa: PLC0415
        ModelValidationFailedException,
    )

    found = EvaluationResult(metrics={"accuracy": accuracy}, artifacts={})
    thresholds = {"accuracy": MetricThreshold(threshold=floor, greater_is_better=True)}
    try:
        mlflow.validate_evaluation_results(thresholds, found)
    except ModelValidationFailedException as error:
        return first_line(error)
    return None
