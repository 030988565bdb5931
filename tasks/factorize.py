"""Low-rank factorization, and recovery by distillation from the teachers."""

import json
from pathlib import Path
from typing import Annotated

import torch

from tasks.compute import laid_out
from tasks.distillation import DistillationParams, distill_into
from tasks.errors import ParamsError
from tasks.factorizers import FACTORIZERS, Factored, Factorizer
from tasks.keep import example, keep_classifier
from tasks.networks import Factor, count_macs, count_parameters
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage

REPORT_FILE = "factors.json"


class FactorizeParams(Section):
    """Section `factorize` of params.yaml.

    Attributes:
        method: Which layers are split, and to which ranks.
        recovery: Distillation after that; null for none.
    """

    method: Annotated[Factorizer, FACTORIZERS]
    recovery: DistillationParams | None = None


@stage("factored")
def factorize(
    work: Work, params: FactorizeParams, *, dense: ModelRef, **teachers: ModelRef
) -> dict[str, float]:
    """Splits layers into smaller ones and lets the network learn from the teachers again.

    Raises:
        CompressionError: No layer would shrink; names them.
        ParamsError: There is a recovery and no teacher to recover with.
    """
    if params.recovery and not teachers:
        raise ParamsError(
            "factorize.recovery learns from teachers and none is given; give one, or make it null"
        )
    spec, network = work.network(dense)
    network = laid_out(network.cpu(), torch.contiguous_format)
    batch = example(work.rows)
    before = count_parameters(network), count_macs(network, batch)
    report = params.method.factorize(network, batch)
    after = count_parameters(network), count_macs(network, batch)
    factors: dict[str, Factor] = {one.layer: one.factor for one in report if one.factor}
    spec = spec.model_copy(update={"factors": {**spec.factors, **factors}})
    write_report(work.folder / REPORT_FILE, report)
    network = work.compute.place(network)
    metrics: dict[str, float] = {}
    if params.recovery:
        answering = [work.answering(ref) for ref in teachers.values()]
        metrics = distill_into(
            network, answering, work.rows, params.recovery, work.compute, work.watch
        )
    keep_classifier(work.folder, spec, network, work.rows)
    return {
        **metrics,
        "kept_parameters": after[0] / before[0],
        "kept_macs": after[1] / before[1],
    }


def write_report(path: Path, report: list[Factored]) -> None:
    """What became of each layer, as a JSON list in the order in which they run."""
    path.write_text(json.dumps([one.model_dump(mode="json") for one in report], indent=2), "utf-8")
