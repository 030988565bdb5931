"""Pruners: which channels of a network go, behind torch-pruning's dependency graph."""

from abc import abstractmethod

from torch import Tensor

from tasks.drawers import Drawer
from tasks.networks import Classifier
from tasks.sections import Section


class Pruner(Section):
    """Contract of a pruner."""

    @abstractmethod
    def prune(self, network: Classifier, example: Tensor) -> None:
        """Removes parts of a network in place.

        Args:
            network: In evaluation mode.
            example: A batch of at least 2 rows, as the network takes them.

        Raises:
            CompressionError: Nothing would go, or a layer would be emptied; names it.
        """


PRUNERS = Drawer("tasks.pruners", Pruner)
