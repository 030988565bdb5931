"""MixMatch: guessed labels, sharpened and mixed with the known ones."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.teachers import Teacher
from tasks.views import Views


class MixMatch(Teacher):
    """MixMatch (Berthelot et al. 2019, arXiv:1905.02249, algorithm 1).

    Attributes:
        labelled_batch: Labelled rows per step.
        pool_batch: Pool rows per step.
        views: Augmentations averaged into a guess (K in the paper).
        temperature: Sharpens the guesses (T).
        mix: Parameter of the Beta distribution that mixing weights come from (alpha).
        pool_weight: Weight of the pool's squared error (lambda).
        ramp_share: Share of the steps over which that weight rises linearly.
    """

    name: Literal["mixmatch"] = "mixmatch"
    labelled_batch: Annotated[int, Field(ge=1)] = 64
    pool_batch: Annotated[int, Field(ge=1)] = 128
    views: Annotated[int, Field(ge=1)] = 2
    temperature: Annotated[float, Field(gt=0)] = 0.5
    mix: Annotated[float, Field(gt=0)] = 0.75
    pool_weight: Annotated[float, Field(ge=0)] = 25.0
    ramp_share: Annotated[float, Field(gt=0, le=1)] = 0.4

    def loss(
        self,
        network: nn.Module,
        *,
        labelled: Views,
        pool: Views,
        share_done: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Cross entropy on mixed labelled rows and squared error on mixed pool rows."""
        known_at = labelled.sample(self.labelled_batch, generator)
        pool_at = pool.sample(self.pool_batch, generator)
        known = labelled.augmented(known_at, generator)
        views = [pool.augmented(pool_at, generator) for _ in range(self.views)]
        guess = self._guess(network, views)
        classes = guess.shape[1]
        truth = functional.one_hot(labelled.labels[known_at.to(known.device)], classes).float()
        inputs, targets = self._mixed(
            torch.cat([known, *views]), torch.cat([truth, *[guess] * self.views]), generator
        )
        logits = network(inputs).float()
        count = len(known)
        supervised = functional.cross_entropy(logits[:count], targets[:count])
        consistency = functional.mse_loss(logits[count:].softmax(1), targets[count:])
        return supervised + self.pool_weight * min(1.0, share_done / self.ramp_share) * consistency

    @torch.no_grad()
    def _guess(self, network: nn.Module, views: list[Tensor]) -> Tensor:
        logits = network(torch.cat(views)).float()
        return sharpen(torch.stack(logits.softmax(1).chunk(self.views)).mean(0), self.temperature)

    def _mixed(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """MixUp with partners from the whole batch, the larger weight on the row itself."""
        partner = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        weight = _beta(len(inputs), self.mix, generator).to(inputs.device)
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
