"""How the rows of a batch lie to each other, whatever the space they lie in."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.errors import ParamsError
from tasks.losses import Loss, Need, Pair

SMALLEST_MEAN = 1e-12
SAME_PLACE = 1e-3


class Relations(Loss):
    """Relational knowledge distillation, RKD (Park et al. 2019, arXiv:1904.05068).

    distance_weight · mean over pairs of rows of huber(ψ student - ψ teacher), where ψ is the
    distance between two rows' features as a multiple of the mean distance in the batch, and
    angle_weight · mean over triples of huber(cos student - cos teacher), where cos is that of the
    angle that two rows make at a third. huber(x) is x² / 2 up to |x| = 1, then |x| - 1/2. Features
    of any two widths compare. Labels play no part.

    Angles take time and memory as N³: of 256 rows, half a second of one core and 1 GB; of 128, an
    eighth.

    Attributes:
        distance_weight: Weight of the distances (λ_RKD-D; the paper's is 25).
        angle_weight: Weight of the angles (λ_RKD-A; the paper's is 50); 0 saves their cost.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})

    name: Literal["relations"] = "relations"
    distance_weight: Annotated[float, Field(ge=0)] = 25.0
    angle_weight: Annotated[float, Field(ge=0)] = 50.0

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`; 0 for a single row."""
        student, teacher = (_distances(features) for features in _features(pair))
        count = len(student)
        pairs = count * (count - 1)
        loss = self.distance_weight * _huber(student, teacher, pairs)
        if not self.angle_weight:
            return loss
        angles = _huber(_cosines(student), _cosines(teacher), pairs * (count - 2))
        return loss + self.angle_weight * angles


def _distances(points: Tensor) -> Tensor:
    """Distances between all rows, (N, N), with mean 1 over pairs of different rows."""
    # Differences taken one by one make equal rows exactly 0 apart, with gradient 0; the faster way
    # by a matrix product makes neither, and loses digits under autocast.
    far = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = max(1, len(points) * (len(points) - 1))
    return far / (far.sum() / pairs).clamp_min(SMALLEST_MEAN)


def _cosines(distances: Tensor) -> Tensor:
    """By the law of cosines, of the angle at row j between rows i and k, (N, N, N) as [j, i, k].

    0 where i is k, or either lies where j does: what direction there is between them is rounding.
    """
    apart = distances > SAME_PLACE
    different = ~torch.eye(len(distances), dtype=torch.bool, device=distances.device)
    angled = apart[:, :, None] & apart[:, None, :] & different
    squares = distances.square()
    excess = squares[:, :, None] + squares[:, None, :] - squares
    sides = 2 * distances[:, :, None] * distances[:, None, :]
    return (excess / sides.masked_fill(~angled, 1)).masked_fill(~angled, 0)


def _huber(guess: Tensor, target: Tensor, count: int) -> Tensor:
    """The mean over `count` entries; all others are 0 on both sides."""
    return functional.huber_loss(guess, target, reduction="sum") / max(1, count)


def _features(pair: Pair) -> tuple[Tensor, Tensor]:
    if pair.student.features is None or pair.teacher.features is None:
        raise ParamsError(
            "the loss 'relations' compares features, which one of the two models does not have; "
            "take soft_labels, or another network"
        )
    return pair.student.features, pair.teacher.features
