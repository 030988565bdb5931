"""The labels alone."""

from typing import Literal

import torch
from torch import Tensor

from tasks.teachers import Lesson, Setting, Teacher


class Supervised(Teacher):
    """Cross entropy on the shown labels.

    From an encoder with `freeze_body` it is a linear probe.
    """

    name: Literal["supervised"] = "supervised"

    def lesson(self, setting: Setting) -> Lesson:
        """See `Teacher.lesson`."""
        return _SupervisedLesson(self, setting)


class _SupervisedLesson(Lesson):
    def __init__(self, method: Supervised, setting: Setting) -> None:
        super().__init__(setting)
        self.method = method

    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """See `Teacher.labelled_loss`."""
        return self.method.labelled_loss(self.setting, generator)
