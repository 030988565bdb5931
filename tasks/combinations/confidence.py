"""The mean of the teachers' probabilities, weighted by how far each can be trusted on a row."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.combinations import Combination
from tasks.rows import HIDDEN


class Confidence(Combination):
    """log of Σ_k w_k · softmax(logits of teacher k), with weights of its own for every row.

    - Where the label is shown, w_k = (1 - exp(L_k) / Σ_j exp(L_j)) / (K - 1), where L_k is teacher
      k's cross entropy on it and K the number of teachers: confidence-aware multi-teacher
      distillation (Zhang et al. 2022, arXiv:2201.00007). There the weights stand before each
      teacher's loss, which has the same gradients as one loss with this mean.
    - Where it is hidden, w_k = exp(-H_k / τ) / Σ_j exp(-H_j / τ), where H_k is the entropy of
      teacher k's probabilities in nats.

    Attributes:
        temperature: τ: small, and the surest teacher speaks alone; large, and all speak equally.
    """

    name: Literal["confidence"] = "confidence"
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Combination.__call__`. A single teacher's logits stay."""
        if len(logits) == 1:
            return logits[0]
        said = logits.log_softmax(dim=2)
        unsure = torch.special.entr(said.exp()).sum(dim=2)
        guessed = (-unsure / self.temperature).softmax(dim=0)
        weights = torch.where(labels == HIDDEN, guessed, _by_label(said, labels))
        return (weights.log()[:, :, None] + said).logsumexp(dim=0)


def _by_label(said: Tensor, labels: Tensor) -> Tensor:
    """Weights from log-probabilities (K, N, classes), (K, N); without meaning for hidden labels."""
    at = labels.clamp_min(0).expand(len(said), -1)[:, :, None]
    wrong = -said.gather(2, at).squeeze(2)
    return (1 - wrong.softmax(dim=0)) / (len(said) - 1)
