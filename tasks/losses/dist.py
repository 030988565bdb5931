"""Correlation with the teacher's probabilities, along rows and along classes."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.losses import Loss, Pair

ROUNDING = 1e-6


class Dist(Loss):
    """DIST (Huang et al. 2022, arXiv:2205.10536): a student need only agree up to scale and shift.

    T² · (inter · (1 - mean r of rows) + intra · (1 - mean r of columns)), where r is Pearson's
    correlation between the probabilities softmax(student / T) and softmax(teacher / T): of a row,
    how the classes compare; of a column, how the batch's rows compare as members of that class.
    Where either does not vary there is no correlation, and that row or column is left out of the
    mean, as all columns are in a batch of one row. Labels play no part.

    Attributes:
        inter: Weight of the correlation between classes (β in the paper).
        intra: Weight of the correlation within classes (γ).
        temperature: Softens both distributions (T).
    """

    name: Literal["dist"] = "dist"
    inter: Annotated[float, Field(ge=0)] = 1.0
    intra: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        guess = (pair.student.logits / self.temperature).softmax(dim=1)
        target = (pair.teacher.logits / self.temperature).softmax(dim=1)
        rows, columns = _discord(guess, target), _discord(guess.T, target.T)
        return self.temperature**2 * (self.inter * rows + self.intra * columns)


def _discord(first: Tensor, second: Tensor) -> Tensor:
    """1 minus the mean correlation between the rows of two tables; 0 where none has one."""
    found = functional.cosine_similarity(_centred(first), _centred(second), dim=1)
    varies = _varies(first) & _varies(second)
    return (1 - found).masked_fill(~varies, 0).sum() / varies.sum().clamp_min(1)


def _centred(table: Tensor) -> Tensor:
    return table - table.mean(dim=1, keepdim=True)


def _varies(table: Tensor) -> Tensor:
    """Which rows of probabilities vary by more than rounding; in others gradients would explode."""
    return table.detach().std(dim=1, correction=0) > ROUNDING
