"""No augmentation: every view is the row itself."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from tasks.augmentations import Augmentation


class Unchanged(Augmentation):
    """Leaves rows as they are; views without parameters, so one cached view is enough."""

    draws: ClassVar[bool] = False

    name: Literal["none"] = "none"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - draws nothing
        """(count, 0)."""
        return torch.zeros(count, 0)

    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002 - there are none
        """The batch itself."""
        return batch
