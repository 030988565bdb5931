"""Rows as tensors on the device, and augmented views of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.augmentations import Augmentation
from tasks.compute import Compute
from tasks.rows import Part

CLEAN_BATCH = 128


class Views:
    """A part's rows, whole in the device's memory as stored, and their views.

    Args:
        part: The rows.
        augmentation: Makes views.
        compute: Device.
    """

    def __init__(self, part: Part, augmentation: Augmentation, compute: Compute) -> None:
        stored = part.inputs if part.inputs.flags.writeable else np.array(part.inputs)
        self.inputs = torch.from_numpy(stored).to(compute.device)
        self.labels = torch.from_numpy(part.labels).to(compute.device)
        self.part, self.augmentation, self.compute = part, augmentation, compute

    def __len__(self) -> int:
        return len(self.inputs)

    def clean(self, index: Tensor) -> Tensor:
        """Rows as they are; `index` (B,) lies on the CPU."""
        return self.part.encoding.to_network(self.inputs[index.to(self.inputs.device)])

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh view of each row."""
        return self.under(index, self.augmentation.draw(len(index), generator))

    def under(self, index: Tensor, parameters: Tensor) -> Tensor:
        """The view of each row that a row of parameters states."""
        return self.augmentation.apply(self.clean(index), parameters.to(self.compute.device))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Positions of `count` rows, drawn with replacement."""
        return torch.randint(len(self), (count,), generator=generator)


@torch.no_grad()
def outputs(network: torch.nn.Module, part: Part, compute: Compute) -> Tensor:
    """A network's outputs on rows as they are, (N, outputs) float32 on the CPU."""
    found: list[Tensor] = []
    for at in range(0, len(part), CLEAN_BATCH):
        stored = torch.from_numpy(np.array(part.inputs[at : at + CLEAN_BATCH])).to(compute.device)
        with compute.autocast():
            found.append(network(part.encoding.to_network(stored)).float().cpu())
    return torch.cat(found) if found else torch.zeros(0, 0)


def accuracy(network: torch.nn.Module, part: Part, compute: Compute) -> dict[str, float]:
    """Share of labelled rows that a network gets right; empty where there are none."""
    if not len(part):
        return {}
    predicted: NDArray[np.int64] = outputs(network, part, compute).argmax(1).numpy()
    return {"validation_accuracy": float((predicted == part.labels).mean())}
