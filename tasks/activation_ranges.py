"""Ranges that activations are quantized in, read from calibration rows."""

import contextlib
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tasks.onnx_layers import batches, observed, quiet

Method = Literal["min_max", "percentile", "entropy", "mse"]

LEVELS = 255
BINS = 2048
# Eight bits over a range that is nonnegative take half of a histogram that is symmetric.
ENTROPY_BINS, ENTROPY_LEVELS = 512, 128
LARGEST = 1e30
FACTORS = np.arange(50, 0, -1) / 50


def activation_ranges(
    model: onnx.ModelProto, rows: NDArray[Any], method: Method, percentile: float
) -> Any:  # noqa: ANN401 - onnxruntime's TensorsData, which is slow to import
    """The range of every activation of a graph that can be quantized.

    Args:
        model: The float graph.
        rows: Calibration rows as it takes them, (N, …), at least one.
        method: `min_max`: the smallest and largest value seen. `percentile`: the share of values
            that lies inside. `entropy`: least Kullback-Leibler divergence between the values and
            the quantized ones (Migacz 2017, NVIDIA's TensorRT). `mse`: least squared error of the
            quantized values.
            Where values are infinite, or next to it, all methods do as `min_max`.
        percentile: Share in percent for `percentile`, half of the rest left out on either side.

    Returns:
        What `onnxruntime.quantization.QDQQuantizer` takes: `TensorsData` by name.
    """
    from onnxruntime.quantization import (  # noqa: PLC0415 - slow to import
        CalibrationMethod,
        TensorsData,
    )

    widest = _calibrated(model, [rows], CalibrationMethod.MinMax, {})
    if method == "min_max":
        return widest
    bounds = {name: _bounds(found) for name, found in widest.items()}
    wild = unbounded(widest)
    tame = {name: found for name, found in bounds.items() if name not in wild}
    if method == "mse":
        narrow = _least_squares(model, rows, tame)
    else:
        kind = CalibrationMethod.Entropy
        options: dict[str, Any] = {"num_bins": ENTROPY_BINS, "num_quantized_bins": ENTROPY_LEVELS}
        if method == "percentile":
            kind = CalibrationMethod.Percentile
            options = {"num_bins": BINS, "percentile": percentile, "symmetric": False}
        found = _calibrated(model, batches(rows), kind, options, only={*tame})
        narrow = {name: _bounds(one) for name, one in found.items()}
    merged: dict[str, Any] = {
        name: tuple(np.array(bound, np.float32) for bound in narrow.get(name, bounds[name]))
        for name in bounds
    }
    return TensorsData(CalibrationMethod.MinMax, merged)


def unbounded(ranges: Any) -> set[str]:  # noqa: ANN401 - see activation_ranges
    """Names of the activations that are infinite, or next to it: masks before a softmax.

    Eight bits over such a range leave nothing of the other values.

    Args:
        ranges: What `activation_ranges` found.
    """
    return {name for name, found in ranges.items() if not np.abs(_bounds(found)).max() < LARGEST}


def _bounds(found: Any) -> tuple[float, float]:  # noqa: ANN401 - onnxruntime's TensorData
    return float(np.squeeze(found.lowest)), float(np.squeeze(found.highest))


def quantizable() -> list[str]:
    """Operators that ONNX Runtime has an 8-bit form of."""
    from onnxruntime.quantization.registry import (  # noqa: PLC0415 - slow to import
        QDQRegistry,
        QLinearOpsRegistry,
    )

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _calibrated(
    model: onnx.ModelProto,
    groups: Iterable[NDArray[Any]],
    method: Any,  # noqa: ANN401 - onnxruntime's CalibrationMethod, which is slow to import
    options: dict[str, Any],
    only: set[str] | None = None,
) -> Any:  # noqa: ANN401 - see activation_ranges
    """Ranges by one of ONNX Runtime's calibrators, which keeps a group's values in memory."""
    from onnxruntime import quantization  # noqa: PLC0415 - slow to import

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, rows: NDArray[Any]) -> None:
            self.batches = batches(rows)

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    silence = contextlib.redirect_stdout(io.StringIO())  # the histograms' printed remarks
    with tempfile.TemporaryDirectory() as folder, quiet(), silence:
        place = Path(folder) / "model.onnx"
        onnx.save(model, place)
        calibrator = quantization.create_calibrator(
            place,
            quantizable(),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        if only is not None:
            # Of the histograms alone, which cannot hold what is infinite.
            calibrator.tensors_to_calibrate = only  # pyright: ignore[reportAttributeAccessIssue]
        for rows in groups:
            calibrator.collect_data(Reader(rows))
        return calibrator.compute_data()


def _least_squares(
    model: onnx.ModelProto, rows: NDArray[Any], seen: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Ranges from histograms whose bins stand for their values' mean."""
    bounds = {name: (min(0.0, low), max(0.0, high)) for name, (low, high) in seen.items()}
    counts = {name: np.zeros(BINS) for name in bounds}
    sums = {name: np.zeros(BINS) for name in bounds}
    for values in observed(model, list(bounds), rows):
        for name, (low, high) in bounds.items():
            flat = values[name].ravel().astype(np.float64)
            width = (high - low) / BINS or 1.0
            at = np.clip((flat - low) / width, 0, BINS - 1).astype(np.int64)
            counts[name] += np.bincount(at, minlength=BINS)
            sums[name] += np.bincount(at, flat, minlength=BINS)
    found: dict[str, tuple[float, float]] = {}
    for name, (low, high) in bounds.items():
        filled = counts[name] > 0
        means = sums[name][filled] / counts[name][filled]
        found[name] = least_squares_range(means, counts[name][filled], low, high)
    return found


def least_squares_range(
    values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float
) -> tuple[float, float]:
    """The range, of 50 shrunken ones on either side of 0, with the least squared error in 8 bits.

    Args:
        values: What was seen, (N,).
        counts: How often, (N,).
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
    """
    best, chosen = np.inf, (low, high)
    for factor in FACTORS if low < 0 else FACTORS[:1]:
        lowest = factor * low
        highest = (FACTORS if high > 0 else FACTORS[:1])[:, None] * high
        scale = (highest - lowest) / LEVELS
        scale[scale == 0] = 1.0
        zero = np.round(-lowest / scale)
        stored = np.clip(np.round(values / scale) + zero, 0, LEVELS)
        errors = ((scale * (stored - zero) - values) ** 2) @ counts
        at = int(errors.argmin())
        if errors[at] < best:
            best, chosen = float(errors[at]), (float(lowest), float(highest[at, 0]))
    return chosen
