"""Where in the picture the networks look."""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tasks.losses import Loss, Need, Pair


class Attention(Loss):
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    The attention of a map is the sum over channels of its squared activations, brought to length 1
    over all positions. The loss is the squared distance between the student's and the teacher's,
    the mean over rows and pairs of maps (the authors' code takes the mean over positions too).
    Labels play no part.

    The last maps make a pair, then the last but one, as far as both networks have them; where their
    sizes differ, the larger is averaged down to the smaller.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})

    name: Literal["attention"] = "attention"

    def __call__(self, pair: Pair) -> Tensor:
        """See `Loss.__call__`."""
        maps = zip(reversed(pair.student.maps), reversed(pair.teacher.maps), strict=False)
        return torch.stack([_distance(student, teacher) for student, teacher in maps]).mean()


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    gap = _attention(student, size) - _attention(teacher, size)
    return gap.square().sum(dim=1).mean()


def _attention(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) → (N, h · w), each row of length 1."""
    seen = _pooled(activations.square().sum(dim=1), size)
    return functional.normalize(seen.flatten(1))


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) → (N, h, w), by averages that cover the map; H ≥ h and W ≥ w."""
    # Adaptive pooling does the same, but its gradient is not deterministic on CUDA.
    stride = [have // want for have, want in zip(maps.shape[1:], size, strict=True)]
    kernel = [
        have - (want - 1) * step
        for have, want, step in zip(maps.shape[1:], size, stride, strict=True)
    ]
    return functional.avg_pool2d(maps, kernel, stride)
