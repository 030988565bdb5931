"""Structured pruning, and recovery by distillation from the teacher."""

from typing import Annotated

import torch

from tasks.compute import laid_out
from tasks.distillation import DistillationParams, distill_into
from tasks.keep import example, keep_classifier
from tasks.networks import count_parameters
from tasks.pruners import PRUNERS, Pruner
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage


class PruneParams(Section):
    """Section `prune` of params.yaml.

    Attributes:
        method: Which channels go.
        recovery: Distillation after pruning; 300 steps were too few on every network measured.
    """

    method: Annotated[Pruner, PRUNERS]
    recovery: DistillationParams


@stage("pruned")
def prune(
    work: Work, params: PruneParams, *, student: ModelRef, **teachers: ModelRef
) -> dict[str, float]:
    """Removes channels of the student and lets it learn from the teachers again.

    Raises:
        CompressionError: Nothing would be removed, or a layer emptied; names it.
    """
    spec, network = work.network(student)
    network = laid_out(network.cpu(), torch.contiguous_format)
    before = count_parameters(network)
    params.method.prune(network, example(work.rows)[:2])
    spec = spec.resized_as(network)
    network = work.compute.place(network)
    answering = [work.answering(ref) for ref in teachers.values()]
    metrics = distill_into(network, answering, work.rows, params.recovery, work.compute, work.watch)
    keep_classifier(work.folder, spec, network, work.rows)
    return {**metrics, "kept_parameters": count_parameters(network) / before}
