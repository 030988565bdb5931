"""Linear support vector classifier, which may teach itself from the pool."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field

from tasks.estimators import (
    SMALLEST_PROBABILITY,
    Fitted,
    MarginEstimator,
    condensed,
    confident,
    features,
    readable,
    short,
    spread,
    spreading,
    taught,
)
from tasks.rows import Part

SOLVER_STEPS = 10_000


class LinearSvc(MarginEstimator):
    """A linear SVC per class (Cortes and Vapnik 1995) over TF-IDF or standardised numbers.

    Self-training (Yarowsky 1995): it is fitted again on its most confident answers. With
    `spreading`, its answers are the mean of its own and those of label spreading over all rows
    (Zhou et al. 2003); the stored model is the last SVC alone, for rows that no graph holds.

    On CLINC150 with 10 labels of each intent, `spreading` and two rounds raise the answers on the
    pool from 85.2% to 87.9%; a `keep_share` of 0.6 or 1 gave a point less.

    Attributes:
        strength: Inverse of the L2 penalty (C).
        temperature: Divides the distances to the boundaries before the softmax.
        rounds: How often it is fitted again.
        keep_share: Share of the pool's answers, the most confident of each class, that it is then
            fitted on.
        spreading: Averages its answers with label spreading.
        components: Features that rows are compared by (latent semantic or principal components).
        neighbours: Of a row in the graph.
        reach: Share that a row takes from its neighbours (α).
    """

    name: Literal["linear_svc"] = "linear_svc"
    strength: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.12
    rounds: Annotated[int, Field(ge=0)] = 0
    keep_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    spreading: bool = False
    components: Annotated[int, Field(ge=1)] = 200
    neighbours: Annotated[int, Field(ge=1)] = 10
    reach: Annotated[float, Field(gt=0, le=0.99)] = 0.9

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`; the pool's rows without labels count with rounds or spreading.

        Raises:
            ParamsError: Fewer than two classes have labels.
        """
        taught(pool)
        beside = self._spread(pool, seed) if self.spreading else None
        model, said = self._ask(pool, pool.labels, beside, seed)
        for _ in range(self.rounds):
            labels = confident(said, pool.labels, self.keep_share)
            model, said = self._ask(pool, labels, beside, seed)
        return Fitted(model, np.log(said.clip(SMALLEST_PROBABILITY)).astype(np.float32))

    def _ask(
        self,
        pool: Part,
        labels: NDArray[np.int64],
        beside: NDArray[np.float32] | None,
        seed: int,
    ) -> tuple[Any, NDArray[np.float32]]:
        """An SVC on the labels given, and the probabilities (N, classes) that follow from it."""
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        chosen = replace(pool, labels=labels).labelled
        svc = LinearSVC(C=self.strength, max_iter=SOLVER_STEPS, random_state=short(seed))
        model = make_pipeline(features(pool), svc).fit(readable(chosen), chosen.labels)
        said = scipy.special.softmax(self.logits(model, pool), axis=1)
        return model, said if beside is None else (said + beside) / 2

    def _spread(self, pool: Part, seed: int) -> NDArray[np.float32]:
        """What label spreading says of the pool, (N, classes) probabilities."""
        _, points = condensed(pool, self.components, seed)
        found = spreading(points, pool.labels, self.neighbours, self.reach)
        known = np.log(found.label_distributions_.clip(SMALLEST_PROBABILITY))
        return scipy.special.softmax(spread(known, found.classes_, pool), axis=1)
