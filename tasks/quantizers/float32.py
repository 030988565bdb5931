"""No quantization: where fewer bits do not pay."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quantizers import Quantizer


class Float32(Quantizer):
    """The float model as it is: the reference of every other method.

    On a network as small as the one for 8×8 digits, int8 was measured to be slower than this.
    """

    name: Literal["float32"] = "float32"

    def quantize(
        self,
        source: Path,
        target: Path,
        calibration: NDArray[np.float32],  # noqa: ARG002
    ) -> None:
        """See `Quantizer.quantize`; the calibration rows play no part."""
        shutil.copyfile(source, target)
