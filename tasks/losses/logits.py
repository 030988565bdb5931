"""Regression on the teacher's logits."""

from typing import Literal

from torch import Tensor

from tasks.losses import Loss, Pair


class Logits(Loss):
    """Mean squared error of the logits (Ba & Caruana 2014, arXiv:1312.6184).

    mean over rows and classes of (student - teacher)². Half of it, centred, is what `soft_labels`
    tends to as its temperature grows (Kim et al. 2021, arXiv:2105.08919). Labels play no part.

    Attributes:
        centred: Takes each row's mean from its logits first. The softmax ignores a constant added
            to a row: it is no knowledge, and that of combined teachers is arbitrary.
    """

    name: Literal["logits"] = "logits"
    centred: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        gap = pair.student.logits - pair.teacher.logits
        if self.centred:
            gap = gap - gap.mean(dim=1, keepdim=True)
        return gap.square().mean()
