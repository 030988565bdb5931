"""Contrastive learning of a table's rows and their corrupted selves: SCARF."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import DataError, ParamsError
from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views

FEWEST = 2


class Corruption(Objective):
    """SCARF (Bahri et al. 2022, arXiv:2106.15147, algorithm 1).

    In a copy of each row a share of the columns is replaced, each by the same column of another row
    drawn from the pool. InfoNCE of projections z of the rows and z̃ of the copies:
    mean over i of -log (exp(cos(z_i, z̃_i) / τ) / Σ_k exp(cos(z_i, z̃_k) / τ)), which is the paper's
    but for its constant log N. A column stands for all features that encode it. The augmentation
    plays no part.

    Attributes:
        share: Share of the columns that is replaced, rounded down, but at least one and never all.
        temperature: Divides the cosine similarities (τ).
        batch_size: Rows per step.
        projection: Width of the projection that is compared.
    """

    takes: ClassVar[str | None] = "tables"

    name: Literal["corruption"] = "corruption"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.6
    temperature: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Annotated[int, Field(ge=FEWEST)] = 256
    projection: Annotated[int, Field(ge=1)] = 64

    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """A two-layer projector, as in the paper.

        Raises:
            ParamsError: The table has a single column.
        """
        if len(set(encoding.schema["groups"])) < FEWEST:
            raise ParamsError(
                "pretrain.objective 'corruption' replaces some columns and keeps others, but the "
                "table has one column; use 'denoising'"
            )
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection))

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """InfoNCE of a random batch.

        Raises:
            DataError: The pool holds one row, so there is no other to take columns from.
        """
        if len(pool) < FEWEST:
            raise DataError(
                f"pretrain.objective 'corruption' takes columns from other rows, and there are "
                f"{len(pool)} rows, expected {FEWEST} or more; add rows"
            )
        index = torch.randperm(len(pool), generator=generator)[: self.batch_size]
        both = torch.cat([pool.clean(index), self.corrupted(pool, index, generator)])
        anchors, copies = functional.normalize(heads(body(both)).float(), dim=1).chunk(2)
        similarity = anchors @ copies.T / self.temperature
        return functional.cross_entropy(similarity, torch.arange(len(index), device=both.device))

    def corrupted(self, pool: Views, index: Tensor, generator: torch.Generator) -> Tensor:
        """Copies of rows with some columns from other rows, (N, features)."""
        groups = torch.tensor(pool.part.encoding.schema["groups"])
        columns, column = groups.unique(return_inverse=True)
        shape = (len(index), len(columns))
        count = max(1, int(self.share * len(columns)))
        replaced = torch.rand(shape, generator=generator).argsort(dim=1) < count
        # Columns are drawn apart, so that a copy holds draws from their marginal distributions.
        others = index[:, None] + torch.randint(1, len(pool), shape, generator=generator)
        source = torch.where(replaced, others % len(pool), index[:, None])[:, column]
        device = pool.inputs.device
        stored = pool.inputs[source.to(device), torch.arange(len(column), device=device)]
        return pool.part.encoding.to_network(stored)
