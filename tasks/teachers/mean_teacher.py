"""Mean teacher: the network agrees with its own averaged weights."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ParamsError
from tasks.teachers import Lesson, PoolTeacher, Setting


class MeanTeacher(PoolTeacher):
    """Mean teacher (Tarvainen and Valpola 2017, arXiv:1703.01780).

    CE(labelled) + pool_weight · ramp · mean (pᵢ - qᵢ)² over the pool rows of a step and the
    classes: p the network's probabilities on one view, q those of its averaged weights on another,
    without gradients. The averaged weights are asked in evaluation mode: their normalisation uses
    averaged statistics, and asking changes nothing in them. The ramp is the paper's,
    exp(-5 (1 - t)²) with t rising from 0 to 1 over `ramp_share` of the steps.

    The average must not lag: `fit.ema_decay` 0.95 does well over 300 to 1,000 steps, where 0.99
    holds the network back. The paper's weight, 100, is made for far longer trainings.

    Attributes:
        pool_weight: Weight of the pool's squared error.
        ramp_share: Share of the steps over which that weight rises.
    """

    name: Literal["mean_teacher"] = "mean_teacher"
    pool_weight: Annotated[float, Field(ge=0)] = 10.0
    ramp_share: Annotated[float, Field(gt=0, le=1)] = 0.4

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        _average(setting).eval()
        return _MeanTeacherLesson(self, setting)


class _MeanTeacherLesson(Lesson):
    def __init__(self, method: MeanTeacher, setting: Setting) -> None:
        super().__init__(setting)
        self.method, self.align = method, method.aligner(setting)

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:
        """Cross entropy on labelled rows, squared error between two views of pool rows."""
        method, setting = self.method, self.setting
        supervised = method.labelled_loss(setting, generator)
        index = setting.pool.sample(method.pool_batch, generator)
        mine, other = (setting.pool.augmented(index, generator) for _ in range(2))
        with torch.no_grad():
            guess = self.align(_average(setting)(other).float().softmax(1))
        consistency = functional.mse_loss(setting.network(mine).float().softmax(1), guess)
        ramp = math.exp(-5 * (1 - min(1.0, share_done / method.ramp_share)) ** 2)
        return supervised + method.pool_weight * ramp * consistency


def _average(setting: Setting) -> nn.Module:
    if setting.average is None:
        raise ParamsError(
            "mean_teacher learns from the network's averaged weights, but fit.ema_decay is null; "
            "set it, for example to 0.95"
        )
    return setting.average
