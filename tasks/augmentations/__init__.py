"""Augmentations: whole batches at once, from a table of random parameters.

Drawing and applying are apart, so that a view is no more than a row of numbers: a teacher's output
can be cached beside it, and the student sees the very same view.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tasks.drawers import Drawer
from tasks.sections import Section


class Augmentation(Section):
    """Contract of an augmentation.

    Attributes:
        takes: The modality that it is made for, by name; None takes any.
        draws: Whether two views of a row can differ.
    """

    takes: ClassVar[str | None] = None
    draws: ClassVar[bool] = True

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random parameters of `count` views, (count, parameters) float32 on the CPU."""

    @abstractmethod
    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:
        """The views of a batch, of its shape; row i by parameters[i], on the same device."""


AUGMENTATIONS = Drawer("tasks.augmentations", Augmentation)
