"""Residual networks (He et al. 2016) for small images."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tasks.networks import DropShare, Network


class ResNet(Network):
    """A 3×3 stem and stages of basic residual blocks, then the average over the map.

    `widths: [16, 32, 64], blocks: 1` is the ResNet-8 of MLPerf Tiny.

    Attributes:
        widths: Channels of each stage; every stage after the first halves the map.
        blocks: Residual blocks per stage.
        dropout: Share of the features that is dropped while training.
    """

    takes: ClassVar[str | None] = "images"

    name: Literal["resnet"] = "resnet"
    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    blocks: Annotated[int, Field(ge=1)] = 1
    dropout: DropShare = 0.0

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, last width)."""
        width = self.widths[0]
        stem = nn.Sequential(
            nn.Conv2d(shape[2], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        blocks: list[nn.Module] = []
        for stage, wide in enumerate(self.widths):
            for at in range(self.blocks):
                blocks.append(Block(width, wide, stride=2 if stage and not at else 1))
                width = wide
        dropped = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(stem, *blocks, GlobalAverage(), *dropped), width


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        return self.activation(self.residual(inputs) + self.shortcut(inputs))


class GlobalAverage(nn.Module):
    """(N, C, H, W) → (N, C); a mean, which exports and quantizes for any map."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Averages over the map."""
        return inputs.mean(dim=(2, 3))
