"""Propagation: labels spread to their neighbours before the network learns."""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.components import leading
from tasks.rows import HIDDEN
from tasks.teachers import Lesson, Setting, Teacher
from tasks.views import outputs

# A label thins out with every edge, and the row that it reaches last has to count as well: hence a
# small tolerance. Its number of rounds grows with alpha, to some thousands at 0.99.
TOLERANCE, MOST_ROUNDS = 1e-9, 10_000


class Propagation(Teacher):
    """Label spreading (Zhou et al. 2004, NeurIPS 16) over the pool's nearest neighbours.

    F ← alpha · S F + (1 - alpha) · Y until it stands still, with Y the shown labels and S the
    normalised graph of each row's nearest neighbours among the principal components. Of the rows
    guessed to be in a class, the surest share is kept, and the network learns with
    CE(labelled) + pool_weight · CE(kept). All of this is settled before the first step.

    Attributes:
        pool_batch: Rows with a kept guess per step.
        features: What neighbours are near in: the `inputs`, flattened (of tokens: which of them
            occur, by TF-IDF), or the features of the `encoder`, the network's body as it starts.
        components: Principal components of these.
        neighbours: Edges of each row in the graph.
        alpha: Share of a row's label that comes from its neighbours in each round.
        keep_share: Share of each class's guesses that is kept.
        pool_weight: Weight of the cross entropy on them.
    """

    name: Literal["propagation"] = "propagation"
    pool_batch: Annotated[int, Field(ge=1)] = 128
    features: Literal["inputs", "encoder"] = "inputs"
    components: Annotated[int, Field(ge=1)] = 32
    neighbours: Annotated[int, Field(ge=1)] = 7
    alpha: Annotated[float, Field(gt=0, le=0.99)] = 0.9
    keep_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    pool_weight: Annotated[float, Field(ge=0)] = 1.0

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        labels = setting.pool.labels.cpu().numpy()
        found = spread(self._places(setting), labels, self.neighbours, self.alpha)
        return _PropagationLesson(self, setting, surest(found, labels, self.keep_share))

    def _places(self, setting: Setting) -> NDArray[np.float32]:
        from sklearn.decomposition import PCA

        pool, network = setting.pool, setting.network
        seed = pool.compute.generator("propagation").initial_seed() % 2**32
        if self.features == "inputs":
            return leading(pool, self.components, seed)
        training = network.training
        network.eval()
        rows = outputs(network.body, pool.part, pool.compute).numpy()
        network.train(training)
        return PCA(min(self.components, *rows.shape), random_state=seed).fit_transform(rows)


class _PropagationLesson(Lesson):
    guesses: Tensor

    def __init__(self, method: Propagation, setting: Setting, guesses: NDArray[np.int64]) -> None:
        super().__init__(setting)
        self.method = method
        self.register_buffer("guesses", torch.from_numpy(guesses))

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Cross entropy on labelled rows, and on pool rows whose guess was kept."""
        method, setting = self.method, self.setting
        supervised = method.labelled_loss(setting, generator)
        kept = (self.guesses != HIDDEN).nonzero().flatten().cpu()
        if not len(kept):
            return supervised
        index = kept[torch.randint(len(kept), (method.pool_batch,), generator=generator)]
        logits = setting.network(setting.pool.augmented(index, generator)).float()
        guesses = self.guesses[index.to(logits.device)]
        return supervised + method.pool_weight * functional.cross_entropy(logits, guesses)


def spread(
    rows: NDArray[np.floating[Any]], labels: NDArray[np.int64], neighbours: int, alpha: float
) -> NDArray[np.float64]:
    """What label spreading says of every row.

    Args:
        rows: Where they lie, (N, D).
        labels: Class numbers, (N,), with -1 where the label is hidden.
        neighbours: Edges of each row.
        alpha: See `Propagation`.

    Returns:
        Distributions, (N, classes up to the last one shown); zeros where no label arrives.
    """
    from sklearn.semi_supervised import LabelSpreading

    # scikit-learn counts a row among its own neighbours, and then leaves that edge out.
    count = min(neighbours + 1, len(rows))
    model = LabelSpreading(
        kernel="knn", n_neighbors=count, alpha=alpha, tol=TOLERANCE, max_iter=MOST_ROUNDS
    ).fit(rows, labels)
    found = np.zeros((len(rows), labels.max() + 1))
    found[:, model.classes_] = model.label_distributions_
    return found


def surest(
    found: NDArray[np.float64], labels: NDArray[np.int64], keep_share: float
) -> NDArray[np.int64]:
    """The guesses to keep: of each class's hidden rows the surest share, at least one.

    Args:
        found: What `spread` returns.
        labels: Class numbers, (N,), with -1 where the label is hidden.
        keep_share: Above 0, up to 1.

    Returns:
        Class numbers, (N,), with -1 where no guess is kept.
    """
    best, sureness = found.argmax(axis=1), found.max(axis=1)
    kept = np.full(len(found), HIDDEN)
    for number in range(found.shape[1]):
        guessed = np.flatnonzero((best == number) & (labels == HIDDEN) & (sureness > 0))
        order = guessed[np.argsort(-sureness[guessed], kind="stable")]
        kept[order[: math.ceil(keep_share * len(order))]] = number
    return kept
