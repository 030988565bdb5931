"""The one best teacher of each row."""

from typing import Literal

import torch
from torch import Tensor

from tasks.combinations import Combination
from tasks.rows import HIDDEN


class Best(Combination):
    """The logits of the teacher with the lowest cross entropy on the row's label.

    Where the label is hidden, those of the most confident teacher: the one whose likeliest class
    has the highest probability. The first of several equals.
    """

    name: Literal["best"] = "best"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Combination.__call__`."""
        said = logits.log_softmax(dim=2)
        at = labels.clamp_min(0).expand(len(said), -1)[:, :, None]
        score = torch.where(labels == HIDDEN, said.amax(dim=2), said.gather(2, at).squeeze(2))
        return logits[score.argmax(dim=0), torch.arange(len(labels), device=logits.device)]
