"""Weights from a small table of values that k-means found."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.quantizers import Quantizer
from tasks.weight_tables import SortedValues, quantize_weights

ROUNDS = 500


class Codebook(Quantizer):
    """Weight sharing by k-means (Han et al. 2016, arXiv:1510.00149, section 3).

    Each large weight is stored as positions of `bits` bits in a table of its layer. What is saved
    is bytes of the file alone: weights become float when the file is loaded, activations stay
    float, and a call takes as long and as much memory as before.

    Attributes:
        bits: Bits of a weight; the table has 2**bits values.
        per_channel: Every output channel is scaled to a largest weight of 1 first, at the cost of
            a float for each; the table is still one for the layer.
    """

    name: Literal["codebook"] = "codebook"
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
            k_means,
            per_channel=self.per_channel,
        )


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
