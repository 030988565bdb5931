"""A plain stack of convolutions, for the smallest devices."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from tasks.networks import DropShare, Network

SMALLEST_MAP = 4
GRID = 2


class ConvNet(Network):
    """3×3 convolutions with batch normalisation and ReLU, then a 2×2 grid of averages.

    Attributes:
        widths: Channels of each convolution. From the second on, each halves the map while it is
            wider than 4.
        dropout: Share of the features that is dropped while training.
    """

    takes: ClassVar[str | None] = "images"

    name: Literal["convnet"] = "convnet"
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    dropout: DropShare = 0.0

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, 4 * last width), or (N, last width) of a 1×1 map."""
        side, _, channels = shape
        layers: list[nn.Module] = []
        for at, width in enumerate(self.widths):
            stride = 2 if at and side > SMALLEST_MAP else 1
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            side, channels = -(-side // stride), width
        cells = min(GRID, side)
        layers += [nn.AvgPool2d(-(-side // cells), stride=side // cells), nn.Flatten()]
        layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*layers), channels * cells * cells
