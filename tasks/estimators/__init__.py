"""Estimators: scikit-learn models that teach, or stand beside a network in a comparison.

They see rows as scikit-learn does: texts where rows are texts, flat numbers elsewhere.
Stored with skops, never pickled.
"""

import io
import json
import zipfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tasks.drawers import Drawer
from tasks.errors import ArtifactError, ParamsError
from tasks.rows import HIDDEN, Part
from tasks.sections import Section
from tasks.word_vectors import WORD

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.semi_supervised import LabelSpreading

ESTIMATOR_FILE, METHOD_FILE, ANSWERS_FILE = (
    "estimator.skops",
    "estimator.json",
    "answers.safetensors",
)
SCHEMA_FILE = "schema.json"
SMALLEST_PROBABILITY = 1e-6
FEWEST_CLASSES = 2
LARGEST_VOCABULARY = 50_000
SVD_ITERATIONS = 2
SPREADING_STEPS, SPREADING_TOLERANCE = 1000, 1e-4

# What skops does not trust by itself. A prefix such as "numpy." would let a file call functions
# that run code (numpy.testing has one), so every type is named.
TRUSTED = frozenset(
    {
        "scipy.sparse._csr.csr_matrix",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    }
)
# What reading a damaged file may raise.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator.

    Attributes:
        model: The scikit-learn model; it can be asked about rows it never saw.
        answers: What the method says of the training rows, (N, classes) float32 logits. They may be
            better than the model's own, where the method looks at the pool as a whole.
    """

    model: Any
    answers: NDArray[np.float32]


class Estimator(Section):
    """Contract of an estimator.

    Attributes:
        takes: The modality that it is made for, by name; None takes any.
    """

    takes: ClassVar[str | None] = None

    @abstractmethod
    def fit(self, pool: Part, seed: int) -> Fitted:
        """Learns from the training rows.

        Args:
            pool: Every training row; `pool.labelled` are those whose label is shown.
            seed: Seed of everything random, up to 2^53; see `short`.
        """

    def logits(self, model: Any, part: Part) -> NDArray[np.float32]:  # noqa: ANN401
        """A fitted model's logits, (N, classes); by default the log of its probabilities."""
        found = model.predict_proba(readable(part))
        return spread(np.log(found.clip(SMALLEST_PROBABILITY)), model.classes_, part)


class MarginEstimator(Estimator):
    """Contract of estimators that know distances to boundaries, and no probabilities.

    Attributes:
        temperature: Divides the distances before the softmax.
    """

    temperature: float

    def logits(self, model: Any, part: Part) -> NDArray[np.float32]:  # noqa: ANN401
        """The log softmax of distances / temperature, (N, classes)."""
        found = scipy.special.log_softmax(
            decisions(model, readable(part)) / self.temperature, axis=1
        )
        return spread(found.clip(np.log(SMALLEST_PROBABILITY)), model.classes_, part)


ESTIMATORS = Drawer("tasks.estimators", Estimator)


def short(seed: int) -> int:
    """A seed as scikit-learn takes it: below 2^32."""
    return seed % 2**32


def readable(part: Part) -> Sequence[str] | NDArray[np.float32]:
    """Rows as scikit-learn takes them: texts, or flat float32 numbers (N, features)."""
    if part.texts is not None:
        return part.texts
    rows = np.asarray(part.inputs).reshape(len(part), -1)
    numbers = rows.astype(np.float32)
    return numbers / np.float32(255) if rows.dtype == np.uint8 else numbers


def spread(
    logits: NDArray[np.floating[Any]], seen: NDArray[np.int64], part: Part
) -> NDArray[np.float32]:
    """Columns for the classes a model knows, put among those of all classes; the rest impossible.

    Args:
        logits: (N, seen classes).
        seen: Their class numbers.
        part: Names the classes there are.

    Returns:
        (N, classes) float32.
    """
    whole = np.full((len(logits), len(part.encoding.classes)), np.log(SMALLEST_PROBABILITY))
    whole[:, seen] = logits
    return whole.astype(np.float32)


def taught(pool: Part) -> Part:
    """The labelled rows, for methods that tell the labelled classes apart.

    Raises:
        ParamsError: Fewer than two classes have labels.
    """
    known = pool.labelled
    count = len(np.unique(known.labels))
    if count < FEWEST_CLASSES:
        raise ParamsError(
            f"{count} class of the training rows has labels, this estimator needs 2 or more; show "
            "labels of more classes (prepare), or take class_names"
        )
    return known


def features(part: Part) -> Any:  # noqa: ANN401 - scikit-learn's transformers share no typed contract
    """What linear models read, not yet fitted.

    Texts: TF-IDF of words and word pairs, and of character n-grams (2 to 4) within words, which see
    what inflected and misspelt words share. Numbers: mean 0 and variance 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.preprocessing import StandardScaler

    if part.texts is None:
        return StandardScaler()
    return make_union(
        TfidfVectorizer(
            ngram_range=(1, 2),
            token_pattern=WORD,
            sublinear_tf=True,
            max_features=LARGEST_VOCABULARY,
        ),
        TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            sublinear_tf=True,
            max_features=LARGEST_VOCABULARY,
        ),
    )


def condensed(pool: Part, components: int, seed: int) -> tuple[Any, NDArray[np.float32]]:
    """Few features that the pool itself suggests.

    Texts: latent semantic analysis (Deerwester et al. 1990), rows of length 1. Numbers: principal
    components.

    Args:
        pool: Every training row; labels play no part.
        components: How many features; fewer where the pool allows no more.
        seed: Of the randomised decomposition.

    Returns:
        The fitted pipeline, and the pool's rows under it, (N, components).
    """
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    rows = readable(pool)
    first = features(pool).fit(rows)
    wide = first.transform(rows)
    count = min(components, *wide.shape)
    if pool.texts is None:
        rest = make_pipeline(PCA(count, random_state=short(seed)))
    else:
        svd = TruncatedSVD(count, n_iter=SVD_ITERATIONS, random_state=short(seed))
        rest = make_pipeline(svd, Normalizer())
    points = rest.fit_transform(wide).astype(np.float32)
    return make_pipeline(first, *(step for _, step in rest.steps)), points


def neighbour_graph(points: NDArray[np.float32], count: int) -> "csr_matrix":
    """Which rows are near to which, (N, N) of 0 and 1: symmetric, no row its own neighbour."""
    from sklearn.neighbors import NearestNeighbors

    most = min(count, len(points) - 1)
    if not most:
        return scipy.sparse.csr_matrix((len(points), len(points)))
    near = NearestNeighbors(n_neighbors=most).fit(points).kneighbors_graph(mode="connectivity")
    return near.maximum(near.T)


def spreading(
    points: NDArray[np.float32], labels: NDArray[np.int64], neighbours: int, reach: float
) -> "LabelSpreading":
    """Label spreading (Zhou et al. 2003, "Learning with Local and Global Consistency").

    F ← α D^(-1/2) W D^(-1/2) F + (1 - α) Y until it rests, over the graph of nearest neighbours.

    Args:
        points: (N, features).
        labels: (N,), with -1 where hidden.
        neighbours: Per row.
        reach: α, the share that a row takes from its neighbours, at most 0.99.

    Returns:
        A fitted model. `label_distributions_` are the rows' class probabilities, (N, labelled
        classes); rows that no label reaches have even ones. A row it never saw takes the mean of
        its neighbours'.
    """
    from sklearn.semi_supervised import LabelSpreading

    model = LabelSpreading(
        # scikit-learn's own graph is not symmetric, and 2 to 3 points less accurate on CLINC150.
        kernel=lambda rows, _: neighbour_graph(rows, neighbours),  # pyright: ignore[reportArgumentType] - in scikit-learn's docs, not in its stubs
        alpha=reach,
        max_iter=SPREADING_STEPS,
        tol=SPREADING_TOLERANCE * int((labels != HIDDEN).sum()),
    ).fit(points, labels)
    found = model.label_distributions_
    found[found.sum(axis=1) == 0] = 1 / found.shape[1]
    model.set_params(kernel="knn", n_neighbors=min(neighbours, len(points)))
    model.nn_fit = None  # scikit-learn builds it when it is asked about unseen rows
    return model


def decisions(
    model: Any,  # noqa: ANN401
    rows: Sequence[str] | NDArray[np.float32],
) -> NDArray[np.float64]:
    """A model's distances to its boundaries, (N, its classes), also where it knows two."""
    found = model.decision_function(rows)
    return np.stack([-found, found], axis=1) if found.ndim == 1 else found


def confident(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], share: float
) -> NDArray[np.int64]:
    """Shown labels, and guesses where they are surest.

    Args:
        probabilities: (N, classes).
        labels: (N,), with -1 where hidden.
        share: Share of the guesses of each class that is kept.

    Returns:
        Class numbers, (N,), with -1 where the guess is not kept.
    """
    guesses, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    kept = labels.copy()
    hidden = labels == HIDDEN
    for number in np.unique(guesses[hidden]):
        rows = np.flatnonzero(hidden & (guesses == number))
        least = np.quantile(sureness[rows], 1 - share)
        kept[rows[sureness[rows] >= least]] = number
    return kept


def save(folder: Path, method: Estimator, fitted: Fitted) -> None:
    """Writes the model, the method that made it and its answers on the training rows.

    Equal models give equal bytes.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from skops.io import dumps

    (folder / METHOD_FILE).write_text(json.dumps(method.plain(), indent=2), encoding="utf-8")
    for step in fitted.model.get_params().values():
        if isinstance(step, TfidfVectorizer):
            _tidy(step)
    (folder / ESTIMATOR_FILE).write_bytes(_settled(dumps(fitted.model)))
    save_file({"logits": np.ascontiguousarray(fitted.answers)}, folder / ANSWERS_FILE)


def load(folder: Path) -> tuple[Estimator, Any]:
    """A stored method and its model; only types that skops trusts or `TRUSTED` names are built.

    Raises:
        ArtifactError: A file is missing or damaged, or names a type that is not trusted.
    """
    from skops import io as skops

    path = folder / ESTIMATOR_FILE
    try:
        method = ESTIMATORS.parse(json.loads((folder / METHOD_FILE).read_text(encoding="utf-8")))
        foreign = sorted(set(skops.get_untrusted_types(file=path)) - TRUSTED)
        model = None if foreign else skops.load(path, trusted=sorted(TRUSTED))
    except DAMAGE as error:
        raise ArtifactError(f"{path} holds no whole estimator: {error}") from None
    if foreign:
        raise ArtifactError(f"{path} names types that are not trusted: {', '.join(foreign)}")
    return method, model


def is_stored(folder: Path) -> bool:
    """Whether a folder holds an estimator."""
    return (folder / ESTIMATOR_FILE).is_file()


def answers(folder: Path) -> NDArray[np.float32]:
    """What a stored estimator said of the training rows, (N, classes)."""
    return load_file(folder / ANSWERS_FILE)["logits"]


def _tidy(vectorizer: "TfidfVectorizer") -> None:
    """Leaves out what skops would store slowly, and what differs from process to process."""
    # scikit-learn mixes in numpy's integers, each of which would become a file of its own.
    vectorizer.vocabulary_ = {term: int(at) for term, at in vectorizer.vocabulary_.items()}
    # The place in memory of its list of stop words; scikit-learn looks again where it is missing.
    vars(vectorizer).pop("_stop_words_id", None)


def _settled(dumped: bytes) -> bytes:
    """A skops file whose bytes follow from the model alone.

    skops names files and objects by their place in memory, and the archive dates them.
    """
    numbers: dict[int, int] = {}
    names: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(dumped)) as archive:
        schema = json.loads(archive.read(SCHEMA_FILE))
        _settle(schema, numbers, names)
        files = {new: archive.read(old) for old, new in names.items()}
    files[SCHEMA_FILE] = json.dumps(schema, separators=(",", ":")).encode()
    settled = io.BytesIO()
    with zipfile.ZipFile(settled, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return settled.getvalue()


def _settle(node: object, numbers: dict[int, int], names: dict[str, str]) -> None:
    """Numbers a skops tree's objects and files in the order in which they are met, in place."""
    if isinstance(node, list):
        for inner in node:
            _settle(inner, numbers, names)
    if not isinstance(node, dict):
        return
    # A dict that the model holds may have the same keys, but nodes where skops has plain values.
    if isinstance(node.get("__id__"), int):
        node["__id__"] = numbers.setdefault(node["__id__"], len(numbers) + 1)
    if isinstance(file := node.get("file"), str):
        node["file"] = names.setdefault(file, f"{len(names)}{Path(file).suffix}")
    for inner in node.values():
        _settle(inner, numbers, names)
