"""Membership inference: how well an attacker tells training rows from rows never seen."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.answers import Ask
from tasks.rows import HIDDEN, Part
from tasks.statistics import separation

FEWEST_ROWS = 10
SMALLEST_PROBABILITY = 1e-12


class Attack(BaseModel):
    """One attack on one model.

    Attributes:
        auc: Chance that a training row scores higher than a held-out one; 0.5 is guessing.
        low: Lower end of the 95% interval (DeLong 1988).
        high: Upper end.
        members: Training rows that were asked about.
        held_out: Rows never trained on.
    """

    model_config = ConfigDict(frozen=True)

    auc: float
    low: float
    high: float
    members: int
    held_out: int


class Membership(BaseModel):
    """What two attackers, who only see the model's answers, find out.

    Attributes:
        labelled: Of the rows whose labels were shown, by the loss: the attacker knows the true
            label (Yeom et al. 2018, arXiv:1709.01604). None where there are fewer than 10.
        pool: Of all other training rows, by the largest probability: the attacker knows no label
            (Salem et al. 2019, arXiv:1806.01246, third adversary). None where there are fewer.
    """

    model_config = ConfigDict(frozen=True)

    labelled: Attack | None
    pool: Attack | None

    @property
    def strongest(self) -> Attack | None:
        """The attack that tells most, or None where nobody could be asked about."""
        attacks = [found for found in (self.labelled, self.pool) if found is not None]
        return max(attacks, key=lambda found: found.auc, default=None)


def membership(ask: Ask, train: Part, held_out: Part, most_rows: int) -> Membership:
    """Attacks a model.

    Args:
        ask: The model.
        train: The rows that it was trained on, with the labels that were shown.
        held_out: Labelled rows that no stage trained on.
        most_rows: Most rows of a kind that are asked about, the first by their digests.
    """
    others = _some(held_out, np.arange(len(held_out)), most_rows)
    said = ask(others)
    shown, pool = (
        _some(train, np.flatnonzero(chosen), most_rows)
        for chosen in (train.labels != HIDDEN, train.labels == HIDDEN)
    )
    return Membership(
        labelled=_attack(_true(ask(shown), shown), _true(said, others)) if len(shown) else None,
        pool=_attack(ask(pool).max(1), said.max(1)) if len(pool) else None,
    )


def _some(part: Part, positions: NDArray[np.int64], most: int) -> Part:
    order = np.argsort(part.names[positions], kind="stable")
    return part.take(positions[order[:most]])


def _true(probabilities: NDArray[np.float32], rows: Part) -> NDArray[np.float64]:
    """Log-probability of the true label: minus the loss, (N,)."""
    found = probabilities[np.arange(len(rows)), rows.labels].astype(np.float64)
    return np.log(np.maximum(found, SMALLEST_PROBABILITY))


def _attack(members: NDArray[np.floating], others: NDArray[np.floating]) -> Attack | None:
    if min(len(members), len(others)) < FEWEST_ROWS:
        return None
    found = separation(members.astype(np.float64), others.astype(np.float64))
    return Attack(
        auc=found.auc,
        low=found.low,
        high=found.high,
        members=len(members),
        held_out=len(others),
    )
