"""Exporters: formats that run without torch."""

from abc import abstractmethod
from pathlib import Path

from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.sections import Section

MODEL_FILE = "model.onnx"


class Exporter(Section):
    """Contract of an exporter."""

    @abstractmethod
    def export(self, network: nn.Module, example: Tensor, path: Path) -> float:
        """Writes a network for another runtime and runs it there beside the eager one.

        Args:
            network: In evaluation mode, on the CPU.
            example: A batch of at least 2 real rows, as the network takes them.
            path: File to write.

        Returns:
            Largest absolute difference of the logits between the two.

        Raises:
            CompressionError: The network cannot be exported, or the two differ.
        """


EXPORTERS = Drawer("tasks.exporters", Exporter)
