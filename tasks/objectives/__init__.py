"""Self-supervised objectives: what a network can learn from rows without labels."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.modalities import Encoding
from tasks.sections import Section
from tasks.views import Views


class Objective(Section):
    """Contract of a self-supervised objective.

    Attributes:
        takes: The modality that it is made for, by name; None takes any.
    """

    takes: ClassVar[str | None] = None

    @abstractmethod
    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """Modules that are trained beside the body and thrown away after it.

        Args:
            width: Width of the body's features.
            encoding: What the rows look like.
        """

    @abstractmethod
    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Loss of one step, a scalar; draws its own batch and views."""


OBJECTIVES = Drawer("tasks.objectives", Objective)
