"""Multinomial logistic regression."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.estimators import Estimator, Fitted, features, readable, short, taught
from tasks.rows import Part


class LogisticRegression(Estimator):
    """Logistic regression on the shown labels, over TF-IDF or standardised numbers.

    Attributes:
        strength: Inverse of the L2 penalty (C).
    """

    name: Literal["logistic_regression"] = "logistic_regression"
    strength: Annotated[float, Field(gt=0)] = 1.0

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`; the pool's rows without labels play no part.

        Raises:
            ParamsError: Fewer than two classes have labels.
        """
        from sklearn.linear_model import LogisticRegression as Regression
        from sklearn.pipeline import make_pipeline

        known = taught(pool)
        regression = Regression(C=self.strength, max_iter=1000, random_state=short(seed))
        model = make_pipeline(features(pool), regression).fit(readable(known), known.labels)
        return Fitted(model, self.logits(model, pool))
