"""Whole-pixel shifts and mirroring: the usual augmentation of small photographs."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.augmentations import Augmentation
from tasks.errors import ParamsError


class Crop(Augmentation):
    """Pads with the mirror image, crops back to size at a random place, and mirrors half of them.

    The augmentation of He et al. 2016 (section 4.2), arXiv:1512.03385, with reflection instead of
    zeros. Pixels are moved, never mixed: views are as sharp as the rows, and cheaper than `affine`.

    Attributes:
        pixels: Largest shift in each direction, smaller than the side.
        flip: Mirrors half of the views left to right.
    """

    takes: ClassVar[str | None] = "images"

    name: Literal["crop"] = "crop"
    pixels: Annotated[int, Field(ge=0)] = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Shifts down and right in whole pixels, and 1 where mirrored: (count, 3)."""
        shifts = torch.randint(-self.pixels, self.pixels + 1, (count, 2), generator=generator)
        mirrored = torch.randint(2, (count, 1), generator=generator) * int(self.flip)
        return torch.cat([shifts, mirrored], dim=1).float()

    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:
        """Crops (N, C, H, W) at each row's place.

        Raises:
            ParamsError: The shift is not smaller than the image's side.
        """
        height, width = batch.shape[2:]
        if self.pixels >= min(height, width):
            raise ParamsError(
                f"augmentation crop shifts by up to {self.pixels} pixels, but images are "
                f"{width}×{height}; set pixels below {min(height, width)}"
            )
        padded = functional.pad(batch, [self.pixels] * 4, mode="reflect")
        shifts = parameters[:, :2].long() + self.pixels
        down, right = torch.arange(height), torch.arange(width)
        across = right.to(batch.device).expand(len(batch), width)
        across = torch.where(parameters[:, 2:] > 0, width - 1 - across, across)
        lines = (shifts[:, :1] + down.to(batch.device))[:, :, None]
        columns = (shifts[:, 1:] + across)[:, None, :]
        rows = torch.arange(len(batch), device=batch.device)[:, None, None]
        # Indices apart from the channels' put the channels last, which is how batches lie.
        return padded[rows, :, lines, columns].permute(0, 3, 1, 2)
