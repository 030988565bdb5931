"""Weights on a grid that is finer in the middle than towards the ends."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.quantizers import Quantizer
from tasks.weight_tables import SortedValues, quantize_weights

BREAKPOINTS = np.arange(1, 200) / 200


class PiecewiseLinear(Quantizer):
    """Two-region uniform quantization (Fang et al. 2020, arXiv:2002.00104).

    Weights crowd around 0: half of the levels lie evenly within the breakpoint on either side of 0,
    a quarter between it and the largest weight, a quarter on the other side. The breakpoint is the
    one with the least squared error. Unlike in the paper, a region takes no bit of its own: `bits`
    is all that a weight takes.

    What is saved is bytes of the file alone: weights become float when the file is loaded,
    activations stay float, and a call takes as long and as much memory as before.

    Attributes:
        bits: Bits of a weight.
        per_channel: Every output channel is scaled to a largest weight of 1 first, at the cost of
            a float for each; the breakpoint is one share of it for the layer.
    """

    name: Literal["piecewise_linear"] = "piecewise_linear"
    bits: Annotated[int, Field(ge=2, le=8)] = 4
    per_channel: bool = True

    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """See `Quantizer.quantize`; the rows, which may be none, serve the report alone."""
        quantize_weights(
            self.plain(),
            source,
            target,
            calibration,
            self.bits,
            two_regions,
            per_channel=self.per_channel,
        )


def two_regions(values: SortedValues, count: int) -> NDArray[np.float64]:
    """The grid whose breakpoint, of 199 shares of the largest value, has the least squared error.

    Args:
        values: At least one.
        count: Levels, a power of two from 4 on.

    Returns:
        The levels, ascending, (count,).
    """
    largest = float(np.abs(values.values[[0, -1]]).max())
    grids = [grid(share, count) * largest for share in BREAKPOINTS]
    return min(grids, key=values.error)


def grid(breakpoint_share: float, count: int) -> NDArray[np.float64]:
    """Levels between -1 and 1: half of them evenly within the breakpoint, a quarter on each side.

    Args:
        breakpoint_share: Where the regions meet, between 0 and 1.
        count: Levels.
    """
    inner = np.linspace(-breakpoint_share, breakpoint_share, count // 2)
    outer = np.linspace(breakpoint_share, 1, count // 4 + 1)[1:]
    return np.concatenate([-outer[::-1], inner, outer])
