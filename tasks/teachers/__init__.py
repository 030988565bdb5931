"""Teachers: how few labels and a pool make a network that others can learn from."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.sections import Section
from tasks.views import Views


class Teacher(Section):
    """Contract of a way to train a teacher."""

    @abstractmethod
    def loss(
        self,
        network: nn.Module,
        *,
        labelled: Views,
        pool: Views,
        share_done: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Loss of one step, a scalar; draws its own batches and views.

        Args:
            network: From a batch to logits.
            labelled: The rows whose labels are shown.
            pool: Every training row, labels unused.
            share_done: Share of the steps behind this one, from 0 to 1, for ramps.
            generator: Source of everything random.
        """


TEACHERS = Drawer("tasks.teachers", Teacher)
