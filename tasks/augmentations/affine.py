"""Random affine maps of images, with optional mirroring and contrast."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.augmentations import Augmentation

Amount = Annotated[float, Field(ge=0)]


class Affine(Augmentation):
    """Rotates, shifts, scales and shears by amounts drawn evenly from [-amount, amount].

    Attributes:
        rotation_degrees: Largest rotation.
        shift_share: Largest shift as a share of the side.
        scale: Largest relative change of size.
        shear: Largest shear factor.
        flip: Mirrors half of the views left to right.
        contrast: Largest relative change of contrast about the image's mean.
        padding: What lies outside the image: black (`zeros`) or its mirror image.
    """

    takes: ClassVar[str | None] = "images"

    name: Literal["affine"] = "affine"
    rotation_degrees: Amount = 0.0
    shift_share: Amount = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: Amount = 0.0
    flip: bool = False
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    padding: Literal["zeros", "reflection"] = "zeros"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Inverse maps (six numbers) and a contrast factor: (count, 7)."""
        spread = torch.rand(count, 7, generator=generator) * 2 - 1
        angle = spread[:, 0] * math.radians(self.rotation_degrees)
        scale, shear = 1 + spread[:, 1] * self.scale, spread[:, 2] * self.shear
        mirror = torch.where(spread[:, 6] < 0, -1.0, 1.0) if self.flip else torch.ones(count)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        shift = spread[:, 3:5] * (2 * self.shift_share)  # the map's coordinates span 2
        row_x = torch.stack([cos * mirror, (shear * cos - sin) * mirror, shift[:, 0]], dim=1)
        row_y = torch.stack([sin, shear * sin + cos, shift[:, 1]], dim=1)
        contrast = 1 + spread[:, 5:6] * self.contrast
        return torch.cat([row_x, row_y, contrast], dim=1)

    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:
        """Samples (N, C, H, W) bilinearly under each row's map."""
        maps = parameters[:, :6].reshape(-1, 2, 3)
        with torch.autocast(batch.device.type, enabled=False):
            grid = functional.affine_grid(maps, list(batch.shape), align_corners=False)
            views = functional.grid_sample(
                batch.float(), grid, padding_mode=self.padding, align_corners=False
            )
            if self.contrast:
                mean = views.mean(dim=(1, 2, 3), keepdim=True)
                views = (mean + (views - mean) * parameters[:, 6].view(-1, 1, 1, 1)).clamp(0, 1)
        return views.contiguous(memory_format=torch.channels_last)
