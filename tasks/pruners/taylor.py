"""Structured pruning by what the loss would do."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.channels import Group, by_channel, listening, said_by_readers
from tasks.errors import CompressionError
from tasks.networks import Classifier
from tasks.pruners import ChannelPruner, Evidence, answers

NOTHING = 1e-6


class Taylor(ChannelPruner):
    """Removes whole channels without which the loss would change least, to first order.

    A gate g = 1 stands before every layer that reads the channel x; taking the channel away sets it
    to 0, which changes a row's loss by about ∂L/∂g = Σ x · ∂L/∂x over readers and positions. The
    channel is worth the mean over rows of its square (Molchanov et al. 2019, arXiv:1906.10771, with
    a gate per channel). L is the cross-entropy against the teachers' probabilities. Looks at some
    hundred training rows.
    """

    needs: ClassVar[str] = "a layer whose width may change before another that reads it"

    name: Literal["taylor"] = "taylor"

    def prunes(self, group: Group) -> bool:
        """See `ChannelPruner.prunes`."""
        return bool(group.those_that("read"))

    def importance(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence
    ) -> list[Tensor]:
        """See `ChannelPruner.importance`: the mean squared change of a row's loss."""
        distance = (answers(network, evidence.inputs).exp() - evidence.targets).abs().max()
        if distance < NOTHING:
            raise CompressionError(
                "taylor finds no gradient: the targets are what the network says itself; give the "
                "teachers' answers, or take magnitude"
            )

        def changes(rows: slice, layers: list[nn.Module]) -> dict[nn.Module, Tensor]:
            with torch.enable_grad(), listening(layers) as heard:
                said = functional.log_softmax(network(evidence.inputs[rows]), 1)
                loss = -(evidence.targets[rows] * said).sum()
                gradients = torch.autograd.grad(loss, list(heard.values()))
            return {
                layer: by_channel(layer, given * gradient).sum(1).detach()
                for (layer, given), gradient in zip(heard.items(), gradients, strict=True)
            }

        said = said_by_readers(groups, len(evidence.inputs), changes)
        return [one.square().mean(0) for one in said]
