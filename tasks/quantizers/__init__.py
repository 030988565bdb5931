"""Quantizers: fewer bits per weight and activation."""

from abc import abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.drawers import Drawer
from tasks.sections import Section


class Quantizer(Section):
    """Contract of a quantizer of exported models."""

    @abstractmethod
    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """Writes a quantized copy of an ONNX model.

        Args:
            source: The float model.
            target: File to write.
            calibration: Rows as the network takes them, (N, …), from the training split.

        Raises:
            CompressionError: There are no calibration rows.
        """


QUANTIZERS = Drawer("tasks.quantizers", Quantizer)
