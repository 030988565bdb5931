"""Soft labels with temperature."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.losses import Loss, Pair


class SoftLabels(Loss):
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531).

    T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over rows. T² keeps the size of
    the gradients when T changes. Labels play no part.

    Attributes:
        temperature: Softens both distributions (T).
    """

    name: Literal["soft_labels"] = "soft_labels"
    temperature: Annotated[float, Field(gt=0)] = 2.0

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        target = (pair.teacher.logits / self.temperature).log_softmax(dim=1)
        guess = (pair.student.logits / self.temperature).log_softmax(dim=1)
        divergence = functional.kl_div(guess, target, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
