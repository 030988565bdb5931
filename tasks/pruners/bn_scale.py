"""Structured pruning by the scales of batch normalisation."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tasks.channels import BatchNorm, Group, Member
from tasks.networks import Classifier
from tasks.pruners import ChannelPruner, Evidence


class BnScale(ChannelPruner):
    """Removes whole channels that batch normalisation scales least: by |γ|.

    Network slimming (Liu et al. 2017, arXiv:1708.06519), which trains with an L1 penalty on γ
    first: `sparsify: {kind: bn_scale}`. Channels that a residual sum ties together go by the mean
    over its normalisations; layers without one stay as they are. Looks at no row.
    """

    needs: ClassVar[str] = "batch normalisation behind a layer whose width may change"

    name: Literal["bn_scale"] = "bn_scale"

    def prunes(self, group: Group) -> bool:
        """See `ChannelPruner.prunes`."""
        return bool(_normalisations(group))

    @torch.no_grad()
    def importance(
        self,
        network: Classifier,  # noqa: ARG002
        groups: Sequence[Group],
        evidence: Evidence,  # noqa: ARG002
    ) -> list[Tensor]:
        """See `ChannelPruner.importance`: the mean |γ|."""
        return [
            group.total(_scales, _normalisations(group)) / len(_normalisations(group))
            for group in groups
        ]


def _normalisations(group: Group) -> list[Member]:
    return [one for one in group.those_that("scale") if isinstance(one.layer, BatchNorm)]


def _scales(member: Member) -> Tensor:
    return member.layer.get_parameter("weight")[member.channels].abs()
