"""Principal components of rows as they are: where neighbours and clusters are looked for."""

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.views import Views, outputs


def leading(pool: Views, components: int, seed: int) -> NDArray[np.float32]:
    """Principal components of every row's numbers, (N, components); of tokens, of their TF-IDF.

    How often a token occurs in a row plays no part, so that padding weighs as little as any token
    that most rows have. Where there are fewer rows or numbers, there are fewer components.
    """
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.pipeline import make_pipeline

    rows = outputs(nn.Flatten(), pool.part, pool.compute).numpy()
    if pool.clean(torch.tensor([0])).is_floating_point():
        return PCA(min(components, *rows.shape), random_state=seed).fit_transform(rows)
    at = np.arange(len(rows)).repeat(rows.shape[1])
    occurring = scipy.sparse.csr_matrix((np.ones(rows.size), (at, rows.ravel().astype(np.int64))))
    occurring.data[:] = 1
    count = min(components, len(rows), int(rows.max()) + 1)
    latent = TruncatedSVD(count, random_state=seed)
    return make_pipeline(TfidfTransformer(), latent).fit_transform(occurring)
