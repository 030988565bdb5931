"""Fully connected layers, for tables."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from tasks.networks import DropShare, Network


class Mlp(Network):
    """Linear layers, each with batch normalisation, ReLU and dropout.

    Attributes:
        widths: Units of each layer.
        dropout: Share of each layer's outputs that is dropped while training.
    """

    takes: ClassVar[str | None] = "tables"

    name: Literal["mlp"] = "mlp"
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 64)
    dropout: DropShare = 0.0

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, last width)."""
        (inputs,) = shape
        layers: list[nn.Module] = []
        for width in self.widths:
            layers += [
                nn.Linear(inputs, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
            ]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            inputs = width
        return nn.Sequential(*layers), inputs
