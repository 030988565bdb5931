"""Words by the company they keep: vectors that a pool of texts itself suggests.

The factorised positive pointwise mutual information of words that stand near each other (Levy and
Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization").
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

WORD = r"(?u)\b\w+\b"  # scikit-learn's own pattern drops words of one letter, such as "i"
WORDS_WITH_VECTORS = 20_000
CONTEXT_POWER = 0.75
SVD_ITERATIONS = 4


def company(
    texts: Sequence[str], names: Sequence[str], window: int, dimensions: int, seed: int
) -> NDArray[np.float64]:
    """Cosines of texts and names, both weighted means of their words' vectors, (N, names)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = TfidfVectorizer(
        token_pattern=WORD, sublinear_tf=True, max_features=WORDS_WITH_VECTORS
    ).fit(texts)
    vectors = word_vectors(texts, reader, window, dimensions, seed)
    weights = [cast("csr_matrix", reader.transform(side)) for side in (texts, names)]
    rows, named = (_of_length_1(side @ vectors) for side in weights)
    # What all texts share says nothing; a name without a known word stays 0.
    middle = rows.mean(axis=0)
    named = np.where(named.any(axis=1, keepdims=True), named - middle, 0)
    return _of_length_1(rows - middle) @ _of_length_1(named).T


def _of_length_1(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rows divided by their lengths, (N, dimensions); what is 0 stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def word_vectors(
    texts: Sequence[str], reader: "TfidfVectorizer", window: int, dimensions: int, seed: int
) -> NDArray[np.float64]:
    """U √Σ of the words' positive pointwise mutual information, (words, dimensions)."""
    from sklearn.utils.extmath import randomized_svd

    together = counted_together(texts, reader, window)
    totals = np.asarray(together.sum(axis=1)).ravel()
    contexts = totals**CONTEXT_POWER / max((totals**CONTEXT_POWER).sum(), 1.0)
    pairs = together.tocoo()
    information = np.log(pairs.data / (totals[pairs.row] * contexts[pairs.col])).clip(0)
    matrix = scipy.sparse.csr_matrix((information, (pairs.row, pairs.col)), together.shape)
    count = min(dimensions, len(totals))
    svd = cast("Any", randomized_svd)  # its stubs say that the iterations are a text
    left, spans, _ = svd(matrix, count, n_iter=SVD_ITERATIONS, random_state=seed)
    return left * np.sqrt(spans)


def counted_together(texts: Sequence[str], reader: "TfidfVectorizer", window: int) -> "csr_matrix":
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
