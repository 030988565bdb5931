"""The teacher: few labels and the pool, fine-tuned from the encoder or from scratch."""

from typing import Annotated

from torch import Generator, Tensor

from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.fit import FitParams, fit
from tasks.keep import keep_classifier
from tasks.networks import NETWORKS, Network
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.teachers import TEACHERS, Teacher
from tasks.views import Views, accuracy


class TeachParams(Section):
    """Section `teach` of params.yaml.

    Attributes:
        network: null fine-tunes the encoder; a network is trained from scratch instead.
        method: How labels and pool are used.
        augmentation: Makes the views.
        fit: Steps, rate and averaging.
    """

    network: Annotated[Network, NETWORKS] | None = None
    method: Annotated[Teacher, TEACHERS]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    fit: FitParams


@stage("teacher")
def teach(work: Work, params: TeachParams, *, encoder: ModelRef | None = None) -> dict[str, float]:
    """Trains a classifier on the shown labels and the pool.

    Args:
        work: Rows, compute, folder, progress.
        params: Section `teach`.
        encoder: Where the body's weights come from; needed where `params.network` is null.
    """
    rows, compute = work.rows, work.compute
    if params.network is not None:
        spec, network = work.fresh(params.network)
    elif encoder is not None:
        origin, body = work.network(encoder)
        spec, network = work.fresh(origin.network)
        network.body.load_state_dict(body.body.state_dict())
    else:
        raise ValueError("teach needs an encoder where teach.network is null")
    labelled = Views(rows.train.labelled, rows.modality, params.augmentation, compute)
    pool = Views(rows.train, rows.modality, params.augmentation, compute)

    def step(at: int, generator: Generator) -> Tensor:
        return params.method.loss(
            network,
            labelled=labelled,
            pool=pool,
            share_done=at / params.fit.steps,
            generator=generator,
        )

    def score() -> dict[str, float]:
        return accuracy(network, rows.validation, rows.modality, compute)

    fit(network, step, params.fit, compute, work.watch, score)
    keep_classifier(work.folder, spec, network, rows)
    return score()
