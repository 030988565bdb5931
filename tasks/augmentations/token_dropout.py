"""Hidden tokens: the augmentation of texts."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.augmentations import Augmentation
from tasks.runtimes.text import MASK, PAD, UNKNOWN

SEEDS = 2**24  # float32 holds every whole number below
WORD = 2**32 - 1
STEP, FACTOR = 0x9E3779B9, 0x45D9F3B


class TokenDropout(Augmentation):
    """Replaces each token with a given probability by one that says nothing.

    Word dropout (Iyyer et al. 2015, section 2.2.1 of "Deep Unordered Composition Rivals Syntactic
    Methods for Text Classification"). At least one token of every text stays.

    Attributes:
        share: Probability of each token.
        replacement: What stands in its place: the token for unknown pieces, or the mask.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["token_dropout"] = "token_dropout"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    replacement: Literal["unknown", "mask"] = "unknown"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A seed for each view, (count, 1): whole numbers below 2^24."""
        return torch.randint(SEEDS, (count, 1), generator=generator).float()

    def apply(self, batch: Tensor, parameters: Tensor) -> Tensor:
        """Replaces tokens of (N, L); those that stand for no text beyond the end stay."""
        chance = evenly(parameters[:, :1].long(), batch.shape[1])
        present = batch != PAD
        kept = (chance * present).argmax(dim=1, keepdim=True)
        places = torch.arange(batch.shape[1], device=batch.device)
        dropped = present & (chance < self.share) & (places != kept)
        hidden = UNKNOWN if self.replacement == "unknown" else MASK
        return batch.masked_fill(dropped, hidden)


def evenly(seeds: Tensor, length: int) -> Tensor:
    """Numbers of [0, 1) that follow from a seed and a position alone, on every device.

    Args:
        seeds: (N, 1) int64, from 0.
        length: Positions.

    Returns:
        (N, length) float64.
    """
    places = torch.arange(length, device=seeds.device)
    found = _mixed((_mixed(seeds & WORD) + places * STEP) & WORD)
    return found.double() / 2**32


def _mixed(numbers: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that spreads every bit; the products stay below 2^59."""
    for _ in range(2):
        numbers = ((numbers ^ (numbers >> 16)) * FACTOR) & WORD
    return numbers ^ (numbers >> 16)
