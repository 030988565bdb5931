"""The mean of the teachers' probabilities."""

import math
from typing import Literal

from torch import Tensor

from tasks.combinations import Combination


class Mean(Combination):
    """log of the mean over teachers of softmax(logits): the ensemble's own prediction."""

    name: Literal["mean"] = "mean"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        """See `Combination.__call__`; labels play no part. A single teacher's logits stay."""
        if len(logits) == 1:
            return logits[0]
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
