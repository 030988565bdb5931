"""Labels that the teacher guesses."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.losses import HIDDEN, Loss, Pair


class PseudoLabels(Loss):
    """Cross entropy with the teacher's likeliest class, where the teacher is sure of it.

    Pseudo-labels (Lee 2013) with FixMatch's threshold (Sohn et al. 2020, arXiv:2001.07685); the
    mean over the rows that have a target, 0 where none has.

    With `hard_labels` beside it this is the joint loss L_student + λ · L_target of a transfer from
    a base model to a target one: `hard_labels` is L_student, on the labels themselves, this loss
    with weight λ is L_target, on what the base model says, and `use_shown: false` keeps the two
    apart.

    Attributes:
        threshold: A guess counts where the teacher's probability for it exceeds this.
        use_shown: A row whose label is shown has that label for its target, however sure the
            teacher is. False treats such rows like all others.
    """

    name: Literal["pseudo_labels"] = "pseudo_labels"
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.95
    use_shown: bool = True

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        confidence, guess = pair.teacher.logits.softmax(dim=1).max(dim=1)
        target = guess.masked_fill(confidence <= self.threshold, HIDDEN)
        if self.use_shown:
            target = torch.where(pair.labels == HIDDEN, target, pair.labels)
        total = functional.cross_entropy(
            pair.student.logits, target, ignore_index=HIDDEN, reduction="sum"
        )
        return total / (target != HIDDEN).sum().clamp_min(1)
