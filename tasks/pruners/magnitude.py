"""Structured pruning by the size of the weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tasks.channels import Group, squares
from tasks.networks import Classifier
from tasks.pruners import ChannelPruner, Evidence


class Magnitude(ChannelPruner):
    """Removes whole channels whose weights have the smallest L2 norm, group by group.

    Channels that depend on each other (residual sums, the following layer's inputs) go together
    (Fang et al. 2023, arXiv:2301.12900): the norm is that of all the group's weights, those that
    make a channel, scale it and read it. Looks at no row.
    """

    name: Literal["magnitude"] = "magnitude"

    @torch.no_grad()
    def importance(
        self,
        network: Classifier,  # noqa: ARG002
        groups: Sequence[Group],
        evidence: Evidence,  # noqa: ARG002
    ) -> list[Tensor]:
        """See `ChannelPruner.importance`: the squared norm."""
        return [group.total(squares, group.members) for group in groups]
