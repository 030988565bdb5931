"""Regression on the teacher's features."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ParamsError
from tasks.losses import Loss, Need, Pair

SHORTEST = 1e-6


class Hints(Loss):
    """FitNet's hints (Romero et al. 2015, arXiv:1412.6550), taken from what the heads see.

    mean over rows and the teacher's width of (W · student + b - teacher)². The linear map (W, b)
    learns beside the student and is thrown away. Labels play no part.

    Attributes:
        normalised: Brings both sides of each row to length 1 and takes the mean over rows of the
            squared distance, 2 - 2 · cosine: only directions are compared, not sizes.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})

    name: Literal["hints"] = "hints"
    normalised: bool = False

    def head(self, example: Pair) -> nn.Module:
        """The linear map from the student's width to the teacher's."""
        guess, target = _features(example)
        return nn.Linear(guess.shape[1], target.shape[1])

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        found, target = _features(pair)
        guess = pair.head(found).to(target.dtype)
        if not self.normalised:
            return functional.mse_loss(guess, target)
        gap = functional.normalize(guess, eps=SHORTEST) - functional.normalize(target, eps=SHORTEST)
        return gap.square().sum(dim=1).mean()


def _features(pair: Pair) -> tuple[Tensor, Tensor]:
    if pair.student.features is None or pair.teacher.features is None:
        raise ParamsError(
            "the loss 'hints' compares features, which one of the two models does not have; take "
            "soft_labels, or another network"
        )
    return pair.student.features, pair.teacher.features
