"""Zero-shot: classes that nobody has labelled are recognised by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field

from tasks.errors import ParamsError
from tasks.estimators import (
    SMALLEST_PROBABILITY,
    Fitted,
    MarginEstimator,
    condensed,
    confident,
    decisions,
    features,
    neighbour_graph,
    readable,
    short,
    taught,
)
from tasks.rows import HIDDEN, Part
from tasks.sections import hint
from tasks.stacking import FEWEST_APART, Flags, Labels, Scene, Scores, without_labels
from tasks.word_vectors import company

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SOLVER_STEPS = 10_000
BALANCING_STEPS, LARGEST_FACTOR = 10, 10.0
SMOOTHING_STEPS = 30


class ClassNames(MarginEstimator):
    """Recognises classes without a single label by what their names have to do with the texts.

    A text's similarity to a class is that of its words to the words of the class's name, measured
    three ways on the pool: TF-IDF; latent semantic analysis; and vectors of words by the company
    they keep, the factorised positive pointwise mutual information (Levy and Goldberg 2014).
    Classes with labels also have the distance of a linear SVC. How much each counts is learnt where
    the answer is known: part of the seen classes is treated as unseen, in turn. There the penalty
    on seen classes is chosen too, for the best harmonic mean (calibrated stacking, Chao et al.
    2016, arXiv:1605.04253). No label of an unseen class is used for anything.

    Then the pool helps: guesses are evened out over classes and smoothed over each text's
    neighbours, and a linear SVC for all classes is fitted on the most confident of them. It is what
    is stored, and stands alone.

    Attributes:
        descriptions: Texts to take in place of a class's name, by class.
        window: Words to either side that count as a word's company.
        dimensions: Of the words' vectors, and of the latent space.
        neighbours: Of a text in the graph.
        smoothing: Share that a text takes from its neighbours' guesses.
        balance: How far the guesses are evened out, over the unseen classes and over the seen ones:
            0 not at all, 1 to equal shares.
        keep_share: Share of the guesses, the most confident of each class, that the SVC is fitted
            on.
        strength: Inverse of its L2 penalty (C).
        temperature: Divides its distances before the softmax.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["class_names"] = "class_names"
    descriptions: dict[str, str] = Field(default_factory=dict)
    window: Annotated[int, Field(ge=1)] = 20
    dimensions: Annotated[int, Field(ge=1)] = 200
    neighbours: Annotated[int, Field(ge=1)] = 10
    smoothing: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    keep_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    strength: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 0.12

    def fit(self, pool: Part, seed: int) -> Fitted:
        """See `Estimator.fit`.

        Raises:
            ParamsError: A description is of no class, or an unseen class's name has nothing in
                common with any text.
        """
        front, points = condensed(pool, self.dimensions, seed)
        wide = front[0].transform(readable(pool))
        scene = Scene(
            distances_of=_Distances(wide, pool, self.strength, seed),
            similarity=self._similarity(pool, front, wide, points, seed),
            labels=pool.labels,
        )
        weights = scene.weights(seed)
        guess = scene.guess(weights)
        guess = _balanced(guess, scene.unseen, self.balance)
        guess = _smoothed(guess, neighbour_graph(points, self.neighbours), self.smoothing)
        guess = _told(guess, pool.labels)
        return self._taught_by(guess, pool, seed)

    def _taught_by(self, guess: Scores, pool: Part, seed: int) -> Fitted:
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC

        chosen = taught(replace(pool, labels=confident(guess, pool.labels, self.keep_share)))
        svc = LinearSVC(C=self.strength, max_iter=SOLVER_STEPS, random_state=short(seed))
        model = make_pipeline(features(pool), svc).fit(readable(chosen), chosen.labels)
        said = (scipy.special.softmax(self.logits(model, pool), axis=1) + guess) / 2
        return Fitted(model, np.log(said.clip(SMALLEST_PROBABILITY)).astype(np.float32))

    def _similarity(
        self,
        pool: Part,
        front: Any,  # noqa: ANN401 - a scikit-learn pipeline
        wide: "csr_matrix",
        points: NDArray[np.float32],
        seed: int,
    ) -> Scores:
        """Similarity of every text to every class, three ways, (N, classes, 3)."""
        names = self._names(pool.encoding.classes)
        plain = (wide @ front[0].transform(names).T).toarray()
        self._refuse_blank(plain, pool)
        beside = company(list(readable(pool)), names, self.window, self.dimensions, short(seed))
        ways = (plain, points @ front.transform(names).T, beside)
        return np.stack([_standardised(way) for way in ways], axis=2).astype(np.float32)

    def _names(self, classes: Sequence[str]) -> list[str]:
        for name in self.descriptions:
            if name not in classes:
                raise ParamsError(
                    f"class_names.descriptions describes '{name}', which is no class of the data"
                    f"{hint(name, list(classes))}"
                )
        return [self.descriptions.get(name) or re.sub(r"[\W_]+", " ", name) for name in classes]

    def _refuse_blank(self, plain: NDArray[np.floating[Any]], pool: Part) -> None:
        blank = without_labels(pool.labels, plain.shape[1]) & (plain.max(axis=0) == 0)
        if blank.any():
            name = pool.encoding.classes[int(blank.argmax())]
            raise ParamsError(
                f"class '{name}' has no label, and its name has nothing in common with any text; "
                "describe it in class_names.descriptions"
            )


@dataclass(frozen=True)
class _Distances:
    """Linear SVCs on the features of the pool.

    Attributes:
        rows: (N, features).
        pool: Labels, and how many classes there are.
        strength: C.
    """

    rows: "csr_matrix"
    pool: Part
    strength: float
    seed: int

    def __call__(self, learnt: NDArray[np.int64], asked: NDArray[np.int64]) -> Scores:
        """Distances of the rows `asked` after learning the rows `learnt`, 0 for other classes."""
        from sklearn.svm import LinearSVC

        found = np.zeros((len(asked), len(self.pool.encoding.classes)), np.float32)
        labels = self.pool.labels[learnt]
        if len(np.unique(labels)) >= FEWEST_APART:
            svc = LinearSVC(C=self.strength, max_iter=SOLVER_STEPS, random_state=short(self.seed))
            svc.fit(self.rows[learnt], labels)
            found[:, svc.classes_] = decisions(svc, self.rows[asked])
        return found


def _standardised(similarity: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean 0 and variance 1 over the texts: no name attracts texts merely for being common."""
    spans = similarity.std(axis=0)
    return (similarity - similarity.mean(axis=0)) / np.where(spans > 0, spans, 1)


def _balanced(guess: Scores, unseen: Flags, strength: float) -> Scores:
    """Guesses with class shares evened out among the seen and among the unseen classes.

    Factors of the columns, (share / mean share)^-strength, found by repetition; how much goes to
    seen and how much to unseen classes is the calibration's to say and stays.
    """
    factors = np.ones(guess.shape[1], dtype=np.float32)
    found = guess
    for _ in range(BALANCING_STEPS):
        shares = found.mean(axis=0)
        for group in (unseen, ~unseen):
            if group.any():
                even = shares[group] / max(float(shares[group].mean()), SMALLEST_PROBABILITY)
                by = even.clip(SMALLEST_PROBABILITY) ** -strength
                factors[group] *= by.clip(1 / LARGEST_FACTOR, LARGEST_FACTOR)
        found = guess * factors
        found = found / found.sum(axis=1, keepdims=True)
    return found


def _smoothed(guess: Scores, graph: "csr_matrix", share: float) -> Scores:
    """F ← share · D^(-1/2) W D^(-1/2) F + (1 - share) · guess, (N, classes) probabilities."""
    degrees = np.asarray(graph.sum(axis=1)).ravel().clip(1)
    scale = scipy.sparse.diags(degrees**-0.5)
    flow = (scale @ graph @ scale).tocsr().astype(np.float32)
    found = guess
    for _ in range(SMOOTHING_STEPS):
        found = share * (flow @ found) + (1 - share) * guess
    return found / found.sum(axis=1, keepdims=True)


def _told(guess: Scores, labels: Labels) -> Scores:
    """Guesses, and certainty where the label is shown."""
    known = labels != HIDDEN
    found = guess.copy()
    found[known] = 0
    found[known, labels[known]] = 1
    return found
