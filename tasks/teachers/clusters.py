"""Clusters: the network also tells which group of the pool a row lies in."""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from torch.nn import functional

from tasks.teachers import Lesson, Setting, Teacher
from tasks.views import Views, outputs


class Clusters(Teacher):
    """Cluster assignments as a second task (after Caron et al. 2018, arXiv:1807.05520).

    CE(labelled) + pool_weight · CE(auxiliary head, cluster of the row) over the pool rows of a
    step. The clusters are those of k-means among the principal components of the rows as they are,
    settled before the first step; the paper clusters features, again and again. The auxiliary head
    is linear, on the body's features, and thrown away.

    Attributes:
        pool_batch: Pool rows per step.
        clusters: How many.
        components: Principal components of the inputs, flattened (of tokens: of which of them
            occur, by TF-IDF).
        pool_weight: Weight of the auxiliary cross entropy.
    """

    name: Literal["clusters"] = "clusters"
    pool_batch: Annotated[int, Field(ge=1)] = 128
    clusters: Annotated[int, Field(ge=2)] = 50
    components: Annotated[int, Field(ge=1)] = 32
    pool_weight: Annotated[float, Field(ge=0)] = 0.5

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        seed = setting.pool.compute.generator("clusters").initial_seed() % 2**32
        found = places(setting.pool, self.components, seed)
        means = KMeans(min(self.clusters, len(found)), random_state=seed)
        return _ClustersLesson(self, setting, means.fit_predict(found).astype(np.int64))


class _ClustersLesson(Lesson):
    clusters: Tensor

    def __init__(self, method: Clusters, setting: Setting, clusters: NDArray[np.int64]) -> None:
        super().__init__(setting)
        self.method = method
        self.register_buffer("clusters", torch.from_numpy(clusters))
        self.head = nn.Linear(_width(setting), method.clusters)

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Cross entropy of labels on labelled rows, and of clusters on pool rows."""
        method, setting = self.method, self.setting
        supervised = method.labelled_loss(setting, generator)
        index = setting.pool.sample(method.pool_batch, generator)
        features = setting.network.body(setting.pool.augmented(index, generator))
        cluster = self.clusters[index.to(self.clusters.device)]
        auxiliary = functional.cross_entropy(self.head(features).float(), cluster)
        return supervised + method.pool_weight * auxiliary


@torch.no_grad()
def _width(setting: Setting) -> int:
    """Width of the body's features; the network is left as it was."""
    network = setting.network
    training = network.training
    network.eval()
    found = network.body(setting.pool.clean(torch.tensor([0])))
    network.train(training)
    return found.shape[1]


def places(pool: Views, components: int, seed: int) -> NDArray[np.float32]:
    """Principal components of every row's numbers, (N, components); of tokens, of their TF-IDF.

    How often a token occurs in a row plays no part, so that padding weighs as little as any token
    that most rows have. Where there are fewer rows or numbers, there are fewer components.
    """
    rows = outputs(nn.Flatten(), pool.part, pool.compute).numpy()
    if pool.clean(torch.tensor([0])).is_floating_point():
        return PCA(min(components, *rows.shape), random_state=seed).fit_transform(rows)
    at = np.arange(len(rows)).repeat(rows.shape[1])
    occurring = csr_matrix((np.ones(rows.size), (at, rows.ravel().astype(np.int64))))
    occurring.data[:] = 1
    count = min(components, len(rows), int(rows.max()) + 1)
    latent = TruncatedSVD(count, random_state=seed)
    return make_pipeline(TfidfTransformer(), latent).fit_transform(occurring)
