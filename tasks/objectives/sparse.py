"""Sparse autoencoder: the row, rebuilt from features of which few are active."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.errors import ParamsError
from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views

SMALLEST_ACTIVATION = 1e-6


class Sparse(Objective):
    """Sparse autoencoder (Ng 2011, "Sparse autoencoder", CS294A lecture notes, Stanford).

    mean ½ ‖decoder(a) - x‖² + sparsity_weight · Σ_j KL(ρ ‖ mean a_j), both means over rows, with
    activations a = sigmoid(features + b). Rows are taken as they are; the augmentation plays no
    part.

    Attributes:
        rho: Wanted mean activation of every feature (ρ).
        sparsity_weight: Weight of the divergence from it (β).
        batch_size: Rows per step, over which the mean activation is taken.
    """

    name: Literal["sparse"] = "sparse"
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.05
    sparsity_weight: Annotated[float, Field(ge=0)] = 3.0
    batch_size: Annotated[int, Field(ge=1)] = 256

    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """Activations and a linear decoder, see `Autoencoder`.

        Raises:
            ParamsError: The rows are texts.
        """
        if encoding.modality.plain()["name"] == "text":
            raise ParamsError(
                "pretrain.objective 'sparse' rebuilds numbers, which token ids are not; use "
                "'masked_language'"
            )
        return Autoencoder(width, math.prod(encoding.input_shape), self.rho)

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Squared error and divergence of a random batch."""
        clean = pool.clean(pool.sample(self.batch_size, generator))
        activations, rebuilt = heads(body(clean))
        error = (rebuilt.float() - clean.flatten(1)).square().sum(dim=1).mean()
        return error / 2 + self.sparsity_weight * divergence(activations.mean(dim=0), self.rho)


class Autoencoder(nn.Module):
    """What follows the body.

    Args:
        width: Features.
        values: Values of a row.
        rho: Where the activations of features at zero start.
    """

    def __init__(self, width: int, values: int, rho: float) -> None:
        super().__init__()
        # Most bodies end with ReLU, and no sigmoid of a number ≥ 0 lies below ½: without a bias the
        # divergence could only ask for features that are always zero.
        self.bias = nn.Parameter(torch.full((width,), math.log(rho / (1 - rho))))
        self.decoder = nn.Linear(width, values)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, width) → activations (N, width) of 0 to 1, float32, and rebuilt rows (N, values)."""
        activations = (features.float() + self.bias).sigmoid()
        return activations, self.decoder(activations)


def divergence(means: Tensor, rho: float) -> Tensor:
    """Σ_j KL(ρ ‖ ρ̂_j) between Bernoulli variables.

    Args:
        means: Mean activations (ρ̂), (width,).
        rho: The wanted one.
    """
    means = means.clamp(SMALLEST_ACTIVATION, 1 - SMALLEST_ACTIVATION)
    active = rho * (rho / means).log()
    silent = (1 - rho) * ((1 - rho) / (1 - means)).log()
    return (active + silent).sum()
