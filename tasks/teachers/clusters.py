"""Clusters: the network also tells which group of the pool a row lies in."""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.components import leading
from tasks.teachers import Lesson, Setting, Teacher


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
        from sklearn.cluster import KMeans

        seed = setting.pool.compute.generator("clusters").initial_seed() % 2**32
        found = leading(setting.pool, self.components, seed)
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
