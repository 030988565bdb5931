"""Pruning of whole residual blocks."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tasks.channels import named
from tasks.errors import CompressionError
from tasks.networks import Classifier, count_macs, skip
from tasks.pruners import Cut, Evidence, Plan, Pruner, answers


class Depth(Pruner):
    """Removes whole residual blocks without which the network says most nearly the same.

    What adds to its input (a block of a residual network beside a plain shortcut, a transformer's
    layer) can be left out (Veit et al. 2016, arXiv:1605.06431). One after another goes the block
    whose removal changes the answers least: by Kullback-Leibler divergence from those of the
    network as it was, on some hundred training rows. A block counts as residual where it passes on
    what it gets once all its weights are 0. Widths stay.

    Attributes:
        remove: Blocks that go; 1 where `keep_macs` is not set either.
        keep_macs: Share of the network's multiply-accumulates to keep at most, instead: as many
            blocks go as that takes.
    """

    name: Literal["depth"] = "depth"
    remove: Annotated[int, Field(ge=1)] | None = None
    keep_macs: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _removes_one_unless_told(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's own
        unset = isinstance(data, dict) and not {"remove", "keep_macs"} & {
            name for name, value in data.items() if value is not None
        }
        return {**data, "remove": 1} if unset else data

    @model_validator(mode="after")
    def _one_target(self) -> "Depth":
        if self.remove is not None and self.keep_macs is not None:
            raise ValueError("remove and keep_macs exclude each other; set one to null")
        return self

    def plan(self, network: Classifier, evidence: Evidence) -> Plan:
        """See `Pruner.plan`: one cut of all blocks that can go."""
        blocks = residual_blocks(network, evidence.example)
        if not blocks:
            raise CompressionError(
                f"{named(network)} has no block that could be left out: none of "
                f"{', '.join(_outermost(network))} adds to its input without changing its shape; "
                "prune channels instead"
            )
        count = self.remove or self._count(network, blocks, evidence)
        if count > len(blocks):
            raise CompressionError(
                f"remove {count} is more than the blocks that can be left out of "
                f"{named(network)}: {', '.join(blocks)}; remove fewer"
            )
        return (Cut(tuple(blocks), len(blocks), len(blocks) - count),)

    def carry_out(self, network: Classifier, plan: Plan, evidence: Evidence) -> None:
        """See `Pruner.carry_out`."""
        (cut,) = plan
        left = [
            block for block in residual_blocks(network, evidence.example) if block in cut.layers
        ]
        going = _expendable(network, left, evidence)
        for block in islice(going, len(left) - cut.kept):
            skip(network, block)

    def alone(
        self,
        network: Classifier,
        plan: Plan,
        evidence: Evidence,  # noqa: ARG002
    ) -> Iterator[tuple[Cut, Classifier]]:
        """See `Pruner.alone`: each block that can go, without the others."""
        for cut in plan:
            for block in cut.layers:
                copy = deepcopy(network)
                skip(copy, block)
                yield Cut((block,), 1, 0), copy

    def _between(self, cut: Cut, share: float) -> Cut:
        # No geometric progression leads to 0; the first step has to remove something.
        return replace(cut, kept=cut.width - math.ceil((cut.width - cut.kept) * share))

    def _count(self, network: Classifier, blocks: list[str], evidence: Evidence) -> int:
        copy, shares = deepcopy(network), [1.0]
        dense = count_macs(network, evidence.example)
        for block in _expendable(network, blocks, evidence):
            skip(copy, block)
            shares.append(count_macs(copy, evidence.example) / dense)
            if self.keep_macs is not None and shares[-1] <= self.keep_macs:
                return len(shares) - 1
        raise CompressionError(
            f"keep_macs {self.keep_macs} cannot be reached: {shares[-1]:.3f} of the multiply-"
            f"accumulates stay without {', '.join(blocks)}; raise it, or prune channels as well"
        )


def _expendable(network: Classifier, blocks: list[str], evidence: Evidence) -> Iterator[str]:
    """Blocks in the order in which they can be spared; each is found when it is asked for."""
    before, shorter, left = answers(network, evidence.inputs), deepcopy(network), list(blocks)

    def change(block: str) -> float:
        without = deepcopy(shorter)
        skip(without, block)
        after = answers(without, evidence.inputs)
        return float((before.exp() * (before - after)).sum(1).mean())

    while left:
        block = min(left, key=change)
        left.remove(block)
        skip(shorter, block)
        yield block


@torch.no_grad()
def residual_blocks(network: Classifier, example: Tensor) -> list[str]:
    """Paths of the smallest modules that add to what they get, in the network's order."""
    calls: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
    handles = []
    for path, module in network.named_modules():
        if path and list(module.children()) and list(module.parameters()):

            def note(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
                calls[path] = module, deepcopy(inputs)

            handles.append(module.register_forward_pre_hook(note))
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    found = [path for path, (module, inputs) in calls.items() if _adds(module, inputs)]
    return [path for path in found if not any(one.startswith(f"{path}.") for one in found)]


def _adds(module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    first = inputs[0]
    if not isinstance(first, Tensor) or not first.any():
        return False
    silent = deepcopy(module)
    for parameter in silent.parameters():
        parameter.zero_()
    said = silent(*deepcopy(inputs))
    return isinstance(said, Tensor) and torch.equal(said, first)


def _outermost(network: Classifier) -> list[str]:
    return [f"body.{name}" for name, _ in network.body.named_children()] or ["body"]
