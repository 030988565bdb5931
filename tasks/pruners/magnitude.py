"""Structured pruning by the size of the weights."""

import warnings
from typing import Annotated, Literal

import torch_pruning
from pydantic import Field
from torch import Tensor, nn

from tasks.errors import CompressionError
from tasks.networks import Classifier
from tasks.pruners import Pruner


class Magnitude(Pruner):
    """Removes whole channels whose weights have the smallest L2 norm, group by group.

    Channels that depend on each other (residual sums, the following layer's inputs) go together
    (Fang et al. 2023, arXiv:2301.12900).

    Attributes:
        keep_ratio: Share of each layer's channels to keep.
        round_to: Kept widths are multiples of this, at least one; other widths ran slower than the
            dense network. A layer narrower than this stays as it is.
    """

    name: Literal["magnitude"] = "magnitude"
    keep_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    round_to: Annotated[int, Field(ge=1)] = 8

    def prune(self, network: Classifier, example: Tensor) -> None:
        """See `Pruner.prune`."""
        before = _widths(network)
        for parameter in network.parameters():
            parameter.requires_grad_()
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch-pruning's advice on its defaults
            pruner = torch_pruning.pruner.BasePruner(
                network,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - self.keep_ratio,
                pruning_ratio_dict={m: self._ratio(m.out_channels) for m in convolutions},
                ignored_layers=[network.head],
            )
            pruner.step()
        if before == _widths(network):
            widths = ", ".join(f"'{name}' {width}" for name, width in before.items())
            raise CompressionError(
                f"keep_ratio {self.keep_ratio} with round_to {self.round_to} removes nothing from "
                f"the widths {widths}; widen the student, or lower round_to"
            )

    def kept(self, width: int) -> int:
        """Channels that stay of a layer's `width`: a multiple of `round_to`, at least one of it."""
        multiple = max(1, round(width * self.keep_ratio / self.round_to))
        return min(width, multiple * self.round_to)

    def _ratio(self, width: int) -> float:
        # torch-pruning rounds what stays down; half a channel more keeps it off the edge.
        return max(0.0, 1 - (self.kept(width) + 0.5) / width)


def _widths(network: nn.Module) -> dict[str, int]:
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    return {name: module.out_channels for name, module in convolutions}
