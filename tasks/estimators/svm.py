"""Support vector machine with a Gaussian kernel."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.estimators import Fitted, MarginEstimator, features, readable, short, taught
from tasks.rows import Part


class Svm(MarginEstimator):
    """An SVM (Cortes and Vapnik 1995) with the kernel exp(-γ ‖x - y‖²), one per pair of classes.

    With three or more classes, a class's distance is the number of pairs that it wins, and less
    than a half more or less by how clearly (scikit-learn's `ovr`). Probabilities are
    softmax(distance / temperature): a stated rule, where Platt's needs labels to spare.

    Attributes:
        strength: Inverse of the penalty (C).
        width: γ; null is 1 / (features · variance).
        temperature: Divides the distances before the softmax.
    """

    name: Literal["svm"] = "svm"
    strength: Annotated[float, Field(gt=0)] = 10.0
    width: Annotated[float, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`; the pool's rows without labels play no part.

        Raises:
            ParamsError: Fewer than two classes have labels.
        """
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import SVC

        known = taught(pool)
        svc = SVC(C=self.strength, random_state=short(seed))
        if self.width is not None:
            svc.set_params(gamma=self.width)
        model = make_pipeline(features(pool), svc).fit(readable(known), known.labels)
        return Fitted(model, self.logits(model, pool))
