"""Quantizers: fewer bits per weight and activation."""

from abc import abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.drawers import Drawer
from tasks.sections import Section


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


QUANTIZERS = Drawer("tasks.quantizers", Quantizer)
