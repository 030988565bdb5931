"""Exporters: formats that run without torch."""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.errors import CompressionError
from tasks.sections import Section

MODEL_FILE = "model.onnx"


class Exporter(Section):
    """Contract of an exporter.

    Attributes:
        suffix: What its files' names end in.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def export(self, network: nn.Module, example: Tensor, path: Path) -> float:
        """Writes a network for another runtime and runs it there beside the eager one.

        Args:
            network: In evaluation mode, on the CPU.
            example: A batch of at least 2 real rows, as the network takes them; int8 ranges are
                read from them, too.
            path: File to write.

        Returns:
            Largest absolute difference of the logits between the two.

        Raises:
            CompressionError: The network cannot be exported, or the two differ.
            SetupError: The format needs what is not installed.
        """


class Int8Exporter(Exporter):
    """Contract of an exporter that can also quantize on its way.

    Attributes:
        precision: Of the weights and activations in the file; rows and logits stay float32.
        tolerance: fp32: largest difference from the eager logits, relative to their largest value.
        at_least: int8: smallest share of the example rows on which the file and the eager float
            network name the same class.
    """

    precision: Literal["fp32", "int8"] = "fp32"
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    at_least: Annotated[float, Field(ge=0, le=1)] = 0.95

    def checked(
        self, eager: NDArray[np.float32], exported: NDArray[np.float32], path: Path
    ) -> float:
        """Largest absolute difference of the logits (N, classes).

        Raises:
            CompressionError: The file does not do what the eager network does.
        """
        if self.precision == "fp32":
            return difference(eager, exported, path, self.tolerance)
        if not np.isfinite(exported).all():
            raise CompressionError(f"{path.name} answers some rows with logits that are not finite")
        share = float((eager.argmax(1) == exported.argmax(1)).mean())
        if share < self.at_least:
            raise CompressionError(
                f"{path.name} names the class of the eager float network on {share:.2%} of "
                f"{len(eager)} rows, at least {self.at_least:.2%} is asked for (exporter at_least)"
            )
        return float(np.abs(eager - exported).max())


def logits_of(network: nn.Module, inputs: Tensor) -> NDArray[np.float32]:
    """What a network in torch answers, (N, classes)."""
    with torch.no_grad():
        return network(inputs).numpy()


def difference(
    eager: NDArray[np.float32], exported: NDArray[np.float32], path: Path, tolerance: float
) -> float:
    """Largest absolute difference of the logits (N, classes).

    Args:
        eager: What the network in torch answers.
        exported: What the file answers in its runtime.
        path: The file.
        tolerance: Largest difference that passes, relative to the largest eager logit, or to 1.

    Raises:
        CompressionError: The two differ by more, or the file's answers are not finite.
    """
    found = float(np.abs(eager - exported).max())
    allowed = tolerance * max(1.0, float(np.abs(eager).max()))
    if not found <= allowed:
        raise CompressionError(
            f"{path.name} differs from the eager network by {found:.2g}, at most {allowed:.2g} is "
            "allowed (tolerance)"
        )
    return found


def failed(network: nn.Module, form: str, error: BaseException) -> CompressionError:
    """What to raise where a converter gave up, in one line; they raise errors of any type.

    Of a chain of errors the first cause names the operator.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return CompressionError(f"{type(network).__name__} cannot be exported to {form}: {reason}")


EXPORTERS = Drawer("tasks.exporters", Exporter)
