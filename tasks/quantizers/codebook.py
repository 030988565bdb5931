"""Weights from a small table of values that k-means found."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quantizers import TableQuantizer
from tasks.weight_tables import SortedValues

ROUNDS = 500


class Codebook(TableQuantizer):
    """Weight sharing by k-means (Han et al. 2016, arXiv:1510.00149, section 3).

    Saves bytes of the file, and neither time nor memory of a call.
    """

    name: Literal["codebook"] = "codebook"

    def table(self, values: SortedValues, count: int) -> NDArray[np.float64]:
        """See `TableQuantizer.table`."""
        return k_means(values, count)


def k_means(values: SortedValues, count: int) -> NDArray[np.float64]:
    """Lloyd's algorithm on numbers, from evenly spaced centres, which Han et al. found best.

    Nothing is random. A centre without values stays where it is.

    Args:
        values: At least one.
        count: Centres.

    Returns:
        The centres, ascending, (count,).
    """
    table = np.linspace(values.values[0], values.values[-1], count)
    for _ in range(ROUNDS):
        weights, sums, _squares = values.cells(table)
        moved = np.divide(sums, weights, where=weights > 0, out=table.copy())
        if np.array_equal(moved, table):
            break
        table = moved
    return table
