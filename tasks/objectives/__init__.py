"""Self-supervised objectives: what a network can learn from rows without labels."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.sections import Section
from tasks.views import Views


class Objective(Section):
    """Contract of a self-supervised objective."""

    @abstractmethod
    def heads(self, width: int) -> nn.Module:
        """Modules that are trained beside the body and thrown away after it.

        Args:
            width: Width of the body's features.
        """

    @abstractmethod
    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Loss of one step, a scalar; draws its own batch and views."""


OBJECTIVES = Drawer("tasks.objectives", Objective)
