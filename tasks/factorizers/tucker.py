"""Tucker decomposition of convolutions in their two channel modes."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.factorizers import Factorizer, Layer, Options, by_matrix, lost, split_matrix
from tasks.networks import Factor


class Tucker(Factorizer):
    """1×1 to fewer channels, the kernel among these, 1×1 to the outputs.

    Kim et al. (2016, arXiv:1511.06530), with ranks by the singular values of the two unfoldings: a
    truncation in both loses at most the sum of what it loses in each (De Lathauwer et al. 2000a,
    property 10), so `energy` is kept for certain. Layers of one tap, and so all linear ones, are
    split by SVD. Grouped convolutions are split group by group.

    Attributes:
        iterations: Rounds of higher-order orthogonal iteration (De Lathauwer et al. 2000b) after
            the first truncation; none makes the error larger.
    """

    name: Literal["tucker"] = "tucker"
    iterations: Annotated[int, Field(ge=0)] = 5

    def options(self, layer: Layer) -> Options:
        """See `Factorizer.options`; ranks are (inputs, outputs)."""
        weight = layer.weight
        groups, outputs, inputs, taps = weight.shape
        if taps == 1:
            return by_matrix(layer)
        tails = [lost(torch.linalg.svdvals(one)) for one in (_by_inputs(weight), weight.flatten(2))]
        read, written = (torch.arange(1, len(one) + 1) for one in tails)
        first, core, last = (
            inputs * read[:, None],
            taps * torch.outer(read, written),
            written * outputs,
        )
        after = (core + last) * layer.positions_out
        # A core with fewer rows than columns in an unfolding has no use for the others.
        sound = (read[:, None] <= written * taps) & (written <= read[:, None] * taps)
        return Options(
            torch.cartesian_prod(read, written)[sound.flatten()],
            groups * (first + core + last)[sound],
            groups * (first * layer.positions_in + after)[sound],
            (tails[0][:, None] + tails[1])[sound],
        )

    def split(self, layer: Layer, ranks: tuple[int, ...]) -> tuple[Factor, list[Tensor]]:
        """See `Factorizer.split`."""
        weight = layer.weight
        if weight.shape[3] == 1:
            return split_matrix(layer, *ranks)
        read, written = ranks
        inner = _left(_by_inputs(weight), read)
        outer = _left(weight.flatten(2), written)
        for _ in range(self.iterations):
            outer = _left(torch.einsum("goit,gir->gort", weight, inner).flatten(2), written)
            inner = _left(torch.einsum("goit,gor->girt", weight, outer).flatten(2), read)
        core = torch.einsum("goit,gir,gos->gsrt", weight, inner, outer)
        return Factor(kind="tucker", ranks=ranks), [
            inner.transpose(1, 2)[..., None],
            core,
            outer[..., None],
        ]


def _by_inputs(weight: Tensor) -> Tensor:
    """The unfolding by inputs, (groups, inputs, outputs and taps)."""
    return weight.transpose(1, 2).flatten(2)


def _left(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors by group, (groups, rows, rank)."""
    return torch.linalg.svd(matrix, full_matrices=False)[0][:, :, :rank]
