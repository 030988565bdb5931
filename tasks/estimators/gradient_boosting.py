"""Gradient boosting of decision trees."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.errors import ParamsError
from tasks.estimators import Estimator, Fitted, readable
from tasks.rows import Part


class GradientBoosting(Estimator):
    """Boosted trees over histograms (Ke et al. 2017, LightGBM) on the shown labels.

    The defaults are meant for few labels: small trees on few rows, each split choosing among a
    share of the columns, so that not all trees say the same.

    Attributes:
        rounds: Trees per class, one after the other. Above 10,000 labels a tenth of them is held
            back, and the rounds end where that tenth gets no better.
        learning_rate: What each tree contributes.
        leaves: Most leaves of a tree.
        leaf_rows: Fewest labelled rows in a leaf; with scikit-learn's 20, few labels make no split.
        l2: Penalty on the leaves' values.
        feature_share: Share of the columns that each split may choose from.
    """

    name: Literal["gradient_boosting"] = "gradient_boosting"
    rounds: Annotated[int, Field(ge=1)] = 100
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    leaves: Annotated[int, Field(ge=2)] = 7
    leaf_rows: Annotated[int, Field(ge=1)] = 3
    l2: Annotated[float, Field(ge=0)] = 1.0
    feature_share: Annotated[float, Field(gt=0, le=1)] = 0.3

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`; the pool's rows without labels play no part.

        Raises:
            ParamsError: The rows are texts.
        """
        if pool.texts is not None:
            raise ParamsError(
                "gradient_boosting splits numbers, and these rows are texts; take "
                "logistic_regression"
            )
        from sklearn.ensemble import HistGradientBoostingClassifier

        known = pool.labelled
        model = HistGradientBoostingClassifier(
            max_iter=self.rounds,
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.leaf_rows,
            l2_regularization=self.l2,
            max_features=self.feature_share,
            early_stopping="auto",
            random_state=seed % 2**32,
        ).fit(readable(known), known.labels)
        return Fitted(model, self.logits(model, pool))
