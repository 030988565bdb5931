"""Weights on a grid that is finer in the middle than towards the ends."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quantizers import TableQuantizer
from tasks.weight_tables import SortedValues

BREAKPOINTS = np.arange(1, 200) / 200


class PiecewiseLinear(TableQuantizer):
    """Two-region uniform quantization (Fang et al. 2020, arXiv:2002.00104).

    Weights crowd around 0: half of the levels lie evenly within the breakpoint on either side of 0,
    a quarter between it and the largest weight, a quarter on the other side. The breakpoint is the
    one with the least squared error. Unlike in the paper, a region takes no bit of its own: `bits`
    is all that a weight takes.

    Saves bytes of the file, and neither time nor memory of a call.
    """

    name: Literal["piecewise_linear"] = "piecewise_linear"

    def table(self, values: SortedValues, count: int) -> NDArray[np.float64]:
        """See `TableQuantizer.table`."""
        return two_regions(values, count)


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
