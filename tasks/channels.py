"""Channels of a network that go together: which there are, what reads them, and how some go.

A channel is an output of a convolution or a linear layer, or a value of an embedding. Channels that
depend on each other (residual sums, the following layer's inputs) form one group (Fang et al. 2023,
arXiv:2301.12900, by torch-pruning's dependency graph) and go together. The head's outputs stay, and
so does all that hangs together with a layer inside a module that says `keeps_widths = True`:
attention, and with it the width of a transformer, so that there only the feed-forward networks get
narrower.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from tasks.errors import CompressionError
from tasks.networks import Classifier

WIDE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)
"""Layers that make channels."""

NORMALISATIONS = (BatchNorm, nn.LayerNorm)
# What torch-pruning and the networks it traces raise where they meet what they do not know.
UNTRACEABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
ROWS_AT_ONCE = 64

Role = Literal["make", "read", "scale"]
Layers = tuple[str, ...]
"""Names of the layers that make a group's channels: what a group is known by."""


@dataclass(frozen=True)
class Member:
    """A layer's part in a group.

    Attributes:
        layer: Holds weights.
        role: Whether it makes the channels, reads them, or normalises what passes through.
        channels: Which of the layer's own outputs (or inputs, where it reads) belong to the group.
        positions: Which of the group's channels each of them is.
    """

    layer: nn.Module
    role: Role
    channels: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Group:
    """Channels that go together.

    Attributes:
        layers: Names of the layers that make them, in the network's order.
        width: How many channels there are.
        parts: Equal runs of channels that must stay as wide as each other (grouped convolutions).
        members: The layers with weights; from the first of them, all others are found.
    """

    layers: Layers
    width: int
    parts: int
    members: tuple[Member, ...]

    def those_that(self, role: Role) -> list[Member]:
        """The members of a role."""
        return [member for member in self.members if member.role == role]

    def total(self, values: Callable[[Member], Tensor], members: Iterable[Member]) -> Tensor:
        """Sums what members say of their own channels, (…, channels) each, by the group's channels.

        Args:
            values: What a member says.
            members: At least one.

        Returns:
            (…, width).
        """
        found = [(member.positions, values(member)) for member in members]
        sums = found[0][1].new_zeros(*found[0][1].shape[:-1], self.width)
        for positions, said in found:
            sums = sums.index_add(-1, torch.tensor(positions, device=said.device), said)
        return sums


def squares(member: Member) -> Tensor:
    """Sum of the squared weights of each of a member's channels, (channels,)."""
    weight = member.layer.get_parameter("weight")
    if member.role == "scale":
        return weight[member.channels].abs().pow(2)
    if isinstance(member.layer, nn.Embedding):
        return weight[:, member.channels].square().sum(0)
    if member.role == "make":
        return weight[member.channels].flatten(1).abs().pow(2).sum(1)
    read = weight.transpose(0, 1).flatten(1).abs().pow(2).sum(1)
    return read.repeat(getattr(member.layer, "groups", 1))[member.channels]


def fixed(network: Classifier) -> list[nn.Module]:
    """Modules whose widths stay."""
    found = (module for module in network.modules() if getattr(module, "keeps_widths", False))
    return [network.head, *found]


def named(network: Classifier) -> str:
    """What messages call a network."""
    return f"the network ({type(network.body).__name__})"


class Channels:
    """All groups of a network that may get narrower.

    Args:
        network: In evaluation mode, on the CPU; all its weights are made trainable.
        example: A batch of at least 2 rows, as the network takes them.

    Attributes:
        groups: In the order of the network's layers.

    Raises:
        CompressionError: The network cannot be traced.
    """

    def __init__(self, network: Classifier, example: Tensor) -> None:
        self.network, self.example = network, example
        for parameter in network.parameters():
            parameter.requires_grad_()
        names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
        kept = [layer for module in fixed(network) for layer in module.modules()]
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # advice on the library's defaults
                self.graph = torch_pruning.DependencyGraph().build_dependency(network, example)
                found = list(self.graph.get_all_groups(kept, WIDE))
        except UNTRACEABLE as error:
            raise CompressionError(_untraceable(network, error)) from error
        order = list(names.values())
        groups = (self._group(raw, names) for raw in found)
        self.groups = sorted(groups, key=lambda group: order.index(group.layers[0]))

    def _group(self, raw: torch_pruning.Group, names: Mapping[nn.Module, str]) -> Group:
        members = []
        for item in (raw[at] for at in range(len(raw))):
            role = self._role(item.dep.layer, item.dep.pruning_fn)
            if role and None not in item.root_idxs:
                members.append(Member(item.dep.layer, role, item.idxs, item.root_idxs))
        makers = {member.layer for member in members if member.role == "make"}
        layers = [name for layer, name in names.items() if layer in makers]
        parts = [_parts(member.layer) for member in members if member.role != "scale"]
        return Group(tuple(layers), len(raw[0].idxs), max(parts), tuple(members))

    def _role(self, layer: nn.Module, function: Callable[..., object]) -> Role | None:
        if isinstance(layer, NORMALISATIONS):
            return "scale" if layer.weight is not None else None
        if not isinstance(layer, WIDE):
            return None
        return "make" if self.graph.is_out_channel_pruning_fn(function) else "read"

    def narrow(self, kept: Mapping[Layers, int], scores: Mapping[Layers, Tensor]) -> None:
        """Removes, of each group, the channels that score least.

        Args:
            kept: How many channels stay, by the group's layers.
            scores: What each channel is worth, (width,), by the group's layers.

        Raises:
            CompressionError: The network no longer runs, which means that something in it counts on
                a width that the graph does not know of.
        """
        for group in self.groups:
            if kept.get(group.layers, group.width) < group.width:
                self._remove(group, _least(group, kept[group.layers], scores[group.layers]))
        try:
            with torch.no_grad():
                self.network(self.example)
        except UNTRACEABLE as error:
            raise CompressionError(_untraceable(self.network, error)) from error

    def _remove(self, group: Group, channels: list[int]) -> None:
        root = group.members[0].layer
        try:
            pruner: Any = self.graph.get_pruner_of_module(root)
            self.graph.get_pruning_group(root, pruner.prune_out_channels, channels).prune()
        except UNTRACEABLE as error:
            raise CompressionError(_untraceable(self.network, error)) from error


def _parts(layer: nn.Module) -> int:
    groups = int(getattr(layer, "groups", 1))
    # A convolution of each channel by itself can lose any of them.
    return 1 if groups == getattr(layer, "out_channels", None) else groups


def _least(group: Group, kept: int, scores: Tensor) -> list[int]:
    """Positions of the channels that score least, as many in each part."""
    worth = scores.detach().view(group.parts, -1).mean(0)
    count = (group.width - kept) // group.parts
    least = torch.topk(worth, count, largest=False).indices
    starts = torch.arange(group.parts).unsqueeze(1) * len(worth)
    return (starts + least).flatten().sort().values.tolist()


def _untraceable(network: Classifier, error: Exception) -> str:
    return (
        f"{named(network)} cannot be pruned by channels: its dependency graph fails "
        f"with {type(error).__name__}: {' '.join(str(error).split())[:200]}; say `keeps_widths = "
        "True` in the module that counts on its width, or take depth or unstructured"
    )


@contextmanager
def listening(layers: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What layers are given while the network runs.

    Each has a copy of its own, so that a gradient with respect to it is what this layer sends back.
    """
    heard: dict[nn.Module, Tensor] = {}

    def hear(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heard[layer] = inputs[0].clone()
        return (heard[layer], *inputs[1:])

    handles = [layer.register_forward_pre_hook(hear) for layer in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    """What a layer is given, with all positions in one place: (N, positions, channels)."""
    if isinstance(layer, nn.Linear):
        return values.flatten(1, -2) if values.dim() > 2 else values.unsqueeze(1)  # noqa: PLR2004
    return values.flatten(2).transpose(1, 2)


def said_by_readers(
    groups: Sequence[Group],
    rows: int,
    ask: Callable[[slice, list[nn.Module]], dict[nn.Module, Tensor]],
) -> list[Tensor]:
    """Gathers what the layers that read each group say of its channels, row by row.

    Args:
        groups: Each with at least one layer that reads it.
        rows: How many there are.
        ask: For some rows, what each of the given layers says of its own inputs, (N, inputs).

    Returns:
        Sums over the readers, (rows, width) by group.
    """
    layers = list({member.layer for group in groups for member in group.those_that("read")})
    found: list[list[Tensor]] = [[] for _ in groups]
    for start in range(0, rows, ROWS_AT_ONCE):
        said = ask(slice(start, start + ROWS_AT_ONCE), layers)

        def of_its_own(member: Member, said: dict[nn.Module, Tensor] = said) -> Tensor:
            return said[member.layer][:, member.channels]

        for sums, group in zip(found, groups, strict=True):
            sums.append(group.total(of_its_own, group.those_that("read")))
    return [torch.cat(sums) for sums in found]
