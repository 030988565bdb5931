"""Pseudo-labels: what the network is sure of is taken for the truth."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.teachers import Lesson, PoolTeacher, Setting


class PseudoLabels(PoolTeacher):
    """Pseudo-labels (Lee 2013, ICML workshop on challenges in representation learning).

    CE(labelled) + pool_weight · ramp · (1/B) Σ 1[max qᵢ ≥ threshold] · CE(argmax qᵢ, pᵢ) over the
    B pool rows of a step. The guess q is the prediction p itself, from one pass over one view,
    without its gradient. The threshold is newer than the paper, which takes every guess.

    Attributes:
        threshold: Smallest probability that makes a guess count.
        pool_weight: Weight of the pool's cross entropy (alpha in the paper).
        ramp_share: Share of the steps over which that weight rises linearly.
    """

    name: Literal["pseudo_labels"] = "pseudo_labels"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    pool_weight: Annotated[float, Field(ge=0)] = 1.0
    ramp_share: Annotated[float, Field(gt=0, le=1)] = 0.4

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        return _PseudoLabelsLesson(self, setting)


class _PseudoLabelsLesson(Lesson):
    def __init__(self, method: PseudoLabels, setting: Setting) -> None:
        super().__init__(setting)
        self.method, self.align = method, method.aligner(setting)

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:
        """Cross entropy on labelled rows, and on pool rows with a confident guess."""
        method, setting = self.method, self.setting
        supervised = method.labelled_loss(setting, generator)
        index = setting.pool.sample(method.pool_batch, generator)
        logits = setting.network(setting.pool.augmented(index, generator)).float()
        confidence, guess = self.align(logits.detach().softmax(1)).max(dim=1)
        each = functional.cross_entropy(logits, guess, reduction="none")
        unsupervised = (each * (confidence >= method.threshold)).mean()
        ramp = min(1.0, share_done / method.ramp_share)
        return supervised + method.pool_weight * ramp * unsupervised
