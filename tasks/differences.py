"""What differs between a model's recorded files and those that were made again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file

from tasks.lineage.digests import digests_of_folder

SMALLEST = float(np.finfo(np.float32).tiny)


class Difference(BaseModel):
    """A file that did not come out bit for bit.

    Attributes:
        name: Its path among the stage's files.
        expected: sha256 of the recorded one, or None where there was none.
        found: sha256 of the one made again, or None where there is none.
        difference: Largest difference of a number in it, relative to the largest number of its
            tensor; None where it holds no weights, or other ones.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    expected: str | None
    found: str | None
    difference: float | None


def differing(recorded: Path, remade: Path) -> Iterator[Difference]:
    """Every file of two folders that is not the same in both, in order."""
    before, now = digests_of_folder(recorded), digests_of_folder(remade)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            both = name in before and name in now
            yield Difference(
                name=name,
                expected=before[name].sha256 if name in before else None,
                found=now[name].sha256 if name in now else None,
                difference=_difference(recorded / name, remade / name) if both else None,
            )


def _difference(recorded: Path, remade: Path) -> float | None:
    """Largest relative difference of two files' numbers, or None where they hold other things."""
    before, now = _tensors(recorded), _tensors(remade)
    if before is None or now is None or before.keys() != now.keys():
        return None
    pairs = [(before[name], now[name]) for name in before]
    if any(one.shape != other.shape or one.dtype != other.dtype for one, other in pairs):
        return None
    found = [_largest(one, other) for one, other in pairs]
    return None if None in found else max((one for one in found if one is not None), default=0.0)


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Relative to the tensor's largest number; whole numbers may differ by 1, as after rounding."""
    if not one.size:
        return 0.0
    gap = float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
    if one.dtype.kind in "iu":
        return 0.0 if gap <= 1 else None
    largest = float(np.abs(one).max())
    return gap / max(largest, SMALLEST) if np.isfinite([gap, largest]).all() else None


def _tensors(path: Path) -> dict[str, NDArray[Any]] | None:
    """The numbers in a file of weights, by name."""
    if path.suffix == ".safetensors":
        return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    if path.suffix == ".npy":
        return {"": np.load(path)}
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        return {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    return None
