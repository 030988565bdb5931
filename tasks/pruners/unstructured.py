"""Pruning of single weights, for comparison."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tasks.channels import WIDE
from tasks.errors import CompressionError
from tasks.networks import Classifier
from tasks.pruners import Cut, Evidence, Plan, Pruner


class Unstructured(Pruner):
    """Sets single weights to 0, the smallest first; the file stays as large and as slow.

    Magnitude pruning (Han et al. 2015, arXiv:1506.02626), for comparison: shapes stay, so the dense
    weights and the ONNX file keep their size, and dense runtimes multiply by the zeros as by any
    other number. Recovery leaves the zeros alone. Biases and normalisation keep all their values.

    Attributes:
        sparsity: Share of the weights of convolutions, linear layers and embeddings that become 0.
        scope: What weights are ranked among: those of the whole `network`, or of each `layer`.
    """

    keeps_zeros: ClassVar[bool] = True

    name: Literal["unstructured"] = "unstructured"
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    scope: Literal["network", "layer"] = "network"

    @torch.no_grad()
    def plan(self, network: Classifier, evidence: Evidence) -> Plan:  # noqa: ARG002
        """See `Pruner.plan`."""
        sizes = {
            name: module.get_parameter("weight").abs().flatten()
            for name, module in network.named_modules()
            if isinstance(module, WIDE)
        }
        if self.scope == "layer":
            gone = [round(len(size) * self.sparsity) for size in sizes.values()]
        else:
            gone = _smallest(list(sizes.values()), self.sparsity)
        cuts = [
            Cut((name,), len(size), len(size) - count)
            for (name, size), count in zip(sizes.items(), gone, strict=True)
        ]
        self._refuse(cuts)
        return tuple(cuts)

    def _refuse(self, cuts: list[Cut]) -> None:
        asked = f"sparsity {self.sparsity} with scope '{self.scope}'"
        if all(cut.kept == cut.width for cut in cuts):
            layers = ", ".join(f"'{cut.layers[0]}' {cut.width}" for cut in cuts)
            raise CompressionError(f"{asked} removes nothing from the weights {layers}; raise it")
        emptied = ", ".join(cut.layers[0] for cut in cuts if not cut.kept)
        if emptied:
            raise CompressionError(f"{asked} leaves no weight in {emptied}; lower it")

    @torch.no_grad()
    def carry_out(self, network: Classifier, plan: Plan, evidence: Evidence) -> None:  # noqa: ARG002
        """See `Pruner.carry_out`."""
        for cut in plan:
            weight = network.get_submodule(cut.layers[0]).get_parameter("weight")
            flat = weight.flatten()
            flat[flat.abs().topk(cut.width - cut.kept, largest=False).indices] = 0
            weight.copy_(flat.view_as(weight))


def _smallest(sizes: list[Tensor], share: float) -> list[int]:
    """How many of a share of all values, the smallest, fall on each of several tensors."""
    whole = torch.cat(sizes)
    goes = torch.zeros(len(whole), dtype=torch.bool)
    goes[whole.argsort(stable=True)[: round(len(whole) * share)]] = True
    return [int(part.sum()) for part in goes.split([len(size) for size in sizes])]
