"""Distillation losses. A new one is one file here and one line in params.yaml.

distill:
  losses:
    - {name: soft_labels, temperature: 2.0, weight: 1.0}
"""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field
from torch import Tensor

from tasks.drawers import Drawer
from tasks.sections import Section


class Loss(Section):
    """Contract of a distillation loss.

    Attributes:
        weight: Its factor in the sum of losses.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, before its weight.

        Args:
            student: The student's logits, (N, classes); gradients flow through these.
            teacher: The teacher's logits on the same views, (N, classes).
            labels: Class numbers, (N,), with -1 where the label is hidden.

        Returns:
            A scalar, the mean over the rows it applies to.
        """


LOSSES = Drawer("tasks.losses", Loss)


def weighted_sum(
    losses: tuple[Loss, ...], student: Tensor, teacher: Tensor, labels: Tensor
) -> Tensor:
    """Sum of the losses, each times its weight: a scalar."""
    terms = [loss.weight * loss(student, teacher, labels) for loss in losses]
    return sum(terms[1:], start=terms[0])
