"""Gates: what a challenger has to show before it is promoted."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.drawers import Drawer
from tasks.sections import Section


class Verdict(BaseModel):
    """What a gate found.

    Attributes:
        gate: Its name.
        passed: Whether the challenger may pass.
        sentence: Why, with the figures, for people.
        figures: The same, for machines.
    """

    model_config = ConfigDict(frozen=True)

    gate: str
    passed: bool
    sentence: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Evidence:
    """Challenger and champion on the same test rows.

    Attributes:
        labels: True labels, (N,).
        challenger: Its predicted labels, (N,).
        champion: The champion's, (N,), or None where there is none yet.
    """

    labels: NDArray[np.str_]
    challenger: NDArray[np.str_]
    champion: NDArray[np.str_] | None


class Gate(Section):
    """Contract of a gate."""

    @abstractmethod
    def judge(self, evidence: Evidence) -> Verdict:
        """Decides, and says why."""


GATES = Drawer("tasks.gates", Gate)
