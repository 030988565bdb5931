"""Self-supervised pretraining: an encoder from every training row, without labels."""

from typing import Annotated

from tasks import networks
from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.fit import FitParams, fit
from tasks.networks import NETWORKS, Network
from tasks.objectives import OBJECTIVES, Objective
from tasks.probe import linear_probe
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.views import Views


class PretrainParams(Section):
    """Section `pretrain` of params.yaml.

    Attributes:
        network: Body of the encoder, and of a teacher that is fine-tuned from it.
        objective: What is learnt without labels.
        augmentation: Makes the views.
        fit: Steps, rate and averaging.
    """

    network: Annotated[Network, NETWORKS]
    objective: Annotated[Objective, OBJECTIVES]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    fit: FitParams


@stage("encoder")
def pretrain(work: Work, params: PretrainParams) -> dict[str, float]:
    """Trains an encoder on all training rows; no label is used."""
    spec, encoder = work.fresh(params.network, outputs=0)
    heads = work.compute.place(params.objective.heads(spec.width, work.rows.encoding))
    pool = Views(work.rows.train, params.augmentation, work.compute)
    fit(
        encoder,
        lambda _at, generator: params.objective.loss(encoder, heads, pool, generator),
        params.fit,
        work.compute,
        work.watch,
        beside=heads,
    )
    networks.save(work.folder, spec, encoder)
    return linear_probe(encoder, work.rows, work.compute)
