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
        round_to: Kept widths are multiples of this; other widths ran slower than the dense network.
    """

    name: Literal["magnitude"] = "magnitude"
    keep_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    round_to: Annotated[int, Field(ge=1)] = 8

    def prune(self, network: Classifier, example: Tensor) -> None:
        """See `Pruner.prune`."""
        before = _widths(network)
        head: list[nn.Module] = [network.head]
        for parameter in network.parameters():
            parameter.requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch-pruning's advice on its own defaults
            pruner = torch_pruning.pruner.BasePruner(
                network,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - self.keep_ratio,
                round_to=self.round_to,
                ignored_layers=head,
            )
            pruner.step()
        self._check(before, _widths(network))

    def _check(self, before: dict[str, int], after: dict[str, int]) -> None:
        emptied = [name for name, width in after.items() if width < 1]
        if emptied:
            raise CompressionError(
                f"keep_ratio {self.keep_ratio} leaves no channel in '{emptied[0]}'; raise it"
            )
        if before == after:
            widths = ", ".join(f"'{name}' {width}" for name, width in before.items())
            raise CompressionError(
                f"keep_ratio {self.keep_ratio} with round_to {self.round_to} removes nothing from "
                f"{widths}; widen the student, or lower keep_ratio or round_to"
            )


def _widths(network: nn.Module) -> dict[str, int]:
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    return {name: module.out_channels for name, module in convolutions}
