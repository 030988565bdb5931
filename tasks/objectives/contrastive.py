"""Contrastive learning of two views: SimCLR."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views


class Contrastive(Objective):
    """SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of a row attract, others repel.

    What a view is, the augmentation says. On texts two views that each drop some tokens make this
    an unsupervised SimCSE (Gao et al. 2021, arXiv:2104.08821), which drops activations instead.

    Attributes:
        temperature: Divides the cosine similarities.
        batch_size: Rows per step; each gives two views.
        projection: Width of the projection that is compared.
    """

    name: Literal["contrastive"] = "contrastive"
    temperature: Annotated[float, Field(gt=0)] = 0.3
    batch_size: Annotated[int, Field(ge=2)] = 256
    projection: Annotated[int, Field(ge=1)] = 64

    def heads(self, width: int, encoding: Encoding) -> nn.Module:  # noqa: ARG002
        """A two-layer projector, as in the paper."""
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection))

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """NT-Xent of a random batch."""
        index = torch.randperm(len(pool), generator=generator)[: self.batch_size]
        views = torch.cat([pool.augmented(index, generator) for _ in range(2)])
        first, second = heads(body(views)).float().chunk(2)
        return nt_xent(first, second, self.temperature)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (equation 1 of arXiv:2002.05709).

    Args:
        first: Projections of the first views, (N, D).
        second: Projections of the second views, (N, D); row i belongs to row i of `first`.
        temperature: Divides the cosine similarities.

    Returns:
        Mean over the 2N views of -log softmax of the partner among the other 2N - 1.
    """
    count = len(first)
    points = functional.normalize(torch.cat([first, second]), dim=1)
    similarity = points @ points.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=points.device)
    similarity = similarity.masked_fill(itself, float("-inf"))
    partner = torch.arange(2 * count, device=points.device).roll(count)
    return functional.cross_entropy(similarity, partner)
