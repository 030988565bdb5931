"""Training that feels what int8 will do: the forward pass rounds weights and activations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEVELS = 255
RATE = 0.01
SMALLEST_SCALE = torch.finfo(torch.float32).eps


class RoundedWeight(nn.Module):
    """Rounds a weight to integers times a scale per output channel, its first axis.

    Gradients pass as if nothing happened (Bengio et al. 2013, arXiv:1308.3432).

    Args:
        limit: Largest absolute integer.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, weight: Tensor) -> Tensor:
        """A weight of the same shape."""
        largest = weight.detach().flatten(1).abs().amax(1)
        scale = (largest / self.limit).clamp_min(SMALLEST_SCALE)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -self.limit, self.limit
        )


class RoundedActivation(nn.Module):
    """Rounds values to 8 unsigned bits in a range that follows the smallest and largest seen.

    The range moves while training alone. Gradients of values outside it are 0.

    Attributes:
        rate: How far the range moves to a batch's.
        low: Lower end, at most 0.
        high: Upper end, at least 0.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rate = 1.0
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """Values of the same shape, float32."""
        values = values.float()
        if self.training:
            self._follow(values.detach())
        scale = ((self.high - self.low) / LEVELS).clamp_min(SMALLEST_SCALE)
        zero = (-self.low / scale).round().clamp(0, LEVELS).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, LEVELS)

    def _follow(self, values: Tensor) -> None:
        self.low.lerp_(values.amin().clamp_max(0), self.rate)
        self.high.lerp_(values.amax().clamp_min(0), self.rate)


@contextmanager
def fake_quantized(network: nn.Module, limit: int, inputs: Tensor) -> Iterator[None]:
    """Inside, a network computes as its int8 form will (Jacob et al. 2018, arXiv:1712.05877).

    Rounded are the weight of every convolution and linear layer and what goes into it; sums and
    logits are not. A batch normalisation that follows is left to itself: it multiplies each output
    channel of the weight, and with it that channel's scale, so that the rounded weight folds into
    the rounded folded weight. Afterwards the network is the plain one again, with the weights that
    it learnt; inside, the ranges are buffers of it.

    Args:
        network: In evaluation mode.
        limit: Largest absolute integer of a weight.
        inputs: Rows that the ranges start from, as the network takes them, on its device.
    """
    layers = [
        found for found in network.modules() if isinstance(found, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    handles = [_round(layer, limit) for layer in layers]
    try:
        _start_ranges(network, inputs)
        yield
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            handle.remove()
            del layer.activation
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _round(layer: nn.Module, limit: int) -> torch.utils.hooks.RemovableHandle:
    device = next(layer.parameters()).device
    parametrize.register_parametrization(layer, "weight", RoundedWeight(limit))
    layer.add_module("activation", RoundedActivation().to(device))
    return layer.register_forward_pre_hook(_round_input)


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """A function of the module, not a closure: copies of a network (averages) use their own."""
    return layer.get_submodule("activation")(inputs[0])


@torch.no_grad()
def _start_ranges(network: nn.Module, inputs: Tensor) -> None:
    ranges = [found for found in network.modules() if isinstance(found, RoundedActivation)]
    for found in ranges:
        found.train()
    network(inputs)
    for found in ranges:
        found.rate = RATE
        found.eval()
