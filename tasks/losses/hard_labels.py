"""The labels themselves, where they are shown."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from tasks.losses import HIDDEN, Loss, Pair


class HardLabels(Loss):
    """Cross entropy with the shown labels; 0 where a batch holds none.

    The teacher plays no part.
    """

    name: Literal["hard_labels"] = "hard_labels"

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        total = functional.cross_entropy(
            pair.student.logits, pair.labels, ignore_index=HIDDEN, reduction="sum"
        )
        return total / (pair.labels != HIDDEN).sum().clamp_min(1)
