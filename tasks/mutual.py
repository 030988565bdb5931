"""Mutual learning: a student and an auxiliary network learn from the teachers and each other."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.compute import Compute
from tasks.distillation import Answering, Batch, Course, DistillationParams
from tasks.errors import ParamsError
from tasks.fit import FitParams, Watch, averaged, fit, never
from tasks.keep import keep_classifier
from tasks.losses import LOSSES, Loss, Pair
from tasks.losses.hard_labels import HardLabels
from tasks.losses.soft_labels import SoftLabels
from tasks.networks import NETWORKS, Classifier, Network
from tasks.refs import ModelRef
from tasks.rows import Rows
from tasks.stage import Work, stage
from tasks.views import accuracy

TURNS = MAIN, AUXILIARY = 0, 1
ACCURACY = "validation_accuracy"
PREFIXES = "", "auxiliary_"


class MutualParams(DistillationParams):
    """Section `mutual` of params.yaml, whose student takes the place of `distill`'s.

    Deep mutual learning (Zhang et al. 2018, arXiv:1706.00384): both networks learn by `losses`, and
    each imitates what the other says of the same batch, softened:

        L_main = losses(main) + T² · KL(softmax(auxiliary / T) ‖ softmax(main / T))
        L_auxiliary = losses(auxiliary) + T² · KL(softmax(main / T) ‖ softmax(auxiliary / T))

    On every batch they take turns (algorithm 1 of the paper): first the main network, then the
    auxiliary one takes a step down L_main + λ · L_auxiliary, the other held fixed. The paper's
    steps each go down the network's own loss alone; a factor before that whole loss would have no
    effect with AdamW, which takes it out again.

    Attributes:
        fit: Steps of each network, rate and averaging.
        losses: As in `distill`; by default the shown labels and the teachers' answers.
        network: The main network: the student.
        auxiliary: The other, which is thrown away.
        auxiliary_weight: λ.
        temperature: T.
        target_accuracy: Accuracy of the main network on validation rows at which learning ends,
            looked at in every report; null never ends it early.
    """

    losses: Annotated[tuple[Annotated[Loss, LOSSES], ...], Field(min_length=1)] = (
        HardLabels(),
        SoftLabels(),
    )
    network: Annotated[Network, NETWORKS]
    auxiliary: Annotated[Network, NETWORKS]
    auxiliary_weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None


@stage("student")
def mutual(work: Work, params: MutualParams, **teachers: ModelRef) -> dict[str, float]:
    """Trains a student beside an auxiliary network, then without it to see what that gave."""
    answering = [work.answering(ref) for ref in teachers.values()]
    spec, main = work.fresh(params.network)
    _, auxiliary = work.fresh(params.auxiliary)
    both = main, auxiliary
    metrics = learn_together(both, answering, work.rows, params, work.compute, work.watch)
    keep_classifier(work.folder, spec, main, work.rows)
    return metrics


def learn_together(
    both: tuple[Classifier, Classifier],
    teachers: Sequence[Answering],
    rows: Rows,
    params: MutualParams,
    compute: Compute,
    watch: Watch,
) -> dict[str, float]:
    """Trains a main and an auxiliary network in place; then a copy of the main one alone.

    The copy starts where the main network did, sees the same views of the same rows at the same
    rates and takes as many steps, by `losses` alone: what differs is what the auxiliary gave.

    Args:
        both: Main and auxiliary, on `compute`'s device.
        teachers: At least one.
        rows: The prepared rows; hidden labels stay hidden.
        params: How.
        compute: Device, precision and seed.
        watch: Reports and checkpoints.

    Returns:
        Validation accuracies, where there are such rows: the main network's, the auxiliary's
        (`auxiliary_…`), the copy's (`alone_…`), and the main network's minus the copy's
        (`auxiliary_gain`). Relative distances of weights, ‖a - b‖ / ‖b‖: main from the copy
        (`distance_from_alone`), both from the start (`distance_from_start`, `alone_…`). Steps of
        the main network (`main_steps`).

    Raises:
        ParamsError: A loss needs features or maps that a network or the teachers do not have, or
            there is a target but no validation row to judge it on.
    """
    _refuse_blind(params, rows)
    course = Course.of(both, teachers, rows, params, compute, watch)
    alone = _first_alone(course)
    start = deepcopy(both[MAIN])
    with_target = replace(watch.named("together"), stop=_stop(params))
    steps = _train(course, params, rows, compute, with_target)
    as_long = replace(_prefixed(watch.named("alone")), stop=lambda at, _metrics: at >= steps)
    _train(alone, params, rows, compute, as_long)
    (copy,) = alone.students
    return {
        **_contribution(_scores(both, rows, compute), _scores([copy], rows, compute)),
        "distance_from_alone": distance(both[MAIN], copy),
        "distance_from_start": distance(both[MAIN], start),
        "alone_distance_from_start": distance(copy, start),
        "main_steps": float(math.ceil(steps / len(TURNS))),
    }


class Together(nn.Module):
    """Networks that take turns, as one module: one loop trains them, one checkpoint holds them.

    Attributes:
        networks: The main one, and the auxiliary where there is one.
        nobody: Stays 0; what a step acts on in the turn of an auxiliary that is not there.
    """

    def __init__(self, networks: Sequence[Classifier]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.nobody = nn.Parameter(torch.zeros(()))


def _train(course: Course, params: MutualParams, rows: Rows, compute: Compute, watch: Watch) -> int:
    """Trains a course's students in turns; returns the steps done by all of them."""
    torch.manual_seed(compute.seed)
    together = compute.place(Together(course.students))
    by_turns = _by_turns(params.fit)
    average = averaged(together, by_turns)
    judged = together if average is None else cast("Together", average.eval().module)

    def step(at: int, _generator: torch.Generator) -> Tensor:
        number, turn = divmod(at, len(TURNS))
        batch = course.batch(compute.generator("round", str(number)))
        return joint_loss(course, params, turn, batch) + together.nobody.square()

    def score() -> dict[str, float]:
        return _scores(list(judged.networks), rows, compute)

    return fit(
        together, step, by_turns, compute, watch, score, beside=course.heads, average=average
    )


def joint_loss(course: Course, params: MutualParams, turn: int, batch: Batch) -> Tensor:
    """L_main + λ · L_auxiliary, with gradients for the student whose turn it is alone.

    Args:
        course: Of main and auxiliary; of main alone, the sum is losses(main).
        params: λ and temperature.
        turn: `MAIN` or `AUXILIARY`.
        batch: What both learn from.
    """
    inputs, said, labels = batch
    outputs, losses = [], []
    for at, student in enumerate(course.students):
        with torch.set_grad_enabled(at == turn):
            outputs.append(student.outputs(inputs))
            losses.append(course.loss(at, Pair(outputs[at], said, labels)))
    if len(outputs) < len(TURNS):
        return losses[MAIN]
    imitation = SoftLabels(temperature=params.temperature)
    for at, other in ((MAIN, AUXILIARY), (AUXILIARY, MAIN)):
        losses[at] = losses[at] + imitation(Pair(outputs[at], outputs[other], labels))
    return losses[MAIN] + params.auxiliary_weight * losses[AUXILIARY]


@torch.no_grad()
def distance(network: nn.Module, other: nn.Module) -> float:
    """‖a - b‖ / ‖b‖ of two networks' weights, where b is the other's."""
    first, second = (
        torch.cat([one.flatten() for one in each.parameters()]) for each in (network, other)
    )
    return float((first - second).norm() / second.norm())


def _first_alone(course: Course) -> Course:
    """The same course for a copy of its first student, from where that stands now."""
    heads = nn.ModuleList([deepcopy(course.heads[MAIN])])
    return replace(course, students=[deepcopy(course.students[MAIN])], heads=heads)


def _by_turns(params: FitParams) -> FitParams:
    """The same for a loop in which each network has every second step."""
    decay = params.ema_decay and math.sqrt(params.ema_decay)
    return params.model_copy(update={"steps": len(TURNS) * params.steps, "ema_decay": decay})


def _refuse_blind(params: MutualParams, rows: Rows) -> None:
    if params.target_accuracy is not None and not len(rows.validation):
        raise ParamsError(
            "mutual.target_accuracy is judged on validation rows, but no label of any is shown; "
            "raise prepare.validation_labels_per_class, or set it to null"
        )


def _stop(params: MutualParams) -> Callable[[int, dict[str, float]], bool]:
    target = params.target_accuracy
    return never if target is None else lambda _at, metrics: metrics[ACCURACY] >= target


def _scores(networks: Sequence[nn.Module], rows: Rows, compute: Compute) -> dict[str, float]:
    return {
        f"{prefix}{name}": value
        for prefix, network in zip(PREFIXES, networks, strict=False)
        for name, value in accuracy(network, rows.validation, compute).items()
    }


def _contribution(together: dict[str, float], alone: dict[str, float]) -> dict[str, float]:
    if not alone:
        return {}
    gain = together[ACCURACY] - alone[ACCURACY]
    return {**together, f"alone_{ACCURACY}": alone[ACCURACY], "auxiliary_gain": gain}


def _prefixed(watch: Watch) -> Watch:
    """The same, with reports that are told from those of both networks together."""

    def report(at: int, steps: int, metrics: dict[str, float]) -> None:
        watch.progress(at, steps, {f"alone_{name}": value for name, value in metrics.items()})

    return replace(watch, progress=report)
