"""Convolutions over tokens."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tasks.networks import Network
from tasks.runtimes.text import PAD

INITIAL_SPREAD = 0.02


class TextCNN(Network):
    """Token vectors, convolutions with batch normalisation and ReLU, and a pool over the text.

    After Kim (2014, arXiv:1408.5882), deep instead of wide: layers one after another instead of
    kernels of several sizes side by side. Positions beyond the text's end are zero before every
    convolution and are left out of the pool; the batch's statistics do count them.

    Attributes:
        width: Values per token vector.
        widths: Channels of each convolution.
        kernel: Tokens that a convolution sees.
        pool: What becomes of the positions: their largest value, or their mean.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["text_cnn"] = "text_cnn"
    width: Annotated[int, Field(ge=1)] = 64
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (128, 128)
    kernel: Literal[1, 3, 5, 7] = 3
    pool: Literal["max", "mean"] = "max"

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, last width)."""
        return TokenConvolutions(self, shape[1]), self.widths[-1]


class TokenConvolutions(nn.Module):
    """The layers of a `TextCNN`."""

    def __init__(self, spec: TextCNN, vocabulary: int) -> None:
        super().__init__()
        self.pool = spec.pool
        self.embedding = nn.Embedding(vocabulary, spec.width)
        nn.init.normal_(self.embedding.weight, std=INITIAL_SPREAD)
        inputs = [spec.width, *spec.widths]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(before, after, spec.kernel, padding=spec.kernel // 2, bias=False),
                nn.BatchNorm1d(after),
                nn.ReLU(),
            )
            for before, after in zip(inputs, spec.widths, strict=False)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) int64 → features (N, last width)."""
        found = self.tokens(ids)
        if self.pool == "max":
            return found.amax(1)  # none is negative, so the zeros beyond the end never win
        return found.float().sum(1) / (ids != PAD).sum(1, keepdim=True).clamp_min(1)

    def tokens(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) → (N, L, last width), zero where there is no token."""
        present = (ids != PAD).unsqueeze(1)
        found = self.embedding(ids).transpose(1, 2) * present
        for block in self.blocks:
            found = block(found) * present
        return found.transpose(1, 2)
