"""Small transformers over tokens."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tasks.networks import DropShare, Network
from tasks.runtimes.text import PAD

INITIAL_SPREAD = 0.02


class TextTransformer(Network):
    """Encoder layers that normalise first, with learned positions, then the mean over the text.

    x ← x + attention(norm(x)); x ← x + feed_forward(norm(x)) (Vaswani et al. 2017,
    arXiv:1706.03762; order: Xiong et al. 2020, arXiv:2002.04745). Positions beyond the text's end
    are attended to by none and left out of the mean.

    Attributes:
        width: Values per token; a multiple of `heads`.
        layers: Encoder layers.
        heads: Attention heads per layer.
        feed_forward: Hidden values of a feed-forward layer, as a multiple of `width`.
        dropout: Share of values set to 0 in training, of the embedded tokens and of what each layer
            adds.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["text_transformer"] = "text_transformer"
    width: Annotated[int, Field(ge=1)] = 128
    layers: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    feed_forward: Annotated[int, Field(ge=1)] = 2
    dropout: DropShare = 0.1

    @model_validator(mode="after")
    def _divides(self) -> "TextTransformer":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, width)."""
        return TokenEncoder(self, *shape), self.width


class TokenEncoder(nn.Module):
    """The layers of a `TextTransformer`."""

    def __init__(self, spec: TextTransformer, length: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, spec.width)
        self.positions = nn.Parameter(torch.empty(length, spec.width))
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        for parameter in (self.embedding.weight, self.positions):
            nn.init.normal_(parameter, std=INITIAL_SPREAD)

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) int64 → features (N, width)."""
        present = (ids != PAD).unsqueeze(2)
        return (self.tokens(ids).float() * present).sum(1) / present.sum(1).clamp_min(1)

    def tokens(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) → (N, L, width), whatever it is where there is no token."""
        seen = (ids != PAD)[:, None, None, :]
        found = self.dropout(self.embedding(ids) + self.positions)
        for layer in self.layers:
            found = layer(found, seen)
        return self.norm(found)


class Layer(nn.Module):
    """Attention, then a feed-forward network on each token, both added to what came in."""

    def __init__(self, spec: TextTransformer) -> None:
        super().__init__()
        width, hidden = spec.width, spec.width * spec.feed_forward
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, spec.heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """(N, L, width) → (N, L, width); `seen` (N, 1, 1, L) says which tokens there are."""
        tokens = tokens + self.dropout(self.attention(self.before_attention(tokens), seen))
        return tokens + self.dropout(self.feed_forward(self.before_forward(tokens)))


class Attention(nn.Module):
    """Scaled dot-product attention with several heads.

    Attributes:
        keeps_widths: Tells pruners to leave the layers in here as they are, and so whatever is
            added to their outputs.
    """

    keeps_widths: ClassVar[bool] = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.split = (3, heads, width // heads)
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """(N, L, width) → (N, L, width)."""
        together = self.inputs(tokens).unflatten(2, self.split)
        query, key, value = together.permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.outputs(found.transpose(1, 2).flatten(2))
