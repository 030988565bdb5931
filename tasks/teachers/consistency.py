"""Consistency: what a weak view makes sure is learnt from a strong one."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tasks.teachers import Lesson, PoolTeacher, Setting

IMAGE_DIMENSIONS = 4


class Consistency(PoolTeacher):
    """FixMatch (Sohn et al. 2020, arXiv:2001.07685, equations 3 and 4).

    CE(labelled) + pool_weight · (1/B) Σ 1[max qᵢ ≥ threshold] · CE(argmax qᵢ, pᵢ) over the B pool
    rows of a step: the guess q from a weak view, without gradients, the prediction p from a strong
    one. The strong view is the augmentation's, on images with a hole in it (cutout, DeVries and
    Taylor 2017, arXiv:1708.04552). The paper takes seven pool rows for each labelled one.

    Attributes:
        weak: The weak view: the row as it is (`clean`), or another draw of the `augmentation`.
        cutout_share: Side of the hole as a share of the image's; 0 makes none. Other modalities
            have none.
        threshold: Smallest probability that makes a guess count (tau).
        pool_weight: Weight of the pool's cross entropy (lambda).
    """

    name: Literal["consistency"] = "consistency"
    weak: Literal["clean", "augmentation"] = "clean"
    cutout_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95
    pool_weight: Annotated[float, Field(ge=0)] = 1.0

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        return _ConsistencyLesson(self, setting)


class _ConsistencyLesson(Lesson):
    def __init__(self, method: Consistency, setting: Setting) -> None:
        super().__init__(setting)
        self.method, self.align = method, method.aligner(setting)

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Cross entropy on labelled rows, and on strong views of confidently guessed pool rows."""
        method, setting = self.method, self.setting
        supervised = method.labelled_loss(setting, generator)
        index = setting.pool.sample(method.pool_batch, generator)
        confidence, guess = self._guess(index, generator).max(dim=1)
        strong = cut_out(setting.pool.augmented(index, generator), method.cutout_share, generator)
        each = functional.cross_entropy(setting.network(strong).float(), guess, reduction="none")
        return supervised + method.pool_weight * (each * (confidence >= method.threshold)).mean()

    @torch.no_grad()
    def _guess(self, index: Tensor, generator: torch.Generator) -> Tensor:
        pool = self.setting.pool
        clean = self.method.weak == "clean"
        weak = pool.clean(index) if clean else pool.augmented(index, generator)
        return self.align(self.setting.network(weak).float().softmax(1))


def cut_out(batch: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images with a square of zeros about a random pixel, cut off where it leaves the image.

    Args:
        batch: Images (N, C, H, W); anything of other dimensions comes back as it is.
        share: Side of the square as a share of the image's shorter side.
        generator: Draws the pixels.
    """
    if batch.dim() != IMAGE_DIMENSIONS or not share:
        return batch
    height, width = batch.shape[2:]
    side = round(share * min(height, width))
    places = torch.rand(len(batch), 2, generator=generator).to(batch.device)
    inside_y, inside_x = (
        _within(places[:, axis] * size, size, side) for axis, size in enumerate((height, width))
    )
    hole = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    # masked_fill would lose the channels-last layout.
    return torch.where(hole, 0.0, batch)


def _within(centre: Tensor, size: int, side: int) -> Tensor:
    """Which of `size` pixels lie in each stretch of `side` about its centre, (N, size)."""
    start = centre.long()[:, None] - side // 2
    pixel = torch.arange(size, device=centre.device)
    return (pixel >= start) & (pixel < start + side)
