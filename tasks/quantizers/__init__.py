"""Quantizers: fewer bits per weight and activation."""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.drawers import Drawer
from tasks.sections import Section
from tasks.weight_tables import SortedValues, quantize_weights


class Quantizer(Section):
    """Contract of a quantizer of exported models."""

    @property
    def weight_limit(self) -> int:
        """Largest absolute integer that a weight becomes, with a scale per output channel.

        0 where training cannot imitate the method (see `tasks.fake_quantization`).
        """
        return 0

    @abstractmethod
    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """Writes a quantized copy of an ONNX model.

        Beside it, where there is something to say of each layer: `quantization.json`, a
        `QuantizationReport`.

        Args:
            source: The float model.
            target: File to write.
            calibration: Rows as the network takes them, (N, …), from the training split.

        Raises:
            CompressionError: There are no calibration rows, no weights to quantize, or an operator
                that cannot be quantized; names it.
        """


class TableQuantizer(Quantizer):
    """Stores each large weight as positions in a small table; a method says what stands in that.

    What is saved is bytes of the file alone: weights become float when the file is loaded,
    activations stay float, and a call takes as long and as much memory as before.

    Attributes:
        bits: Bits of a weight; a layer's table has 2**bits values.
        per_channel: Every output channel is scaled to a largest weight of 1 first, at the cost of
            a float for each; the table is still one for the layer.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    per_channel: bool = True

    @abstractmethod
    def table(self, values: SortedValues, count: int) -> NDArray[np.float64]:
        """A layer's table.

        Args:
            values: The layer's weights, at least one.
            count: Entries, a power of two from 4 on.

        Returns:
            The entries, ascending, (count,).
        """

    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """See `Quantizer.quantize`; the rows, which may be none, serve the report alone."""
        quantize_weights(
            self.plain(),
            source,
            target,
            calibration,
            self.bits,
            self.table,
            per_channel=self.per_channel,
        )


QUANTIZERS = Drawer("tasks.quantizers", Quantizer)
