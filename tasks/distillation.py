"""Teaching one network by another: the teacher's outputs, cached beside the views they belong to.

The stages `distill` and `prune` share it.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.compute import Compute
from tasks.fit import FitParams, Watch, fit
from tasks.losses import LOSSES, Loss, weighted_sum
from tasks.rows import Rows
from tasks.sections import Section
from tasks.views import Views, accuracy

TEACHER_BATCH = 256


class DistillationParams(Section):
    """How a student learns from a teacher.

    Attributes:
        fit: Steps, rate and averaging.
        batch_size: Rows per step.
        views: Views of every training row whose teacher outputs are cached.
        augmentation: Makes the views.
        losses: Summed with their weights.
    """

    fit: FitParams
    batch_size: Annotated[int, Field(ge=2)]
    views: Annotated[int, Field(ge=1)]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    losses: Annotated[tuple[Annotated[Loss, LOSSES], ...], Field(min_length=1)]


@dataclass(frozen=True)
class TaughtViews:
    """K views of N rows, each with what the teacher says of it.

    Attributes:
        views: The rows.
        parameters: What makes each view, (K, N, parameters).
        logits: The teacher's logits on it, (K, N, classes) float16 on the device.
    """

    views: Views
    parameters: Tensor
    logits: Tensor

    @classmethod
    def ask(
        cls, teacher: nn.Module, views: Views, count: int, compute: Compute, watch: Watch
    ) -> "TaughtViews":
        """Runs the teacher once over `count` views of every row."""
        generator = compute.generator("views")
        parameters = torch.stack(
            [views.augmentation.draw(len(views), generator) for _ in range(count)]
        )
        batches = torch.arange(len(views)).split(TEACHER_BATCH)
        logits: list[Tensor] = []
        with torch.no_grad(), compute.autocast():
            for view in range(count):
                found = (teacher(views.under(at, parameters[view, at])) for at in batches)
                logits += [batch.half() for batch in found]
                watch.progress(view + 1, count, {})
        return cls(views, parameters, torch.cat(logits).view(count, len(views), -1))

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, teacher's logits and labels of random views of random rows."""
        rows = self.views.sample(size, generator)
        view = torch.randint(len(self.parameters), (size,), generator=generator)
        inputs = self.views.under(rows, self.parameters[view, rows])
        device = self.logits.device
        rows, view = rows.to(device), view.to(device)
        return inputs, self.logits[view, rows].float(), self.views.labels[rows]


def distill_into(
    student: nn.Module,
    teacher: nn.Module,
    rows: Rows,
    params: DistillationParams,
    compute: Compute,
    watch: Watch,
) -> dict[str, float]:
    """Trains a student in place on every training row.

    Args:
        student: On `compute`'s device.
        teacher: On `compute`'s device, in evaluation mode.
        rows: The prepared rows; hidden labels stay hidden.
        params: How.
        compute: Device, precision and seed.
        watch: Reports and checkpoints.

    Returns:
        The student's accuracy on validation rows, where there are any.
    """
    views = Views(rows.train, rows.modality, params.augmentation, compute)
    taught = TaughtViews.ask(teacher, views, params.views, compute, watch)

    def step(_at: int, generator: torch.Generator) -> Tensor:
        inputs, logits, labels = taught.batch(params.batch_size, generator)
        return weighted_sum(params.losses, student(inputs).float(), logits, labels)

    def score() -> dict[str, float]:
        return accuracy(student, rows.validation, rows.modality, compute)

    fit(student, step, params.fit, compute, watch, score)
    return score()
