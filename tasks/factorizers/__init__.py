"""Factorizers: a layer's weight as a product of smaller ones."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tasks.drawers import Drawer
from tasks.errors import CompressionError
from tasks.networks import Classifier, Factor, replace_layer
from tasks.sections import Section

SMALLEST = 1e-300


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution, and where it stands.

    Attributes:
        path: Its name in the network.
        module: The layer itself.
        positions_in: Places of one row's input that it reads: pixels of a map, tokens; 1 for a row.
        positions_out: Places of one row's output that it writes.
    """

    path: str
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    positions_in: int
    positions_out: int

    @property
    def weight(self) -> Tensor:
        """Its weight (groups, outputs by group, inputs by group, taps), in float64."""
        weight = self.module.weight.detach().double()
        groups = 1 if isinstance(self.module, nn.Linear) else self.module.groups
        return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weight, as the layer holds it."""
        return tuple(self.module.weight.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one row."""
        return self.module.weight.numel() * self.positions_out


@dataclass(frozen=True)
class Options:
    """All ranks that a layer could be split to, one a row.

    Attributes:
        ranks: (options, 1 or 2).
        parameters: Weights of the smaller layers, (options,); the bias stays as it is.
        macs: Their multiply-accumulates, (options,).
        lost: Share of the squared weight that goes, or the least upper bound known, (options,).
    """

    ranks: Tensor
    parameters: Tensor
    macs: Tensor
    lost: Tensor


class Factored(BaseModel):
    """What became of one layer.

    Attributes:
        layer: Its name in the network.
        shape: Of its weight before.
        factor: What stands in its place; None of a layer that stayed whole.
        relative_error: Frobenius norm of what the product lacks of the weight, by the weight's own,
            before any training.
        parameters_before: Weights and biases.
        parameters_after: The same, of what stands in its place.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    shape: tuple[int, ...]
    factor: Factor | None
    relative_error: float
    parameters_before: int
    parameters_after: int


class Factorizer(Section):
    """Contract of a factorizer, and the choice of ranks that all share.

    A layer is split where that takes parameters and multiply-accumulates off it, else it stays
    whole. Outputs keep their shapes, so heads and attention are treated as any other layer.

    Attributes:
        energy: Least share of each layer's squared weight to keep, with the fewest weights; or
        keep_ratio: most of each layer's weights to keep, at the least error. One of the two.
        round_to: Ranks are multiples of this, by group. A layer too narrow for one that the rule
            allows stays whole: ranks of 2 in a stem and 4 in a head of 10 classes cost a ResNet-8
            more than they saved.
    """

    energy: Annotated[float, Field(gt=0, lt=1)] | None = None
    keep_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    round_to: Annotated[int, Field(ge=1)] = 8

    @model_validator(mode="after")
    def _has_one_rule(self) -> "Factorizer":
        if (self.energy is None) == (self.keep_ratio is None):
            raise ValueError("set energy or keep_ratio, and not both")
        return self

    @abstractmethod
    def options(self, layer: Layer) -> Options:
        """The ranks that a layer could be split to, and what each costs."""

    @abstractmethod
    def split(self, layer: Layer, ranks: tuple[int, ...]) -> tuple[Factor, list[Tensor]]:
        """What to put in a layer's place.

        Args:
            layer: Where it is.
            ranks: One row of `Options.ranks`.

        Returns:
            The factor, and its layers' weights in the order in which they run, each
            (groups, outputs by group, inputs by group, taps).
        """

    def factorize(self, network: Classifier, example: Tensor) -> list[Factored]:
        """Replaces layers of a network in place.

        Args:
            network: In evaluation mode, on the CPU.
            example: A batch of rows, as the network takes them.

        Returns:
            Every linear layer and convolution, in the order in which they run.

        Raises:
            CompressionError: No layer would shrink; names them.
        """
        layers = layers_of(network, example)
        found = [self._replace(network, layer) for layer in layers]
        if all(one.factor is None for one in found):
            names = ", ".join(f"'{one.path}' {'x'.join(map(str, one.shape))}" for one in layers)
            raise CompressionError(
                f"{self._rule} with round_to {self.round_to} would shrink no layer in parameters "
                f"and multiply-accumulates, of {names}; {self._cure} it, or lower round_to"
            )
        return found

    def choose(self, layer: Layer) -> tuple[int, ...] | None:
        """The ranks by the rule, or None where the layer stays whole."""
        found = self.options(layer)
        whole = layer.module.weight.numel()
        allowed = (found.ranks % self.round_to == 0).all(1)
        allowed &= (found.parameters < whole) & (found.macs < layer.macs)
        if self.energy is not None:
            allowed &= found.lost <= 1 - self.energy
        if self.keep_ratio is not None:
            allowed &= found.parameters <= self.keep_ratio * whole
        (rows,) = torch.nonzero(allowed, as_tuple=True)
        if not len(rows):
            return None
        judged = found.lost if self.energy is None else found.parameters
        return tuple(found.ranks[rows[judged[rows].argmin()]].tolist())

    def _replace(self, network: Classifier, layer: Layer) -> Factored:
        ranks = self.choose(layer)
        before = after = _count(layer.module)
        factor, error = None, 0.0
        if ranks is not None:
            factor, weights = self.split(layer, ranks)
            smaller = replace_layer(network, layer.path, factor)
            _fill(smaller, weights, layer.module.bias)
            error, after = relative(layer.weight, product(weights)), _count(smaller)
        return Factored(
            layer=layer.path,
            shape=layer.shape,
            factor=factor,
            relative_error=error,
            parameters_before=before,
            parameters_after=after,
        )

    @property
    def _rule(self) -> str:
        return f"keep_ratio {self.keep_ratio}" if self.energy is None else f"energy {self.energy}"

    @property
    def _cure(self) -> str:
        return "raise" if self.energy is None else "lower"


FACTORIZERS = Drawer("tasks.factorizers", Factorizer)


def layers_of(network: nn.Module, example: Tensor) -> list[Layer]:
    """Every linear layer and convolution that a batch runs through, in that order.

    Args:
        network: In evaluation mode.
        example: A batch of rows.
    """
    names = {module: name for name, module in network.named_modules()}
    found: dict[str, Layer] = {}

    def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        match module:
            case nn.Linear():
                read, written = module.in_features, module.out_features
            case nn.Conv1d() | nn.Conv2d():
                read, written = module.in_channels, module.out_channels
            case _:
                return
        places = inputs[0][0].numel() // read, output[0].numel() // written
        found[names[module]] = Layer(names[module], module, *places)

    handles = [module.register_forward_hook(see) for module in network.modules()]
    try:
        with torch.no_grad():
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def relative(weight: Tensor, product: Tensor) -> float:
    """Frobenius norm of the difference by the weight's own; 0 for a weight of zeros alone."""
    return float((weight - product).norm() / weight.norm().clamp_min(SMALLEST))


def lost(singular: Tensor) -> Tensor:
    """Share of the squares that ranks 1, 2 … leave out (Eckart and Young 1936).

    Args:
        singular: Singular values by group, (groups, values), large to small.

    Returns:
        (values,); the last is 0.
    """
    squares = singular.square().sum(0)
    tails = squares.flip(0).cumsum(0).flip(0)
    return torch.cat([tails[1:], tails.new_zeros(1)]) / tails[0].clamp_min(SMALLEST)


def by_matrix(layer: Layer) -> Options:
    """Ranks of the weight as a matrix by group, (outputs, inputs and taps)."""
    weight = layer.weight
    groups, outputs, inputs, taps = weight.shape
    tails = lost(torch.linalg.svdvals(weight.flatten(2)))
    ranks = torch.arange(1, len(tails) + 1)
    parameters = groups * ranks * (inputs * taps + outputs)
    return Options(ranks[:, None], parameters, parameters * layer.positions_out, tails)


def split_matrix(layer: Layer, rank: int) -> tuple[Factor, list[Tensor]]:
    """The best split of the weight as a matrix by group: truncated SVD, σ shared out evenly."""
    weight = layer.weight
    u, singular, v = torch.linalg.svd(weight.flatten(2), full_matrices=False)
    root = singular[:, :rank].sqrt()
    first = (root[:, :, None] * v[:, :rank]).unflatten(2, weight.shape[2:])
    last = u[:, :, :rank] * root[:, None]
    kind = "linear" if isinstance(layer.module, nn.Linear) else "convolution"
    return Factor(kind=kind, ranks=(rank,)), [first, last[..., None]]


def product(weights: list[Tensor]) -> Tensor:
    """The weight that layers one after another amount to, where one alone has more than one tap.

    Args:
        weights: Of each layer, as `Factorizer.split` gives them.
    """
    found = weights[0]
    for weight in weights[1:]:
        found = torch.einsum("gors,grit->goist", weight, found).flatten(3)
    return found


def _fill(smaller: nn.Sequential, weights: list[Tensor], bias: Tensor | None) -> None:
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    names = [f"{at}.weight" for at in range(len(weights))]
    state = {name: one.reshape(shapes[name]) for name, one in zip(names, weights, strict=True)}
    if bias is not None:
        state[f"{len(weights) - 1}.bias"] = bias.detach()
    smaller.load_state_dict(state)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
