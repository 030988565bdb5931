"""ExecuTorch, for phones and boards that run PyTorch's own runtime."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.compute import laid_out
from tasks.errors import CompressionError, SetupError
from tasks.exporters import Int8Exporter, failed, logits_of

CALIBRATION_BATCH = 64


class ExecuTorch(Int8Exporter):
    """A `.pte` for ExecuTorch, with XNNPACK's kernels for Arm and x86; one row a call.

    int8 is static post-training quantization by torchao (PT2E): symmetric weights with a scale per
    output channel, activations with one per tensor. Operators that XNNPACK lacks run by
    ExecuTorch's portable kernels. Needs `pip install 'stillmark[executorch]'`.
    """

    suffix: ClassVar[str] = ".pte"

    name: Literal["executorch"] = "executorch"

    def export(self, network: nn.Module, example: Tensor, path: Path) -> float:
        """See `Exporter.export`."""
        exir = _module("executorch.exir")
        xnnpack = _module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        network = laid_out(network, torch.contiguous_format)
        # A copy: where there is one channel, `contiguous` keeps strides that say channels come
        # last, and XNNPACK takes them at their word.
        example = example.clone(memory_format=torch.contiguous_format)
        try:
            with _quiet():
                exact = self._int8(network, example) if self.precision == "int8" else network
                program = torch.export.export(exact, (example[:1],))
                partitioner = [xnnpack.XnnpackPartitioner()]
                lowered = exir.to_edge_transform_and_lower(program, partitioner=partitioner)
                content = lowered.to_executorch().buffer
        except SetupError:
            raise
        except Exception as error:
            raise failed(network, "ExecuTorch", error) from error
        path.write_bytes(content)
        return self.checked(logits_of(network, example), self._run(path, example), path)

    def _int8(self, network: nn.Module, example: Tensor) -> nn.Module:
        """The network with its ranges read from rows, its quantization written out as operators."""
        xnnpack = _module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        pt2e = _module("torchao.quantization.pt2e.quantize_pt2e")
        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        batch = torch.export.Dim("batch", min=1, max=CALIBRATION_BATCH)
        traced = torch.export.export(network, (example[:2],), dynamic_shapes=({0: batch},))
        quantizer = xnnpack.XNNPACKQuantizer().set_global(config)
        prepared = pt2e.prepare_pt2e(traced.module(), quantizer)
        for rows in example.split(CALIBRATION_BATCH):
            prepared(rows)
        return pt2e.convert_pt2e(prepared)

    def _run(self, path: Path, inputs: Tensor) -> NDArray[np.float32]:
        """Logits of a batch, by ExecuTorch on this machine."""
        runtime = _module("executorch.runtime").Runtime.get()
        try:
            method = runtime.load_program(str(path)).load_method("forward")
            found = [method.execute((row,))[0].clone() for row in inputs.split(1)]
        except RuntimeError as error:
            raise CompressionError(
                f"{path.name} does not run in ExecuTorch: {str(error).splitlines()[0]}"
            ) from error
        return torch.cat(found).numpy()


def _module(name: str) -> Any:  # noqa: ANN401 - a module that may not be there
    try:
        with _quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise SetupError(
            f"ExecuTorch cannot be imported ({error}); install it: "
            "pip install 'stillmark[executorch]'"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the packages' notes on parts that are not needed off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
