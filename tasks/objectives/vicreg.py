"""Two views of a row, alike; the features of different rows, spread out: VICReg."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import DataError
from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views

WANTED_DEVIATION, EPSILON = 1.0, 1e-4
FEWEST_ROWS = 2


class VICReg(Objective):
    """Variance, invariance, covariance (Bardes et al. 2022, arXiv:2105.04906, equation 6).

    λ · s(Z, Z′) + μ · [v(Z) + v(Z′)] + ν · [c(Z) + c(Z′)] of the expanded views Z and Z′, (N, D).
    s is the mean squared difference over rows and dimensions, as in the paper's algorithm 1, which
    the weights belong to; v and c are `variance` and `covariance`.

    Attributes:
        invariance_weight: λ.
        variance_weight: μ.
        covariance_weight: ν.
        expansion: Width of the expander's three layers (D).
        batch_size: Rows per step; each gives two views.
    """

    name: Literal["vicreg"] = "vicreg"
    invariance_weight: Annotated[float, Field(ge=0)] = 25.0
    variance_weight: Annotated[float, Field(ge=0)] = 25.0
    covariance_weight: Annotated[float, Field(ge=0)] = 1.0
    expansion: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=FEWEST_ROWS)] = 256

    def heads(self, width: int, encoding: Encoding) -> nn.Module:  # noqa: ARG002
        """The paper's expander."""
        wide = self.expansion
        return nn.Sequential(
            nn.Linear(width, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, wide),
        )

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """The three terms of a random batch.

        Raises:
            DataError: The pool holds one row, which has no variance.
        """
        if len(pool) < FEWEST_ROWS:
            raise DataError(
                f"pretrain.objective 'vicreg' compares rows, and there are {len(pool)}, expected "
                f"{FEWEST_ROWS} or more; add rows"
            )
        index = torch.randperm(len(pool), generator=generator)[: self.batch_size]
        views = torch.cat([pool.augmented(index, generator) for _ in range(2)])
        first, second = heads(body(views)).float().chunk(2)
        return (
            self.invariance_weight * functional.mse_loss(first, second)
            + self.variance_weight * (variance(first) + variance(second))
            + self.covariance_weight * (covariance(first) + covariance(second))
        )


def variance(points: Tensor) -> Tensor:
    """Mean over dimensions of max(0, 1 - √(Var + ε)), equations 1 and 2; `points` is (N ≥ 2, D)."""
    deviations = (points.var(dim=0) + EPSILON).sqrt()
    return (WANTED_DEVIATION - deviations).relu().mean()


def covariance(points: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, over D (equations 3 and 4)."""
    count, dimensions = points.shape
    centred = points - points.mean(dim=0)
    matrix = centred.T @ centred / (count - 1)
    itself = torch.eye(dimensions, dtype=torch.bool, device=points.device)
    return matrix.masked_fill(itself, 0).square().sum() / dimensions
