"""int8 weights and activations with ranges fixed in advance."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from tasks.errors import CompressionError
from tasks.exporters.onnx import shorten, strip
from tasks.quantizers import Quantizer

BATCH = 64


class StaticInt8(Quantizer):
    """Post-training quantization for ONNX Runtime (Jacob et al. 2018, arXiv:1712.05877).

    Unsigned activations and signed weights: signed ones on both sides ran slower than float on x86.
    x86 processors without VNNI add two products of such bytes in 16 bits, which overflow without a
    word; weights of 7 bits cannot (onnxruntime's `reduce_range`).

    Attributes:
        calibration_rows: Training rows that the activations' ranges are read from.
        reduce_range: Weights of 7 bits, right on every processor; 8 bits are for devices that are
            known to add in 32 bits.
        per_channel: A scale for every output channel of a weight, instead of one per tensor.
    """

    name: Literal["static_int8"] = "static_int8"
    calibration_rows: Annotated[int, Field(ge=1)] = 512
    reduce_range: bool = True
    per_channel: bool = True

    def quantize(self, source: Path, target: Path, calibration: NDArray[np.float32]) -> None:
        """See `Quantizer.quantize`; ranges are the smallest and largest value seen."""
        if not len(calibration):
            raise CompressionError(
                "there are no training rows to calibrate int8 ranges on; add rows to data/"
            )
        from onnxruntime import quantization  # noqa: PLC0415 - slow to import
        from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

        class Reader(quantization.CalibrationDataReader):
            def __init__(self, name: str, rows: NDArray[np.float32]) -> None:
                self.batches = _batches(name, rows)

            def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
                return next(self.batches, None)

        with tempfile.TemporaryDirectory() as folder, _quiet():
            ready = Path(folder) / "ready.onnx"
            quant_pre_process(source, ready)
            name = onnx.load(ready).graph.input[0].name
            quantization.quantize_static(
                ready,
                target,
                Reader(name, calibration[: self.calibration_rows]),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=self.reduce_range,
                per_channel=self.per_channel,
            )
        onnx.save(shorten(strip(onnx.load(target))), target)


def _batches(name: str, rows: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
    for at in range(0, len(rows), BATCH):
        yield {name: rows[at : at + BATCH]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ONNX Runtime's advice to pre-process, which was followed, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
