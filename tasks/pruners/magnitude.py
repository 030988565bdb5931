"""Structured pruning by the size of the weights."""

import warnings
from typing import Annotated, Literal

import torch
import torch_pruning
from pydantic import Field
from torch import Tensor, nn

from tasks.errors import CompressionError
from tasks.networks import Classifier
from tasks.pruners import Pruner

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)


class Magnitude(Pruner):
    """Removes whole channels whose weights have the smallest L2 norm, group by group.

    A channel is an output of a convolution or a linear layer, or a value of an embedding. Channels
    that depend on each other (residual sums, the following layer's inputs) go together (Fang et al.
    2023, arXiv:2301.12900). The head's outputs stay, and so does all that hangs together with a
    layer inside a module that says `keeps_widths = True`: attention, and with it the width of a
    transformer, so that there only the feed-forward networks get narrower.

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
        for parameter in network.parameters():
            parameter.requires_grad_()
        fixed = [network.head, *_fixed(network)]
        layers = _layers(network, fixed)
        before = _widths(layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch-pruning's advice on its defaults
            pruner = torch_pruning.pruner.BasePruner(
                network,
                example,
                importance=GroupNorm(),
                pruning_ratio=1 - self.keep_ratio,
                pruning_ratio_dict={m: self._ratio(_width(m)) for m in layers.values()},
                ignored_layers=fixed,
                root_module_types=list(ROOTS),
            )
            pruner.step()
        if before == _widths(layers):
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


class GroupNorm(torch_pruning.importance.GroupMagnitudeImportance):
    """torch-pruning's sum of squared weights by channel of a group, with embeddings in it."""

    def __init__(self) -> None:
        # The stubs do not know that None leaves the sums as they are.
        super().__init__(p=2, group_reduction="sum", normalizer=None)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def __call__(self, group: torch_pruning.Group) -> Tensor | None:
        """Squared norm of each channel of a group, (channels,); None where nothing has weights."""
        found = super().__call__(group)
        for item in (group[at] for at in range(len(group))):
            layer = item.dep.layer
            if isinstance(layer, nn.Embedding):
                squares = layer.weight[:, item.idxs].square().sum(0)
                found = torch.zeros_like(squares) if found is None else found
                found.scatter_add_(0, torch.tensor(item.root_idxs, device=squares.device), squares)
        return found


def _fixed(network: nn.Module) -> list[nn.Module]:
    return [found for found in network.modules() if getattr(found, "keeps_widths", False)]


def _layers(network: nn.Module, fixed: list[nn.Module]) -> dict[str, nn.Module]:
    inside = {layer for module in fixed for layer in module.modules()}
    return {
        name: found
        for name, found in network.named_modules()
        if isinstance(found, ROOTS) and found not in inside
    }


def _widths(layers: dict[str, nn.Module]) -> dict[str, int]:
    return {name: _width(layer) for name, layer in layers.items()}


def _width(layer: nn.Module) -> int:
    match layer:
        case nn.Linear():
            return layer.out_features
        case nn.Embedding():
            return layer.embedding_dim
        case nn.Conv1d() | nn.Conv2d():
            return layer.out_channels
        case _:
            raise TypeError(f"{type(layer).__name__} has no width")
