"""Masked autoencoding: what is hidden of a row, guessed from the rest."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.errors import ParamsError
from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views


class Masked(Objective):
    """Masked autoencoding (He et al. 2022, arXiv:2111.06377) for bodies that need whole rows.

    A share of each row's pieces is set to zero and rebuilt: the mean over hidden pieces of the mean
    squared error within the piece. What is seen costs nothing. The paper's transformer leaves
    hidden pieces out instead. Rows are taken as they are; the augmentation plays no part.

    The pieces of an image are square patches, counted from its top left corner. Where the side is
    no multiple of the patch's, the last row and column of patches end at the image's edge. The
    pieces of a table are the original columns, each with all features that encode it.

    Attributes:
        masked_share: Share of the pieces that is hidden, rounded to whole pieces: at least one, and
            never all.
        patch: Side of a patch in pixels; tables do without.
        decoder: Width of the decoder's hidden layer.
        batch_size: Rows per step.
    """

    name: Literal["masked"] = "masked"
    masked_share: Annotated[float, Field(gt=0, lt=1)] = 0.75
    patch: Annotated[int, Field(ge=1)] = 2
    decoder: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 256

    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """A decoder with one hidden layer: (N, width) → (N, values).

        Raises:
            ParamsError: The rows are texts, or have a single piece.
        """
        if not pieces(encoding, self.patch).any():
            raise ParamsError(
                "pretrain.objective 'masked' shows some pieces of a row and hides others, but rows "
                f"of shape {encoding.input_shape} are one piece each; use a smaller 'patch', or "
                "'denoising'"
            )
        return nn.Sequential(
            nn.Linear(width, self.decoder),
            nn.ReLU(),
            nn.Linear(self.decoder, math.prod(encoding.input_shape)),
        )

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Error of a random batch where it is hidden."""
        clean = pool.clean(pool.sample(self.batch_size, generator))
        piece = pieces(pool.part.encoding, self.patch)
        sizes = piece.bincount()
        hidden = draw(len(clean), len(sizes), self.masked_share, generator)
        weights = (hidden / sizes)[:, piece].to(clean.device)
        seen = clean * (weights == 0).view(clean.shape)  # masked_fill would lose channels-last
        errors = (heads(body(seen)).float() - clean.flatten(1)).square()
        return (errors * weights).sum() / hidden.sum()


def pieces(encoding: Encoding, patch: int) -> Tensor:
    """Which piece each value of a flattened input belongs to: (values,), numbered from 0.

    Raises:
        ParamsError: The rows are texts.
    """
    match encoding.input_shape:
        case (side, _, channels):
            cell = torch.arange(side) // patch
            cells = -(-side // patch)
            return (cell[:, None] * cells + cell).flatten().repeat(channels)
        case (_,):
            groups = torch.tensor(encoding.schema["groups"])
            return groups.unique(return_inverse=True)[1]
        case _:
            raise ParamsError(
                "pretrain.objective 'masked' rebuilds numbers, which token ids are not; use "
                "'masked_language'"
            )


def draw(count: int, total: int, share: float, generator: torch.Generator) -> Tensor:
    """Which pieces are hidden: (count, total), as many in every row."""
    hidden = min(max(1, round(share * total)), total - 1)
    return torch.rand(count, total, generator=generator).argsort(dim=1) < hidden
