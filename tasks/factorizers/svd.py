"""Truncated singular value decomposition."""

from typing import Literal

from torch import Tensor

from tasks.factorizers import Factorizer, Layer, Options, by_matrix, split_matrix
from tasks.networks import Factor


class Svd(Factorizer):
    """W ≈ U·V, the nearest product of its rank (Eckart and Young 1936).

    A linear layer becomes two (Denton et al. 2014, arXiv:1404.0736). A convolution becomes one with
    its kernel to fewer channels and a 1×1 one to the outputs (Zhang et al. 2016, arXiv:1505.06798,
    without the data): both run on the smaller map where it has a stride, and its kernel stays one
    that runtimes are tuned for. Grouped convolutions are split group by group.
    """

    name: Literal["svd"] = "svd"

    def options(self, layer: Layer) -> Options:
        """See `Factorizer.options`."""
        return by_matrix(layer)

    def split(self, layer: Layer, ranks: tuple[int, ...]) -> tuple[Factor, list[Tensor]]:
        """See `Factorizer.split`."""
        return split_matrix(layer, *ranks)
