"""Structured pruning by what channels say of real rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tasks.channels import Group, by_channel, listening, said_by_readers
from tasks.networks import Classifier
from tasks.pruners import ChannelPruner, Evidence


class Activation(ChannelPruner):
    """Removes whole channels that are closest to silent: by their mean absolute activation.

    The mean over rows and positions of |x|, as the layers that read the channel get it, behind
    normalisation and nonlinearity (Molchanov et al. 2017, arXiv:1611.06440, section 2.2). Looks at
    some hundred training rows.
    """

    needs: ClassVar[str] = "a layer whose width may change before another that reads it"

    name: Literal["activation"] = "activation"

    def prunes(self, group: Group) -> bool:
        """See `ChannelPruner.prunes`."""
        return bool(group.those_that("read"))

    def importance(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence
    ) -> list[Tensor]:
        """See `ChannelPruner.importance`: the mean over readers, rows and positions."""

        @torch.no_grad()
        def loudness(rows: slice, layers: list[nn.Module]) -> dict[nn.Module, Tensor]:
            with listening(layers) as heard:
                network(evidence.inputs[rows])
            return {layer: by_channel(layer, given).abs().mean(1) for layer, given in heard.items()}

        said = said_by_readers(groups, len(evidence.inputs), loudness)
        return [
            one.mean(0) / len(group.those_that("read"))
            for one, group in zip(said, groups, strict=True)
        ]
