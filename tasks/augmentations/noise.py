"""Noise: numbers jittered and dropped, for tables."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.augmentations import Augmentation

SEEDS = 2**24  # float32 holds every integer up to it
MASK = 2**32 - 1
PURPOSES = 3


class Noise(Augmentation):
    """x' = m · (x + jitter · n), n from N(0, 1) and m from {0, 1}, for every feature by itself.

    A row's parameter is one seed. Its features' numbers are hashes of that seed and the feature's
    place, so a view is the same on every device, however wide rows are.

    Attributes:
        jitter: Standard deviation of what is added, in those of the columns.
        drop_share: Chance of a feature to be set to 0, the mean of a numeric column.
    """

    takes: ClassVar[str | None] = "tables"

    name: Literal["noise"] = "noise"
    jitter: Annotated[float, Field(ge=0)] = 0.1
    drop_share: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Seeds, (count, 1)."""
        return torch.randint(SEEDS, (count, 1), generator=generator).float()

    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:
        """Views of (N, features) under each row's seed."""
        radius, angle, chance = _even(parameters[:, 0].long(), batch.shape[1])
        normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()  # Box & Muller 1958
        views = batch + self.jitter * normal.to(batch.dtype)
        return views.masked_fill(chance < self.drop_share, 0.0)


def _even(seeds: Tensor, features: int) -> Tensor:
    """Numbers spread evenly over (0, 1), (3, N, features) float64, that follow from seeds (N,)."""
    places = torch.arange(PURPOSES * features, device=seeds.device).view(PURPOSES, 1, features)
    # Hashed apart first: else neighbouring seeds and places would share their sums.
    numbers = _hashed((_hashed(seeds + SEEDS)[:, None] + _hashed(places)) & MASK)
    return (numbers.double() + 0.5) / (MASK + 1)


def _hashed(numbers: Tensor) -> Tensor:
    """Mixes 32-bit integers by rounds of shift, exclusive or and product, as MurmurHash3 ends.

    The factors lie below 2^31, so that no product leaves int64.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x2C1B3C6D), (12, 0x297A2D39)):
        numbers = ((numbers ^ (numbers >> shift)) * factor) & MASK
    return numbers ^ (numbers >> 15)
