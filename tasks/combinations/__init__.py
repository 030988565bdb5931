"""Combinations: how several teachers' answers become one."""

from abc import abstractmethod

from torch import Tensor

from tasks.drawers import Drawer
from tasks.sections import Section


class Combination(Section):
    """Contract of a combination."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One answer per row.

        Args:
            logits: The teachers' logits, (teachers, N, classes).
            labels: Class numbers, (N,), with -1 where the label is hidden.

        Returns:
            Logits, (N, classes): log-probabilities up to a constant per row.
        """


COMBINATIONS = Drawer("tasks.combinations", Combination)
