"""Teachers: how few labels and a pool make a network that others can learn from."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.alignment import Alignment
from tasks.drawers import Drawer
from tasks.networks import Classifier
from tasks.sections import Section
from tasks.views import Views


@dataclass(frozen=True)
class Setting:
    """What a method has at hand.

    Attributes:
        network: The teacher to be, on the device, in training mode during steps.
        labelled: The rows whose labels are shown.
        pool: Every training row, labels unused.
        average: The network's averaged weights, where `fit.ema_decay` asks for them.
    """

    network: Classifier
    labelled: Views
    pool: Views
    average: nn.Module | None = None

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.labelled.part.encoding.classes)

    @property
    def shares(self) -> Tensor:
        """Class shares among the labels, (classes,), with one label more of each class."""
        counts = torch.bincount(self.labelled.labels, minlength=self.classes).float() + 1
        return counts / counts.sum()


class Lesson(nn.Module):
    """One training of a teacher: its state (running means, heads) lives and is saved with it.

    Args:
        setting: What it teaches with.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # Not a submodule: the network and its average are trained and saved by themselves.
        object.__setattr__(self, "setting", setting)

    setting: Setting

    @abstractmethod
    def forward(self, share_done: float, generator: torch.Generator) -> Tensor:
        """Loss of one step, a scalar; draws its own batches and views.

        Args:
            share_done: Share of the steps behind this one, from 0 to 1, for ramps.
            generator: Source of everything random.
        """


class Teacher(Section):
    """Contract of a way to train a teacher, with what all ways share.

    Attributes:
        takes: The modality that it is made for, by name; None takes any.
        labelled_batch: Labelled rows per step.
        sampling: `balanced` draws labelled rows so that every class is equally likely.
        logit_adjustment: τ: adds τ · log(class share) to the logits of labelled rows while training
            (Menon et al. 2021, arXiv:2007.07314, equation 10), so that rare classes are not
            neglected; 0 leaves it out, 1 is the paper's.
    """

    takes: ClassVar[str | None] = None

    labelled_batch: Annotated[int, Field(ge=1)] = 64
    sampling: Literal["uniform", "balanced"] = "uniform"
    logit_adjustment: Annotated[float, Field(ge=0)] = 0.0

    @abstractmethod
    def lesson(self, setting: Setting) -> Lesson:
        """A training of this kind.

        Raises:
            ParamsError: The setting lacks what the method needs, for example averaged weights.
        """

    def draw(self, labelled: Views, generator: torch.Generator) -> Tensor:
        """Positions of labelled rows for one step, (labelled_batch,)."""
        if self.sampling == "uniform":
            return labelled.sample(self.labelled_batch, generator)
        labels = labelled.labels.cpu()
        weights = 1 / torch.bincount(labels).clamp_min(1)[labels]
        return torch.multinomial(
            weights, self.labelled_batch, replacement=True, generator=generator
        )

    def adjusted(self, logits: Tensor, setting: Setting) -> Tensor:
        """Logits of labelled rows as their loss takes them, see `logit_adjustment`."""
        if not self.logit_adjustment:
            return logits
        return logits + self.logit_adjustment * setting.shares.to(logits.device).log()

    def labelled_loss(self, setting: Setting, generator: torch.Generator) -> Tensor:
        """Cross entropy on augmented labelled rows."""
        index = self.draw(setting.labelled, generator)
        logits = setting.network(setting.labelled.augmented(index, generator)).float()
        labels = setting.labelled.labels[index.to(logits.device)]
        return functional.cross_entropy(self.adjusted(logits, setting), labels)


class PoolTeacher(Teacher):
    """Contract of those that guess labels of the pool.

    Attributes:
        pool_batch: Pool rows per step.
        alignment: Pulls the guesses towards the class shares of the labels, see `Alignment`.
    """

    pool_batch: Annotated[int, Field(ge=1)] = 128
    alignment: bool = False

    def aligner(self, setting: Setting) -> nn.Module:
        """`Alignment` where it is asked for, else what leaves guesses as they are."""
        return Alignment(setting.shares) if self.alignment else nn.Identity()


TEACHERS = Drawer("tasks.teachers", Teacher)
