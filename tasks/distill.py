"""Distillation: a small student learns from one or several teachers on every training row."""

from typing import Annotated

from tasks.distillation import DistillationParams, distill_into
from tasks.keep import keep_classifier
from tasks.networks import NETWORKS, Network
from tasks.refs import ModelRef
from tasks.stage import Work, stage


class DistillParams(DistillationParams):
    """Section `distill` of params.yaml.

    Attributes:
        network: The student.
    """

    network: Annotated[Network, NETWORKS]


@stage("student")
def distill(work: Work, params: DistillParams, **teachers: ModelRef) -> dict[str, float]:
    """Trains a student on the teachers' outputs."""
    answering = [work.answering(ref) for ref in teachers.values()]
    spec, student = work.fresh(params.network)
    metrics = distill_into(student, answering, work.rows, params, work.compute, work.watch)
    keep_classifier(work.folder, spec, student, work.rows)
    return metrics
