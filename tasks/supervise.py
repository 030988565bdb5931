"""The control: the student's own network on the shown labels alone, with everything else equal."""

from typing import Annotated

from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.fit import FitParams, fit
from tasks.keep import keep_classifier
from tasks.networks import NETWORKS, Network
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.views import Views, accuracy


class SuperviseParams(Section):
    """Section `supervise` of params.yaml.

    Attributes:
        network: The student's network.
        augmentation: The student's augmentation.
        batch_size: Rows per step.
        fit: As many steps as the student has in all, recovery after pruning included.
    """

    network: Annotated[Network, NETWORKS]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    batch_size: Annotated[int, Field(ge=2)]
    fit: FitParams


@stage("control")
def supervise(work: Work, params: SuperviseParams) -> dict[str, float]:
    """Trains on the shown labels alone: no pool, no teacher."""
    rows, compute = work.rows, work.compute
    spec, network = work.fresh(params.network)
    labelled = Views(rows.train.labelled, params.augmentation, compute)

    def step(_at: int, generator: Generator) -> Tensor:
        index = labelled.sample(params.batch_size, generator)
        logits = network(labelled.augmented(index, generator)).float()
        return functional.cross_entropy(logits, labelled.labels[index.to(logits.device)])

    def score() -> dict[str, float]:
        return accuracy(network, rows.validation, compute)

    fit(network, step, params.fit, compute, work.watch, score)
    keep_classifier(work.folder, spec, network, rows)
    return score()
