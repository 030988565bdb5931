"""What an encoder's features are worth: a linear classifier on the few shown labels."""

from torch import nn

from tasks.compute import Compute
from tasks.rows import Rows
from tasks.views import outputs


def linear_probe(encoder: nn.Module, rows: Rows, compute: Compute) -> dict[str, float]:
    """Validation accuracy of logistic regression on frozen features; empty without such rows."""
    if not len(rows.validation):
        return {}
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shown = rows.train.labelled
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(outputs(encoder, shown, compute).numpy(), shown.labels)
    features = outputs(encoder, rows.validation, compute).numpy()
    return {"validation_probe_accuracy": float(probe.score(features, rows.validation.labels))}
