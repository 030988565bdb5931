"""Zero-shot: classes that nobody has labelled are recognised by their names."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.extmath import randomized_svd

from tasks.errors import ParamsError
from tasks.estimators import (
    SMALLEST_PROBABILITY,
    WORD,
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

Scores = NDArray[np.float32]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

SOLVER_STEPS = 10_000
WORDS_WITH_VECTORS = 20_000
CONTEXT_POWER = 0.75
SVD_ITERATIONS = 4

FEWEST_APART = 2
FOLDS, ROWS_PER_CLASS = 4, 20
# Weights of `_evidence`, chosen on CLINC150: figures there flatter them. A project's own seen
# classes correct them.
PRIOR = np.array([6.2, 0.1, 0.0, 0.1, 0.9, 0.7, 1.3, -5.8])
PRIOR_STRENGTH = 0.01
PENALTIES, PENALTY_WINDOW = np.arange(-2.0, 4.0, 0.1), 5
ROWS_AT_ONCE = 2048

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
        scene = _Scene(
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
        chosen = taught(replace(pool, labels=confident(guess, pool.labels, self.keep_share)))
        svc = LinearSVC(C=self.strength, max_iter=SOLVER_STEPS, random_state=short(seed))
        model = make_pipeline(features(pool), svc).fit(readable(chosen), chosen.labels)
        said = (softmax(self.logits(model, pool), axis=1) + guess) / 2
        return Fitted(model, np.log(said.clip(SMALLEST_PROBABILITY)).astype(np.float32))

    def _similarity(
        self,
        pool: Part,
        front: Any,  # noqa: ANN401 - a scikit-learn pipeline
        wide: scipy.sparse.csr_matrix,
        points: NDArray[np.float32],
        seed: int,
    ) -> Scores:
        """Similarity of every text to every class, three ways, (N, classes, 3)."""
        names = self._names(pool.encoding.classes)
        plain = (wide @ front[0].transform(names).T).toarray()
        self._refuse_blank(plain, pool)
        company = _company(list(readable(pool)), names, self.window, self.dimensions, seed)
        ways = (plain, points @ front.transform(names).T, company)
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
        blank = _unseen(pool.labels, plain.shape[1]) & (plain.max(axis=0) == 0)
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

    rows: scipy.sparse.csr_matrix
    pool: Part
    strength: float
    seed: int

    def __call__(self, learnt: NDArray[np.int64], asked: NDArray[np.int64]) -> Scores:
        """Distances of the rows `asked` after learning the rows `learnt`, 0 for other classes."""
        found = np.zeros((len(asked), len(self.pool.encoding.classes)), np.float32)
        labels = self.pool.labels[learnt]
        if len(np.unique(labels)) >= FEWEST_APART:
            svc = LinearSVC(C=self.strength, max_iter=SOLVER_STEPS, random_state=short(self.seed))
            svc.fit(self.rows[learnt], labels)
            found[:, svc.classes_] = decisions(svc, self.rows[asked])
        return found


@dataclass(frozen=True)
class _Trial:
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
        chances = softmax(self.scores(weights), axis=1)
        at = np.arange(len(self.labels))
        loss = -self.row_weights @ np.log(chances[at, self.labels].clip(SMALLEST_PROBABILITY))
        chances[at, self.labels] -= 1
        slope = chances * self.row_weights[:, None]
        return float(loss), np.tensordot(slope, self.evidence, axes=((0, 1), (0, 1)))

    def right(self, weights: NDArray[np.float64]) -> tuple[Flags, Flags]:
        """Which rows of seen classes, and which of unseen ones, are told right."""
        right = self.scores(weights).argmax(axis=1) == self.labels
        held_out = self.unseen[self.labels]
        return right[~held_out], right[held_out]


@dataclass(frozen=True)
class _Scene:
    """What speaks for which class.

    Attributes:
        distances_of: Gives distances to the boundaries between seen classes.
        similarity: (N, classes, ways).
        labels: (N,), with -1 where hidden.
    """

    distances_of: _Distances
    similarity: Scores
    labels: Labels

    @property
    def unseen(self) -> Flags:
        """Classes without a label, (classes,)."""
        return _unseen(self.labels, self.similarity.shape[1])

    def guess(self, weights: NDArray[np.float64]) -> Scores:
        """Probabilities of all rows, (N, classes)."""
        known = np.flatnonzero(self.labels != HIDDEN)
        every = np.arange(len(self.labels))
        distances = self.distances_of(known, every)
        # A single class with labels has no boundary; its name has to do.
        apart: Flags = np.any(distances != 0, axis=0)
        blocks = np.array_split(every, max(1, len(every) // ROWS_AT_ONCE))
        found = [
            _evidence(distances[block], self.similarity[block], ~apart) @ weights
            for block in blocks
        ]
        return softmax(np.concatenate(found), axis=1).astype(np.float32)

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

        learnt = minimize(loss, PRIOR, jac=True, method="L-BFGS-B").x
        return learnt + _penalty(trials, learnt) * _last(len(learnt))

    def _trials(self, seed: int) -> Iterator[_Trial]:
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

    def _trial(self, learnt: Labels, asked: Labels, hidden: Flags) -> _Trial:
        possible = hidden.copy()
        possible[self.labels[learnt]] = True
        asked = asked[possible[self.labels[asked]]]
        distances = self.distances_of(learnt, asked)
        evidence = _evidence(distances, self.similarity[asked], hidden)
        return _Trial(evidence, self.labels[asked], hidden, possible)


def _unseen(labels: Labels, classes: int) -> Flags:
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


def _evidence(distances: Scores, similarity: Scores, unseen: Flags) -> Scores:
    """What speaks for a class, (N, classes, 2 + 2 · ways).

    Its distance; its similarities where it is seen; where it is not; and a constant for unseen
    classes, whose weight is the penalty on seen ones.
    """
    by_name = np.broadcast_to(unseen[None, :, None], (*distances.shape, 1))
    parts = (distances[..., None], similarity * ~by_name, similarity * by_name, by_name)
    return np.concatenate(parts, axis=2, dtype=np.float32)


def _last(count: int) -> NDArray[np.float64]:
    return np.eye(count)[-1]


def _penalty(trials: list[_Trial], weights: NDArray[np.float64]) -> float:
    """What is best taken from seen classes: the largest harmonic mean, averaged over neighbours."""
    found = [_harmonic(trials, weights + by * _last(len(weights))) for by in PENALTIES]
    level = np.convolve(found, np.ones(PENALTY_WINDOW) / PENALTY_WINDOW, mode="same")
    return float(PENALTIES[level.argmax()])


def _harmonic(trials: list[_Trial], weights: NDArray[np.float64]) -> float:
    """Harmonic mean of the accuracies on seen and on unseen classes."""
    right = [trial.right(weights) for trial in trials]
    seen, unseen = (float(np.concatenate(part).mean()) for part in zip(*right, strict=True))
    return 2 * seen * unseen / max(seen + unseen, SMALLEST_PROBABILITY)


def _standardised(similarity: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean 0 and variance 1 over the texts: no name attracts texts merely for being common."""
    spans = similarity.std(axis=0)
    return (similarity - similarity.mean(axis=0)) / np.where(spans > 0, spans, 1)


def _company(
    texts: Sequence[str], names: Sequence[str], window: int, dimensions: int, seed: int
) -> NDArray[np.float64]:
    """Cosines of texts and names, both weighted means of their words' vectors, (N, names)."""
    reader = TfidfVectorizer(
        token_pattern=WORD, sublinear_tf=True, max_features=WORDS_WITH_VECTORS
    ).fit(texts)
    vectors = _word_vectors(texts, reader, window, dimensions, seed)
    weights = [cast("scipy.sparse.csr_matrix", reader.transform(side)) for side in (texts, names)]
    rows, named = (_of_length_1(side @ vectors) for side in weights)
    # What all texts share says nothing; a name without a known word stays 0.
    middle = rows.mean(axis=0)
    named = np.where(named.any(axis=1, keepdims=True), named - middle, 0)
    return _of_length_1(rows - middle) @ _of_length_1(named).T


def _of_length_1(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rows divided by their lengths, (N, dimensions); what is 0 stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _word_vectors(
    texts: Sequence[str], reader: TfidfVectorizer, window: int, dimensions: int, seed: int
) -> NDArray[np.float64]:
    """U √Σ of the words' positive pointwise mutual information, (words, dimensions)."""
    together = _counted_together(texts, reader, window)
    totals = np.asarray(together.sum(axis=1)).ravel()
    contexts = totals**CONTEXT_POWER / max((totals**CONTEXT_POWER).sum(), 1.0)
    pairs = together.tocoo()
    information = np.log(pairs.data / (totals[pairs.row] * contexts[pairs.col])).clip(0)
    matrix = scipy.sparse.csr_matrix((information, (pairs.row, pairs.col)), together.shape)
    count = min(dimensions, len(totals))
    svd = cast("Any", randomized_svd)  # its stubs say that the iterations are a text
    left, spans, _ = svd(matrix, count, n_iter=SVD_ITERATIONS, random_state=short(seed))
    return left * np.sqrt(spans)


def _counted_together(
    texts: Sequence[str], reader: TfidfVectorizer, window: int
) -> scipy.sparse.csr_matrix:
    """How often two words stand within the window of each other, (words, words)."""
    split, numbers = reader.build_analyzer(), reader.vocabulary_
    found = [[numbers[word] for word in split(text) if word in numbers] for text in texts]
    words = np.asarray([word for text in found for word in text], dtype=np.int64)
    text_of = np.repeat(np.arange(len(found)), [len(text) for text in found])
    counts = scipy.sparse.csr_matrix((len(numbers), len(numbers)))
    for step in range(1, min(window, len(words) - 1) + 1):
        same = text_of[:-step] == text_of[step:]
        places = (words[:-step][same], words[step:][same])
        counts += scipy.sparse.csr_matrix((np.ones(same.sum()), places), counts.shape)
    return (counts + counts.T).tocsr()


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


def _smoothed(guess: Scores, graph: scipy.sparse.csr_matrix, share: float) -> Scores:
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
