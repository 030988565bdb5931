"""Calibrated stacking: how much speaks for a class that nobody has labelled.

Distances to boundaries speak for seen classes, similarities to a class's name for all. How much
each counts is learnt where the answer is known: part of the seen classes is treated as unseen, in
turn. There a penalty on seen classes is chosen, too, for the best harmonic mean (Chao et al. 2016,
arXiv:1605.04253).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from tasks.rows import HIDDEN

Scores = NDArray[np.float32]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

SMALLEST_CHANCE = 1e-6
FEWEST_APART = 2
FOLDS, ROWS_PER_CLASS = 4, 20
# Weights of `evidence_of`, chosen on CLINC150: figures there flatter them. A project's own seen
# classes correct them.
PRIOR = np.array([6.2, 0.1, 0.0, 0.1, 0.9, 0.7, 1.3, -5.8])
PRIOR_STRENGTH = 0.01
PENALTIES, PENALTY_WINDOW = np.arange(-2.0, 4.0, 0.1), 5
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Trial:
    """Some seen classes, treated as unseen.

    Attributes:
        evidence: (n, classes, kinds).
        labels: (n,).
        unseen: Which classes are treated so, (classes,).
        possible: Which classes can be meant, (classes,).
    """

    evidence: Scores
    labels: Labels
    unseen: Flags
    possible: Flags

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, classes), -inf for what cannot be meant."""
        return np.where(self.possible, self.evidence @ weights, -np.inf)

    @property
    def row_weights(self) -> NDArray[np.float64]:
        """Every class counts alike, (n,)."""
        return 1 / np.bincount(self.labels)[self.labels]

    def loss(self, weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Cross entropy, and its gradient by the weights."""
        chances = scipy.special.softmax(self.scores(weights), axis=1)
        at = np.arange(len(self.labels))
        loss = -self.row_weights @ np.log(chances[at, self.labels].clip(SMALLEST_CHANCE))
        chances[at, self.labels] -= 1
        slope = chances * self.row_weights[:, None]
        return float(loss), np.tensordot(slope, self.evidence, axes=((0, 1), (0, 1)))

    def right(self, weights: NDArray[np.float64]) -> tuple[Flags, Flags]:
        """Which rows of seen classes, and which of unseen ones, are told right."""
        right = self.scores(weights).argmax(axis=1) == self.labels
        held_out = self.unseen[self.labels]
        return right[~held_out], right[held_out]


@dataclass(frozen=True)
class Scene:
    """What speaks for which class.

    Attributes:
        distances_of: Gives distances to the boundaries between seen classes: of the rows that
            are asked about (n,), after learning others (m,); (n, classes), 0 for classes that
            were not learnt.
        similarity: (N, classes, ways).
        labels: (N,), with -1 where hidden.
    """

    distances_of: Callable[[Labels, Labels], Scores]
    similarity: Scores
    labels: Labels

    @property
    def unseen(self) -> Flags:
        """Classes without a label, (classes,)."""
        return without_labels(self.labels, self.similarity.shape[1])

    def guess(self, weights: NDArray[np.float64]) -> Scores:
        """Probabilities of all rows, (N, classes)."""
        known = np.flatnonzero(self.labels != HIDDEN)
        every = np.arange(len(self.labels))
        distances = self.distances_of(known, every)
        # A single class with labels has no boundary; its name has to do.
        apart: Flags = np.any(distances != 0, axis=0)
        blocks = np.array_split(every, max(1, len(every) // ROWS_AT_ONCE))
        found = [
            evidence_of(distances[block], self.similarity[block], ~apart) @ weights
            for block in blocks
        ]
        return scipy.special.softmax(np.concatenate(found), axis=1).astype(np.float32)

    def weights(self, seed: int) -> NDArray[np.float64]:
        """Weights of the evidence, with the penalty on seen classes in the last one."""
        trials = list(self._trials(seed))
        if not trials:
            return PRIOR

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            losses, slopes = zip(*(trial.loss(weights) for trial in trials), strict=True)
            off = weights - PRIOR
            return sum(losses) + PRIOR_STRENGTH * float(off @ off), sum(slopes) + (
                2 * PRIOR_STRENGTH * off
            )

        learnt = scipy.optimize.minimize(loss, PRIOR, jac=True, method="L-BFGS-B").x
        return learnt + penalty(trials, learnt) * _last(len(learnt))

    def _trials(self, seed: int) -> Iterator[Trial]:
        """Each seen class is unseen at most once; of the others, part of the rows is held out."""
        random = np.random.default_rng(seed)
        seen = random.permutation(np.flatnonzero(~self.unseen))
        count = max(1, round(len(seen) * self.unseen.mean()))
        if self.unseen.sum() == 0 or len(seen) - count < FEWEST_APART:
            return
        fold = _folds(self.labels, random)
        for number in range(FOLDS):
            hidden = np.zeros(len(self.unseen), dtype=bool)
            hidden[np.take(seen, np.arange(count) + number * count, mode="wrap")] = True
            known = self.labels != HIDDEN
            held = known & (hidden[self.labels] | (fold == number))
            yield self._trial(np.flatnonzero(known & ~held), _some(held, self.labels), hidden)

    def _trial(self, learnt: Labels, asked: Labels, hidden: Flags) -> Trial:
        possible = hidden.copy()
        possible[self.labels[learnt]] = True
        asked = asked[possible[self.labels[asked]]]
        distances = self.distances_of(learnt, asked)
        evidence = evidence_of(distances, self.similarity[asked], hidden)
        return Trial(evidence, self.labels[asked], hidden, possible)


def without_labels(labels: Labels, classes: int) -> Flags:
    """Classes without a shown label, (classes,)."""
    return np.bincount(labels[labels != HIDDEN], minlength=classes) == 0


def _folds(labels: Labels, random: np.random.Generator) -> Labels:
    """A fold for every row, such that each class is dealt out evenly, (N,)."""
    fold = np.zeros(len(labels), dtype=np.int64)
    for number in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == number))
        fold[rows] = np.arange(len(rows)) % FOLDS
    return fold


def _some(rows: Flags, labels: Labels) -> Labels:
    """Positions of these rows, a limited number of each class."""
    at = np.flatnonzero(rows)
    return np.sort(
        np.concatenate(
            [at[labels[at] == number][:ROWS_PER_CLASS] for number in np.unique(labels[at])]
        )
    )


def evidence_of(distances: Scores, similarity: Scores, unseen: Flags) -> Scores:
    """What speaks for a class, (N, classes, 2 + 2 · ways).

    Its distance; its similarities where it is seen; where it is not; and a constant for unseen
    classes, whose weight is the penalty on seen ones.
    """
    by_name = np.broadcast_to(unseen[None, :, None], (*distances.shape, 1))
    parts = (distances[..., None], similarity * ~by_name, similarity * by_name, by_name)
    return np.concatenate(parts, axis=2, dtype=np.float32)


def _last(count: int) -> NDArray[np.float64]:
    return np.eye(count)[-1]


def penalty(trials: list[Trial], weights: NDArray[np.float64]) -> float:
    """What is best taken from seen classes: the largest harmonic mean, averaged over neighbours."""
    found = [_harmonic(trials, weights + by * _last(len(weights))) for by in PENALTIES]
    level = np.convolve(found, np.ones(PENALTY_WINDOW) / PENALTY_WINDOW, mode="same")
    return float(PENALTIES[level.argmax()])


def _harmonic(trials: list[Trial], weights: NDArray[np.float64]) -> float:
    """Harmonic mean of the accuracies on seen and on unseen classes."""
    right = [trial.right(weights) for trial in trials]
    seen, unseen = (float(np.concatenate(part).mean()) for part in zip(*right, strict=True))
    return 2 * seen * unseen / max(seen + unseen, SMALLEST_CHANCE)
