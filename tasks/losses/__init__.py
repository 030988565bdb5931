"""Distillation losses. A new one is one file here and one line in params.yaml.

distill:
  losses:
    - {name: soft_labels, temperature: 2.0, weight: 1.0}
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.networks import Outputs
from tasks.rows import HIDDEN
from tasks.sections import Section

__all__ = ["HIDDEN", "LOSSES", "Loss", "Pair", "weighted_sum"]

Need = Literal["features", "maps"]


@dataclass(frozen=True)
class Pair:
    """Student and teacher on the same views.

    Attributes:
        student: The student's outputs; gradients flow through these.
        teacher: The teacher's, without gradients.
        labels: Class numbers, (N,), with -1 where the label is hidden.
        head: What `Loss.head` made.
    """

    student: Outputs
    teacher: Outputs
    labels: Tensor
    head: nn.Module = field(default_factory=nn.Identity)


class Loss(Section):
    """Contract of a distillation loss.

    Attributes:
        needs: What it reads of a teacher beside the logits. An estimator has neither.
        weight: Its factor in the sum of losses.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    weight: Annotated[float, Field(ge=0)] = 1.0

    def head(self, example: Pair) -> nn.Module:  # noqa: ARG002 - for those that need one
        """Modules that are trained beside the student and thrown away after it; most need none.

        Args:
            example: Outputs on a few rows, to read shapes from.

        Raises:
            ParamsError: The two networks cannot be compared in this way.
        """
        return nn.Identity()

    @abstractmethod
    def __call__(self, pair: Pair) -> Tensor:
        """The loss of a batch before its weight: a scalar, the mean over the rows it applies to."""


LOSSES = Drawer("tasks.losses", Loss)


def weighted_sum(losses: Iterable[Loss], pairs: Iterable[Pair]) -> Tensor:
    """Sum of the losses, each on its pair and times its weight: a scalar."""
    terms = [loss.weight * loss(pair) for loss, pair in zip(losses, pairs, strict=True)]
    return sum(terms[1:], start=terms[0])
