"""The labels themselves, where they are shown."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from tasks.losses import Loss

HIDDEN = -1


class HardLabels(Loss):
    """Cross entropy with the shown labels; 0 where a batch holds none."""

    name: Literal["hard_labels"] = "hard_labels"

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        """See `Loss.__call__`; the teacher plays no part."""
        total = functional.cross_entropy(student, labels, ignore_index=HIDDEN, reduction="sum")
        return total / (labels != HIDDEN).sum().clamp_min(1)
