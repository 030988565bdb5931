"""Soft labels in two parts: how likely the target is, and how the other classes compare."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.losses import HIDDEN, Loss, Pair


class Decoupled(Loss):
    """Decoupled knowledge distillation, DKD (Zhao et al. 2022, arXiv:2203.08679).

    T² · (α · TCKD + β · NCKD), the mean over rows. With p = softmax(teacher / T), q of the student
    and the target class t:

    - TCKD = KL((p_t, 1 - p_t) ‖ (q_t, 1 - q_t)), the target-class part;
    - NCKD = KL(p̂ ‖ q̂), the distributions among the other classes; 0 where there are two classes.

    `soft_labels` is TCKD + (1 - p_t) · NCKD: it mutes the second part where the teacher is sure.

    The target is the shown label, or the teacher's likeliest class where the label is hidden.

    Attributes:
        alpha: Weight of the target-class part (α).
        beta: Weight of the other classes' part (β).
        temperature: Softens all distributions (T).
    """

    name: Literal["decoupled"] = "decoupled"
    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 8.0
    temperature: Annotated[float, Field(gt=0)] = 4.0

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        teacher, student = pair.teacher.logits, pair.student.logits
        target = torch.where(pair.labels == HIDDEN, teacher.argmax(dim=1), pair.labels)
        known, others = _parts(teacher / self.temperature, target)
        guess, other_guesses = _parts(student / self.temperature, target)
        parts = self.alpha * _divergence(known, guess)
        return self.temperature**2 * (parts + self.beta * _divergence(others, other_guesses))


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target against rest, (N, 2), and among the rest, (N, classes - 1)."""
    count = logits.shape[1]
    rest_at = (target[:, None] + torch.arange(1, count, device=logits.device)) % count
    rest = logits.gather(1, rest_at)
    # A log-sum-exp is the logit of the union, so that nothing is subtracted from 1.
    halves = torch.cat([logits.gather(1, target[:, None]), rest.logsumexp(1, keepdim=True)], dim=1)
    return halves.log_softmax(dim=1), rest.log_softmax(dim=1)


def _divergence(target: Tensor, guess: Tensor) -> Tensor:
    return functional.kl_div(guess, target, reduction="batchmean", log_target=True)
