"""MixMatch: guessed labels, sharpened and mixed with the known ones."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.errors import ParamsError
from tasks.teachers import Lesson, PoolTeacher, Setting


class MixMatch(PoolTeacher):
    """MixMatch (Berthelot et al. 2019, arXiv:1905.02249, algorithm 1).

    Attributes:
        views: Augmentations averaged into a guess (K in the paper).
        temperature: Sharpens the guesses (T).
        mix: Parameter of the Beta distribution that mixing weights come from (alpha).
        pool_weight: Weight of the pool's squared error (lambda).
        ramp_share: Share of the steps over which that weight rises linearly.
    """

    name: Literal["mixmatch"] = "mixmatch"
    views: Annotated[int, Field(ge=1)] = 2
    temperature: Annotated[float, Field(gt=0)] = 0.5
    mix: Annotated[float, Field(gt=0)] = 0.75
    pool_weight: Annotated[float, Field(ge=0)] = 25.0
    ramp_share: Annotated[float, Field(gt=0, le=1)] = 0.4

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        return _MixMatchLesson(self, setting)


class _MixMatchLesson(Lesson):
    def __init__(self, method: MixMatch, setting: Setting) -> None:
        super().__init__(setting)
        self.method, self.align = method, method.aligner(setting)

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:
        """Cross entropy on mixed labelled rows and squared error on mixed pool rows."""
        method, setting = self.method, self.setting
        labelled, pool = setting.labelled, setting.pool
        known_at = method.draw(labelled, generator)
        pool_at = pool.sample(method.pool_batch, generator)
        known = labelled.augmented(known_at, generator)
        if not known.is_floating_point():
            raise ParamsError(
                "mixmatch mixes inputs, which tokens cannot be; use teach.method 'consistency', "
                "'pseudo_labels' or 'mean_teacher'"
            )
        views = [pool.augmented(pool_at, generator) for _ in range(method.views)]
        guess = self._guess(views)
        truth = functional.one_hot(labelled.labels[known_at.to(known.device)], setting.classes)
        inputs, targets = self._mixed(
            torch.cat([known, *views]),
            torch.cat([truth.float(), *[guess] * method.views]),
            generator,
        )
        logits = setting.network(inputs).float()
        count = len(known)
        supervised = functional.cross_entropy(
            method.adjusted(logits[:count], setting), targets[:count]
        )
        consistency = functional.mse_loss(logits[count:].softmax(1), targets[count:])
        ramp = min(1.0, share_done / method.ramp_share)
        return supervised + method.pool_weight * ramp * consistency

    @torch.no_grad()
    def _guess(self, views: list[Tensor]) -> Tensor:
        logits = self.setting.network(torch.cat(views)).float()
        mean = torch.stack(logits.softmax(1).chunk(self.method.views)).mean(0)
        return sharpen(self.align(mean), self.method.temperature)

    def _mixed(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """MixUp with partners from the whole batch, the larger weight on the row itself."""
        partner = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        weight = _beta(len(inputs), self.method.mix, generator).to(inputs.device)
        weight = torch.maximum(weight, 1 - weight)
        wide = weight.view(-1, *[1] * (inputs.dim() - 1))
        mixed = wide * inputs + (1 - wide) * inputs[partner]
        return mixed, weight[:, None] * targets + (1 - weight[:, None]) * targets[partner]


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised (equation 7 of arXiv:1905.02249); (N, classes) → (N, classes)."""
    return (probabilities.log() / temperature).softmax(dim=1)


def _beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha), (count,), as a ratio of two gamma variables."""
    shape = torch.full((2, count), alpha)
    # torch.distributions takes no generator, so its own primitive is called.
    first, second = torch._standard_gamma(shape, generator=generator)  # noqa: SLF001 # pyright: ignore[reportPrivateImportUsage]
    return first / (first + second).clamp_min(1e-12)
