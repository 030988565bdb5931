"""Label spreading over a graph of nearest neighbours."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tasks.estimators import (
    SMALLEST_PROBABILITY,
    Estimator,
    Fitted,
    condensed,
    spread,
    spreading,
    taught,
)
from tasks.rows import Part


class LabelSpreading(Estimator):
    """Label spreading (Zhou et al. 2003): F ← α D^(-1/2) W D^(-1/2) F + (1 - α) Y.

    Labels flow along the graph of the nearest among all rows, compared by their principal
    components (numbers) or by latent semantic analysis (texts). A row that it never saw takes the
    mean of what its nearest training rows ended with.

    Attributes:
        components: Features that rows are compared by.
        neighbours: Of a row in the graph.
        reach: Share that a row takes from its neighbours (α).
    """

    name: Literal["label_spreading"] = "label_spreading"
    components: Annotated[int, Field(ge=1)] = 200
    neighbours: Annotated[int, Field(ge=1)] = 10
    reach: Annotated[float, Field(gt=0, le=0.99)] = 0.9

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`.

        Raises:
            ParamsError: Fewer than two classes have labels.
        """
        from sklearn.pipeline import make_pipeline

        taught(pool)
        front, points = condensed(pool, self.components, seed)
        back = spreading(points, pool.labels, self.neighbours, self.reach)
        said = np.log(back.label_distributions_.clip(SMALLEST_PROBABILITY))
        steps = [step for _, step in front.steps]
        return Fitted(make_pipeline(*steps, back), spread(said, back.classes_, pool))
