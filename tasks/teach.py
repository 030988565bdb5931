"""The teacher: few labels and the pool, fine-tuned from the encoder or from scratch."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.fit import FitParams, averaged, fit
from tasks.keep import keep_classifier
from tasks.networks import NETWORKS, Classifier, Network, Spec
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.teachers import TEACHERS, Setting, Teacher
from tasks.views import Views, accuracy


class TeachParams(Section):
    """One entry of section `teach` of params.yaml.

    Attributes:
        network: null fine-tunes the encoder; a network is trained from scratch instead.
        freeze_body: Only the head learns, on the encoder's features as they are: a linear probe.
        method: How labels and pool are used.
        augmentation: Makes the views.
        fit: Steps, rate and averaging.
        members: Teachers of this kind, which differ in their seed alone; the student hears all.
        member: Which of them a stage trains; set by the chain.
    """

    network: Annotated[Network, NETWORKS] | None = None
    freeze_body: bool = False
    method: Annotated[Teacher, TEACHERS]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    fit: FitParams
    members: Annotated[int, Field(ge=1)] = 1
    member: Annotated[int, Field(ge=0)] = 0

    def each(self) -> list["TeachParams"]:
        """The parameters of every member."""
        return [
            self.model_copy(update={"members": 1, "member": self.member + at})
            for at in range(self.members)
        ]


@stage("teacher")
def teach(work: Work, params: TeachParams, *, encoder: ModelRef | None = None) -> dict[str, float]:
    """Trains a classifier on the shown labels and the pool.

    Args:
        work: Rows, compute, folder, progress.
        params: One entry of section `teach`.
        encoder: Where the body's weights come from; needed where `params.network` is null.
    """
    rows, compute = work.rows, work.compute.member(params.member)
    torch.manual_seed(compute.seed)
    spec, network = _start(work, params, encoder)
    average = averaged(network, params.fit)
    labelled = Views(rows.train.labelled, params.augmentation, compute)
    pool = Views(rows.train, params.augmentation, compute)
    lesson = compute.place(params.method.lesson(Setting(network, labelled, pool, average)))

    def step(at: int, generator: Generator) -> Tensor:
        return lesson(at / params.fit.steps, generator)

    def score() -> dict[str, float]:
        return accuracy(network, rows.validation, compute)

    fit(network, step, params.fit, compute, work.watch, score, beside=lesson, average=average)
    keep_classifier(work.folder, spec, network, rows)
    return score()


def _start(work: Work, params: TeachParams, encoder: ModelRef | None) -> tuple[Spec, Classifier]:
    if params.network is not None:
        return work.fresh(params.network)
    if encoder is None:
        raise ValueError("teach needs an encoder where teach.network is null")
    origin, body = work.network(encoder)
    spec, network = work.fresh(origin.network)
    network.body.load_state_dict(body.body.state_dict())
    if params.freeze_body:
        network.freeze()
    return spec, network
