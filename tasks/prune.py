"""Pruning in one step or several, and recovery by distillation from the teachers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.channels import WIDE, BatchNorm, Channels, named, squares
from tasks.compute import laid_out
from tasks.distillation import Answering, DistillationParams, Panel, distill_into
from tasks.errors import CompressionError
from tasks.fit import FitParams, Watch
from tasks.keep import keep_classifier
from tasks.networks import Classifier, count_macs, count_parameters
from tasks.pruners import PRUNERS, Evidence, Pruner, sensitivity
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage

SENSITIVITY_FILE = "sensitivity.json"
EVIDENCE_ROWS = 256
TEACHER_BATCH = 128
# The root has no slope at 0.
TINY = 1e-12


class SparsifyParams(Section):
    """Training that makes parts of the student small before they go.

    Attributes:
        kind: `bn_scale` adds strength · Σ |γ| over batch normalisations to the loss (Liu et al.
            2017, arXiv:1708.06519). `groups` adds strength · Σ ‖w‖₂ over the channels that may go,
            each with all weights that make, scale and read it (group lasso; Wen et al. 2016,
            arXiv:1608.03665).
        strength: Weight of the penalty.
        fit: Steps, rate and averaging; everything else is as in `recovery`.
    """

    kind: Literal["bn_scale", "groups"]
    strength: Annotated[float, Field(gt=0)]
    fit: FitParams


class PruneParams(Section):
    """Section `prune` of params.yaml.

    Attributes:
        method: What goes.
        recovery: Distillation after pruning; 300 steps were too few on every network measured.
        iterations: Steps in which the goal is reached, in a geometric progression, each followed by
            a whole recovery (Han et al. 2015, arXiv:1506.02626).
        sparsify: Distillation with a penalty before anything goes; null for none.
    """

    method: Annotated[Pruner, PRUNERS]
    recovery: DistillationParams
    iterations: Annotated[int, Field(ge=1)] = 1
    sparsify: SparsifyParams | None = None


@stage("pruned")
def prune(
    work: Work, params: PruneParams, *, student: ModelRef, **teachers: ModelRef
) -> dict[str, float]:
    """Removes parts of the student and lets it learn from the teachers again.

    Returns:
        Beside the accuracy on validation rows: `kept_parameters` and `kept_macs`, shares of the
        student's; `sparsity`, the share of zeros among the weights, where these stay in place.

    Raises:
        CompressionError: Nothing would be removed, or a layer emptied; names it.
    """
    spec, network = work.network(student)
    learning = _Learning(work, params, [work.answering(ref) for ref in teachers.values()])
    evidence, network = learning.evidence(), _on_cpu(network)
    dense = count_parameters(network), count_macs(network, evidence.example)
    if params.sparsify is not None:
        learning.sparsify(network, params.sparsify, evidence)
    plan = params.method.plan(network, evidence)
    _write(work.folder, sensitivity(params.method, network, plan, evidence))
    metrics: dict[str, float] = {}
    for at in range(params.iterations):
        part = params.method.part_way(plan, (at + 1) / params.iterations)
        params.method.carry_out(network, part, evidence)
        spec = spec.resized_as(network)
        metrics = learning.recover(network, at)
    kept = count_parameters(network), count_macs(network, evidence.example)
    keep_classifier(work.folder, spec, work.compute.place(network), work.rows)
    metrics |= {"kept_parameters": kept[0] / dense[0], "kept_macs": kept[1] / dense[1]}
    return metrics | ({"sparsity": sparsity(network)} if params.method.keeps_zeros else {})


@dataclass(frozen=True)
class _Learning:
    """Distillation before and after parts of the student go."""

    work: Work
    params: PruneParams
    teachers: list[Answering]

    def evidence(self) -> Evidence:
        """Some training rows, and what the teachers say of them."""
        train, compute = self.work.rows.train, self.work.compute
        drawn = torch.randperm(len(train), generator=compute.generator("pruning"))
        rows = drawn[:EVIDENCE_ROWS].sort().values
        stored = torch.from_numpy(train.take(rows.numpy()).inputs)
        inputs = train.encoding.to_network(stored).contiguous()
        labels = torch.from_numpy(train.labels).to(compute.device)
        panel = Panel(self.teachers, self.params.recovery.combination, labels)
        with compute.autocast():
            said = [
                panel(inputs[at].to(compute.device), rows[at]).logits.float()
                for at in torch.arange(len(rows)).split(TEACHER_BATCH)
            ]
        return Evidence(inputs, torch.cat(said).softmax(1).cpu())

    def sparsify(self, network: Classifier, how: SparsifyParams, evidence: Evidence) -> None:
        """Trains the student on with a penalty."""
        params = self.params.recovery.model_copy(update={"fit": how.fit})
        watch = self._watch(self.work.watch.named("sparsify"), 0, how.fit.steps)
        self._distill(network, params, watch, penalty(how, network, evidence.example))

    def recover(self, network: Classifier, at: int) -> dict[str, float]:
        """Recovery number `at`, from 0."""
        params, several = self.params.recovery, self.params.iterations > 1
        watch = self.work.watch.named(f"iteration-{at + 1}") if several else self.work.watch
        before = self.params.sparsify.fit.steps if self.params.sparsify else 0
        watch = self._watch(watch, before + at * params.fit.steps, params.fit.steps)
        # A mask lies where the weights lie while they are trained.
        self.work.compute.place(network)
        with zeros_held(network) if self.params.method.keeps_zeros else nullcontext():
            return self._distill(network, params, watch)

    def _distill(
        self,
        network: Classifier,
        params: DistillationParams,
        watch: Watch,
        extra: Callable[[], Tensor] | None = None,
    ) -> dict[str, float]:
        rows, compute = self.work.rows, self.work.compute
        placed = compute.place(network)
        metrics = distill_into(placed, self.teachers, rows, params, compute, watch, extra)
        _on_cpu(network)
        return metrics

    def _watch(self, watch: Watch, done: int, steps: int) -> Watch:
        """Reports of one training among several: steps count on from those done before."""
        others = self.params.recovery.fit.steps * self.params.iterations - steps
        others += self.params.sparsify.fit.steps if self.params.sparsify else 0

        def report(at: int, count: int, metrics: dict[str, float]) -> None:
            watch.progress(done + at, others + count, metrics)

        return replace(watch, progress=report)


def penalty(how: SparsifyParams, network: Classifier, example: Tensor) -> Callable[[], Tensor]:
    """What a training adds to its loss so that parts of the network become small.

    Args:
        how: Kind and strength.
        network: In evaluation mode, on the CPU; it may be moved afterwards.
        example: A batch of at least 2 rows, as the network takes them.

    Raises:
        CompressionError: The network has nothing to be penalised, or cannot be traced.
    """
    if how.kind == "groups":
        groups = Channels(network, example).groups
        sizes = [partial(group.total, squares, group.members) for group in groups]
        return _sum(how, network, [lambda size=size: (size() + TINY).sqrt() for size in sizes])
    scales = [
        module.weight
        for module in network.modules()
        if isinstance(module, BatchNorm) and module.weight is not None
    ]
    return _sum(how, network, [scale.abs for scale in scales])


def _sum(
    how: SparsifyParams, network: Classifier, terms: list[Callable[[], Tensor]]
) -> Callable[[], Tensor]:
    if not terms:
        needs = {"bn_scale": "batch normalisation", "groups": "channels that may go"}[how.kind]
        raise CompressionError(
            f"sparsify of kind '{how.kind}' needs {needs}, and {named(network)} has none; take "
            "another kind, or null"
        )
    return lambda: how.strength * torch.stack([term().sum() for term in terms]).sum()


@contextmanager
def zeros_held(network: nn.Module) -> Iterator[None]:
    """While a network is trained in here, weights that are 0 stay so.

    They get no gradient: the optimizer's moments then stay 0, and so does a share of the weight.
    """
    handles = [weight.register_hook((weight.detach() != 0).mul) for weight in _weights(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sparsity(network: nn.Module) -> float:
    """Share of zeros among the weights of convolutions, linear layers and embeddings."""
    weights = _weights(network)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def _weights(network: nn.Module) -> list[nn.Parameter]:
    return [one.get_parameter("weight") for one in network.modules() if isinstance(one, WIDE)]


def _on_cpu(network: Classifier) -> Classifier:
    return laid_out(network.cpu(), torch.contiguous_format)


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / SENSITIVITY_FILE).write_text(json.dumps(rows, indent=2), encoding="utf-8")
