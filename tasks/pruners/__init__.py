"""Pruners: which parts of a network go.

A pruner first plans on the network as it is, then carries the plan out, whole or part of the way.
Those that remove channels share `ChannelPruner` and differ in what a channel is worth.
"""

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from tasks.channels import Channels, Group, Layers, named
from tasks.drawers import Drawer
from tasks.errors import CompressionError
from tasks.networks import Classifier, count_macs
from tasks.sections import Section, tag_of

ROWS_AT_ONCE = 64
DEFAULT_RATIO = 0.5
SHARES = tuple(at / 256 for at in range(1, 256))
TINY = 1e-6
LEVELS = tuple(at / 8 for at in range(7, -1, -1))


@dataclass(frozen=True)
class Evidence:
    """Rows on which a network is judged while parts of it go; on the CPU.

    Attributes:
        inputs: At least 2 training rows, as the network takes them, (N, …).
        targets: Probabilities that the network should give, the teachers' for example,
            (N, classes).
    """

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, network: Classifier, inputs: Tensor) -> "Evidence":
        """Rows on which the network should go on to say what it says now."""
        return cls(inputs, answers(network, inputs).exp())

    @property
    def example(self) -> Tensor:
        """As few rows as a network can be traced with."""
        return self.inputs[:2]


@torch.no_grad()
def answers(network: Classifier, inputs: Tensor) -> Tensor:
    """Logarithms of the probabilities that a network gives, (N, classes)."""
    parts = inputs.split(ROWS_AT_ONCE)
    return torch.cat([functional.log_softmax(network(part).float(), 1) for part in parts])


@dataclass(frozen=True)
class Judgement:
    """How well a network does on evidence.

    Attributes:
        loss: Mean cross-entropy against the targets, in nats.
        agreement: Share of rows whose likeliest class is the targets'.
    """

    loss: float
    agreement: float

    @classmethod
    def of(cls, network: Classifier, evidence: Evidence) -> "Judgement":
        """Judges a network in evaluation mode."""
        said = answers(network, evidence.inputs)
        loss = -(evidence.targets * said).sum(1).mean()
        agreement = (said.argmax(1) == evidence.targets.argmax(1)).float().mean()
        return cls(float(loss), float(agreement))


@dataclass(frozen=True)
class Cut:
    """What becomes of some layers.

    Attributes:
        layers: Their names.
        width: How many parts (channels, weights or blocks) they have.
        kept: How many are to stay.
        step: Widths on the way are multiples of it.
    """

    layers: Layers
    width: int
    kept: int
    step: int = 1


Plan = tuple[Cut, ...]


class Pruner(Section):
    """Contract of a pruner.

    Attributes:
        keeps_zeros: Whether what goes stays in place as zeros, which recovery must not touch.
    """

    keeps_zeros: ClassVar[bool] = False

    @abstractmethod
    def plan(self, network: Classifier, evidence: Evidence) -> Plan:
        """Settles how much of which layer goes. The network stays as it is.

        Args:
            network: In evaluation mode, on the CPU.
            evidence: What it is judged on.

        Raises:
            CompressionError: Nothing would go, or a layer would be emptied; names it.
        """

    @abstractmethod
    def carry_out(self, network: Classifier, plan: Plan, evidence: Evidence) -> None:
        """Removes in place what a plan, or a part of one, says; the least important parts go.

        Args:
            network: In evaluation mode, on the CPU.
            plan: Of this network, which may have been pruned part of the way since.
            evidence: What it is judged on.

        Raises:
            CompressionError: The network cannot be pruned so.
        """

    def prune(self, network: Classifier, inputs: Tensor, targets: Tensor | None = None) -> None:
        """Plans, and carries it all out in place.

        Args:
            network: In evaluation mode, on the CPU.
            inputs: At least 2 training rows, as the network takes them.
            targets: Probabilities that the network should give, (N, classes); by default those that
                it gives now.

        Raises:
            CompressionError: The network cannot be pruned as asked; names the layers.
        """
        own = targets is None
        evidence = Evidence.of(network, inputs) if own else Evidence(inputs, targets)
        self.carry_out(network, self.plan(network, evidence), evidence)

    def part_way(self, plan: Plan, share: float) -> Plan:
        """The plan of a step on the way to another, by geometric progression.

        Args:
            plan: Where the way leads.
            share: How much of it is done after the step, above 0; 1 is the plan itself.
        """
        return plan if share == 1 else tuple(self._between(cut, share) for cut in plan)

    def _between(self, cut: Cut, share: float) -> Cut:
        wanted = cut.width * (cut.kept / cut.width) ** share
        kept = min(cut.width, round(wanted / cut.step) * cut.step)
        return replace(cut, kept=max(cut.kept, kept))

    def alone(
        self, network: Classifier, plan: Plan, evidence: Evidence
    ) -> Iterator[tuple[Cut, Classifier]]:
        """Copies of the network, each with one cut of the plan carried out and no other."""
        for cut in plan:
            copy = deepcopy(network)
            self.carry_out(copy, (cut,), evidence)
            yield cut, copy


PRUNERS = Drawer("tasks.pruners", Pruner)


def sensitivity(
    pruner: Pruner, network: Classifier, plan: Plan, evidence: Evidence
) -> list[dict[str, Any]]:
    """What each layer's cut does by itself, before any recovery (Li et al. 2017, arXiv:1608.08710).

    Returns:
        A row for each layer of the plan: `layer`; `together_with`, the layers that are cut with it;
        `width` and `kept`; loss and agreement (see `Judgement`) before and after.
    """
    before = Judgement.of(network, evidence)
    judged = [
        (cut, Judgement.of(copy, evidence)) for cut, copy in pruner.alone(network, plan, evidence)
    ]
    return [
        {
            "layer": layer,
            "together_with": [other for other in cut.layers if other != layer],
            "width": cut.width,
            "kept": cut.kept,
            "loss_before": before.loss,
            "loss_after": after.loss,
            "agreement_before": before.agreement,
            "agreement_after": after.agreement,
        }
        for cut, after in judged
        for layer in cut.layers
    ]


class ChannelPruner(Pruner):
    """Removes whole channels, group by group; a method says what each is worth.

    `tasks.channels` says what a group is.

    Attributes:
        keep_ratio: Share of each layer's channels to keep; 0.5 where `keep_macs` is not set either.
        keep_macs: Share of the network's multiply-accumulates to keep at most, instead: the largest
            network within it is taken.
        round_to: Kept widths are multiples of this, at least one; other widths ran slower than the
            dense network. A layer narrower than this stays as it is.
        allocation: `uniform` keeps the same share of every layer. `sensitivity` lets the layers
            whose cut hurts less lose more, each until it alone costs as much loss on some hundred
            rows as any other (Li et al. 2017, arXiv:1608.08710), with as many multiply-accumulates
            kept in all as `uniform` would keep, at most.
    """

    needs: ClassVar[str] = "a layer whose width may change"

    keep_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    keep_macs: Annotated[float, Field(gt=0, lt=1)] | None = None
    round_to: Annotated[int, Field(ge=1)] = 8
    allocation: Literal["uniform", "sensitivity"] = "uniform"

    @model_validator(mode="before")
    @classmethod
    def _keeps_half_unless_told(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's own
        unset = isinstance(data, dict) and not {"keep_ratio", "keep_macs"} & {
            name for name, value in data.items() if value is not None
        }
        return {**data, "keep_ratio": DEFAULT_RATIO} if unset else data

    @model_validator(mode="after")
    def _one_target(self) -> "ChannelPruner":
        if self.keep_ratio is not None and self.keep_macs is not None:
            raise ValueError("keep_ratio and keep_macs exclude each other; set one to null")
        return self

    @abstractmethod
    def importance(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence
    ) -> list[Tensor]:
        """What each channel is worth, (width,) by group; those worth least go.

        Raises:
            CompressionError: The evidence says nothing of them.
        """

    def prunes(self, group: Group) -> bool:  # noqa: ARG002
        """Whether the method can tell the group's channels apart."""
        return True

    def plan(self, network: Classifier, evidence: Evidence) -> Plan:
        """See `Pruner.plan`."""
        groups = [one for one in Channels(network, evidence.example).groups if self.prunes(one)]
        if not groups:
            raise CompressionError(
                f"{tag_of(type(self))} needs {self.needs}, and {named(network)} has none; take "
                "another method, or another student"
            )
        plan = self._uniform(groups, self.keep_ratio) if self.keep_ratio else ()
        if self.allocation == "sensitivity" or not plan:
            plan = self._within(network, groups, evidence, plan)
        if all(cut.kept == cut.width for cut in plan):
            raise CompressionError(
                f"{self._target} with round_to {self.round_to} removes nothing from the widths "
                f"{_widths(network, groups)}; widen the student, or lower round_to"
            )
        return plan

    def carry_out(self, network: Classifier, plan: Plan, evidence: Evidence) -> None:
        """See `Pruner.carry_out`."""
        channels = Channels(network, evidence.example)
        kept = {cut.layers: cut.kept for cut in plan}
        narrower = [one for one in channels.groups if kept.get(one.layers, one.width) < one.width]
        channels.narrow(kept, self._scores(network, narrower, evidence))

    def alone(
        self, network: Classifier, plan: Plan, evidence: Evidence
    ) -> Iterator[tuple[Cut, Classifier]]:
        """See `Pruner.alone`; channels are ranked once."""
        scores = self._scores(network, Channels(network, evidence.example).groups, evidence)
        for cut in plan:
            yield cut, _narrowed(network, (cut,), scores, evidence)

    def kept(self, width: int, share: float, parts: int = 1) -> int:
        """Channels that stay of a layer's `width`: a multiple of `round_to`, at least one of it.

        Args:
            width: Of the dense layer.
            share: Of it that should stay.
            parts: Equal parts that the layer falls into.
        """
        step = math.lcm(self.round_to, parts)
        return min(width, max(1, round(width * share / step)) * step)

    @property
    def _target(self) -> str:
        ratio = f"keep_ratio {self.keep_ratio}"
        return ratio if self.keep_macs is None else f"keep_macs {self.keep_macs}"

    def _scores(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence
    ) -> dict[Layers, Tensor]:
        judged = [group for group in groups if self.prunes(group)]
        found = self.importance(network, judged, evidence) if judged else []
        return {group.layers: one for group, one in zip(judged, found, strict=True)}

    def _uniform(self, groups: Sequence[Group], share: float) -> Plan:
        return tuple(self._cut(group, share) for group in groups)

    def _cut(self, group: Group, share: float) -> Cut:
        kept = self.kept(group.width, share, group.parts)
        return Cut(group.layers, group.width, kept, math.lcm(self.round_to, group.parts))

    def _within(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence, like: Plan
    ) -> Plan:
        """The largest plan with as many multiply-accumulates as another, or with `keep_macs`."""
        scores = {group.layers: torch.arange(float(group.width)) for group in groups}

        def macs(plan: Plan) -> int:
            return count_macs(_narrowed(network, plan, scores, evidence), evidence.example)

        dense = count_macs(network, evidence.example)
        most = macs(like) if self.keep_macs is None else self.keep_macs * dense
        if self.allocation == "uniform":
            plans = list(dict.fromkeys(self._uniform(groups, share) for share in SHARES))
        else:
            plans = self._by_sensitivity(network, groups, evidence)
        fitting = bisect_right(plans, most, key=macs)
        if not fitting:
            raise CompressionError(
                f"{self._target} cannot be reached: {macs(plans[0]) / dense:.3f} of the multiply-"
                f"accumulates stay where the widths {_widths(network, groups)} are at their "
                f"smallest; raise it, lower round_to, or take a smaller student"
            )
        return plans[fitting - 1]

    def _by_sensitivity(
        self, network: Classifier, groups: Sequence[Group], evidence: Evidence
    ) -> list[Plan]:
        """Plans in which every layer may cost the same loss, from the highest to none."""
        scores = self._scores(network, groups, evidence)
        dense = Judgement.of(network, evidence).loss
        curves: list[list[tuple[float, Cut]]] = []
        for group in groups:
            cuts = list(dict.fromkeys(self._cut(group, level) for level in LEVELS))
            costs = (
                Judgement.of(_narrowed(network, (cut,), scores, evidence), evidence).loss - dense
                for cut in cuts
            )
            # Levels that cost the same go one by one, not at once.
            worst = (at * TINY + cost for at, cost in enumerate(accumulate(costs, max, initial=0)))
            whole = replace(cuts[0], kept=group.width)
            curves.append(list(zip(worst, [whole, *cuts], strict=True)))
        limits = sorted({cost for curve in curves for cost, _ in curve}, reverse=True)
        plans = [
            tuple([cut for cost, cut in curve if cost <= limit][-1] for curve in curves)
            for limit in limits
        ]
        return list(dict.fromkeys(plans))


def _narrowed(
    network: Classifier, plan: Plan, scores: dict[Layers, Tensor], evidence: Evidence
) -> Classifier:
    copy = deepcopy(network)
    Channels(copy, evidence.example).narrow({cut.layers: cut.kept for cut in plan}, scores)
    return copy


def _widths(network: Classifier, groups: Sequence[Group]) -> str:
    widths = {layer: group.width for group in groups for layer in group.layers}
    found = (name for name, _ in network.named_modules() if name in widths)
    return ", ".join(f"'{name}' {widths[name]}" for name in found)
