"""Teaching one network by others: teachers' outputs on the very views that the student sees.

The stages `distill`, `mutual`, `prune`, `factorize` and `quantize` share it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.augmentations import AUGMENTATIONS, Augmentation
from tasks.combinations import COMBINATIONS, Combination
from tasks.combinations.mean import Mean
from tasks.compute import Compute
from tasks.errors import ParamsError
from tasks.fit import FitParams, Watch, fit
from tasks.losses import LOSSES, Loss, Need, Pair, weighted_sum
from tasks.networks import Classifier, Outputs
from tasks.rows import Rows
from tasks.sections import Section
from tasks.views import Views, accuracy

TEACHER_BATCH = 256
EXAMPLE_ROWS = 8
HALF_BYTES, MEGABYTE = 2, 2**20


class DistillationParams(Section):
    """How a student learns from teachers.

    Attributes:
        fit: Steps, rate and averaging.
        batch_size: Rows per step.
        views: Views of every training row whose teacher outputs are cached, where that costs less
            than asking the teachers in every step. Estimators have said all they know: with them
            alone every step has views of its own.
        augmentation: Makes the views.
        losses: Summed with their weights.
        combination: Makes one answer of several teachers'.
        rows_share: Share of the training rows, drawn at random, that the student sees.
        l1: Weight of the sum of the absolute values of the student's weights in the loss.
        cache_mb: Memory that cached outputs may take; teachers are asked in every step beyond it.
    """

    fit: FitParams
    batch_size: Annotated[int, Field(ge=2)]
    views: Annotated[int, Field(ge=1)]
    augmentation: Annotated[Augmentation, AUGMENTATIONS]
    losses: Annotated[tuple[Annotated[Loss, LOSSES], ...], Field(min_length=1)]
    combination: Annotated[Combination, COMBINATIONS] = Mean()
    rows_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    l1: Annotated[float, Field(ge=0)] = 0.0
    cache_mb: Annotated[int, Field(ge=0)] = 512


class Answering(Protocol):
    """A trained teacher.

    Attributes:
        looks: Whether it is shown the views, so that to hear it takes time. What others say of a
            row is known, and stays the same.
    """

    looks: ClassVar[bool]

    def __call__(self, inputs: Tensor, rows: Tensor) -> Outputs:
        """What it says.

        Args:
            inputs: Views of training rows, (N, …), on the device.
            rows: Which rows they are, positions in the training part, (N,) on the CPU.
        """
        ...


@dataclass(frozen=True)
class NetworkAnswers:
    """A network looks at the view.

    Attributes:
        network: In evaluation mode, on the device.
    """

    looks: ClassVar[bool] = True

    network: Classifier

    def __call__(self, inputs: Tensor, rows: Tensor) -> Outputs:  # noqa: ARG002
        """See `Answering.__call__`."""
        return self.network.outputs(inputs)


@dataclass(frozen=True)
class StoredAnswers:
    """An estimator has said all it knows of each row; a view changes nothing.

    Attributes:
        logits: Of every training row, (rows, classes), on the device.
    """

    looks: ClassVar[bool] = False

    logits: Tensor

    def __call__(self, inputs: Tensor, rows: Tensor) -> Outputs:  # noqa: ARG002
        """See `Answering.__call__`."""
        return Outputs(self.logits[rows.to(self.logits.device)])


@dataclass(frozen=True)
class Panel:
    """One or several teachers, heard as one.

    Attributes:
        teachers: At least one. Features and maps come from the first that has them.
        combination: Makes one answer of theirs.
        labels: Of every training row, on the device.
    """

    teachers: Sequence[Answering]
    combination: Combination
    labels: Tensor

    @torch.no_grad()
    def __call__(self, inputs: Tensor, rows: Tensor) -> Outputs:
        """See `Answering.__call__`."""
        found = [teacher(inputs, rows) for teacher in self.teachers]
        labels = self.labels[rows.to(self.labels.device)]
        logits = self.combination(torch.stack([one.logits for one in found]), labels)
        seen = next((one for one in found if one.features is not None), found[0])
        return replace(seen, logits=logits)


Batch = tuple[Tensor, Outputs, Tensor]
"""Inputs, the teachers' outputs on them, labels."""


@dataclass(frozen=True)
class LiveViews:
    """Fresh views in every step, with the teachers asked about each.

    Attributes:
        views: The training rows.
        chosen: Positions of those that the student may see.
        panel: The teachers.
    """

    views: Views
    chosen: Tensor
    panel: Panel
    compute: Compute

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Random views of random rows."""
        rows = self.chosen[torch.randint(len(self.chosen), (size,), generator=generator)]
        inputs = self.views.augmented(rows, generator)
        with self.compute.autocast():
            said = self.panel(inputs, rows)
        return inputs, said, self.views.labels[rows.to(self.views.labels.device)]


@dataclass(frozen=True)
class CachedViews:
    """K views of n rows, each with what the teachers say of it, in half precision.

    Attributes:
        views: The training rows.
        chosen: Positions of those that the student may see, (n,).
        parameters: What makes each view, (K, n, parameters).
        outputs: What the teachers say, (K, n, …) each, on the device.
    """

    views: Views
    chosen: Tensor
    parameters: Tensor
    outputs: Outputs

    @classmethod
    def ask(
        cls, live: LiveViews, count: int, needs: frozenset[Need], watch: Watch
    ) -> "CachedViews":
        """Asks the teachers once about `count` views of every row."""
        views, chosen, compute = live.views, live.chosen, live.compute
        generator = compute.generator("views")
        draw = views.augmentation.draw
        parameters = torch.stack([draw(len(chosen), generator) for _ in range(count)])
        batches = torch.arange(len(chosen)).split(TEACHER_BATCH)
        said: list[Outputs] = []
        with compute.autocast():
            for view in range(count):
                for at in batches:
                    inputs = views.under(chosen[at], parameters[view, at])
                    said.append(_halved(live.panel(inputs, chosen[at]), needs))
                watch.progress(view + 1, count, {})
        return cls(views, chosen, parameters, _gathered(said, count))

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Random cached views of random rows."""
        at = torch.randint(len(self.chosen), (size,), generator=generator)
        view = torch.randint(len(self.parameters), (size,), generator=generator)
        rows = self.chosen[at]
        inputs = self.views.under(rows, self.parameters[view, at])
        device = self.views.labels.device
        where = (view.to(device), at.to(device))
        features = self.outputs.features
        said = Outputs(
            self.outputs.logits[where].float(),
            None if features is None else features[where].float(),
            tuple(one[where].float() for one in self.outputs.maps),
        )
        return inputs, said, self.views.labels[rows.to(device)]


def _halved(said: Outputs, needs: frozenset[Need]) -> Outputs:
    features = said.features.half() if "features" in needs and said.features is not None else None
    maps = tuple(one.half() for one in said.maps) if "maps" in needs else ()
    return Outputs(said.logits.half(), features, maps)


def _gathered(said: list[Outputs], count: int) -> Outputs:
    def together(parts: list[Tensor]) -> Tensor:
        whole = torch.cat(parts)
        return whole.view(count, -1, *whole.shape[1:])

    features = [one.features for one in said if one.features is not None]
    maps = zip(*(one.maps for one in said), strict=True)
    return Outputs(
        together([one.logits for one in said]),
        together(features) if features else None,
        tuple(together(list(level)) for level in maps),
    )


def cache_bytes(example: Outputs, needs: frozenset[Need], views: int, rows: int) -> int:
    """Bytes that cached outputs would take, judged by the outputs on an example batch."""
    kept = _halved(example, needs)
    tensors = [kept.logits, *kept.maps, *([kept.features] if kept.features is not None else [])]
    return views * rows * sum(one[0].numel() * HALF_BYTES for one in tensors)


@dataclass(frozen=True)
class Course:
    """What students of the same teachers learn from, and by which losses.

    Attributes:
        params: How.
        lessons: Views of training rows, with what the teachers say of them.
        students: At least one.
        heads: What each student's losses train beside it, in the students' order.
    """

    params: DistillationParams
    lessons: LiveViews | CachedViews
    students: Sequence[Classifier]
    heads: nn.ModuleList

    @classmethod
    def of(
        cls,
        students: Sequence[Classifier],
        teachers: Sequence[Answering],
        rows: Rows,
        params: DistillationParams,
        compute: Compute,
        watch: Watch,
    ) -> "Course":
        """Hears everyone on a few rows, then has the teachers' answers cached where that pays.

        Raises:
            ParamsError: A loss needs features or maps that the teachers or a student do not have.
        """
        views = Views(rows.train, params.augmentation, compute)
        chosen = _chosen(len(views), params, compute)
        panel = Panel(teachers, params.combination, views.labels)
        live = LiveViews(views, chosen, panel, compute)
        examples = [_example(student, live) for student in students]
        for example in examples:
            _refuse_missing(params, example)
        heads = [
            nn.ModuleList([compute.place(loss.head(example)) for loss in params.losses])
            for example in examples
        ]
        lessons = _lessons(live, examples[0].teacher, params, watch)
        return cls(params, lessons, students, nn.ModuleList(heads))

    def batch(self, generator: torch.Generator) -> Batch:
        """Random views of random rows."""
        return self.lessons.batch(self.params.batch_size, generator)

    def loss(self, at: int, pair: Pair) -> Tensor:
        """The losses of student number `at`, and its share of `l1`: a scalar."""
        pairs = (replace(pair, head=head) for head in self.heads[at].children())
        loss = weighted_sum(self.params.losses, pairs)
        return loss + self.params.l1 * _absolute(self.students[at]) if self.params.l1 else loss


def distill_into(
    student: Classifier,
    teachers: Sequence[Answering],
    rows: Rows,
    params: DistillationParams,
    compute: Compute,
    watch: Watch,
    penalty: Callable[[], Tensor] | None = None,
) -> dict[str, float]:
    """Trains a student in place on the training rows.

    Args:
        student: On `compute`'s device.
        teachers: At least one.
        rows: The prepared rows; hidden labels stay hidden.
        params: How.
        compute: Device, precision and seed.
        watch: Reports and checkpoints.
        penalty: A scalar that every step adds to its loss.

    Returns:
        The student's accuracy on validation rows, where there are any.

    Raises:
        ParamsError: A loss needs features or maps that the teachers or the student do not have.
    """
    course = Course.of([student], teachers, rows, params, compute, watch)

    def step(_at: int, generator: torch.Generator) -> Tensor:
        inputs, said, labels = course.batch(generator)
        loss = course.loss(0, Pair(student.outputs(inputs), said, labels))
        return loss if penalty is None else loss + penalty()

    def score() -> dict[str, float]:
        return accuracy(student, rows.validation, compute)

    fit(student, step, params.fit, compute, watch, score, beside=course.heads)
    return score()


def _chosen(count: int, params: DistillationParams, compute: Compute) -> Tensor:
    """Positions of the rows that the student sees, at least one, in order."""
    share = max(1, round(params.rows_share * count))
    if share == count:
        return torch.arange(count)
    drawn = torch.randperm(count, generator=compute.generator("rows_share"))[:share]
    return drawn.sort().values


@torch.no_grad()
def _example(student: Classifier, live: LiveViews) -> Pair:
    rows = live.chosen[:EXAMPLE_ROWS]
    inputs = live.views.clean(rows)
    student.eval()
    with live.compute.autocast():
        found = student.outputs(inputs), live.panel(inputs, rows)
    student.train()
    return Pair(*found, live.views.labels[rows.to(live.views.labels.device)])


def _refuse_missing(params: DistillationParams, example: Pair) -> None:
    for loss in params.losses:
        for who, said in (("student", example.student), ("teacher", example.teacher)):
            lacks = [need for need in sorted(loss.needs) if not _has(said, need)]
            if lacks:
                raise ParamsError(
                    f"the loss '{loss.plain()['name']}' compares {lacks[0]}, which the {who} does "
                    "not have; take soft_labels, or another network"
                )


def _has(said: Outputs, need: Need) -> bool:
    return said.features is not None if need == "features" else bool(said.maps)


def _lessons(
    live: LiveViews, said: Outputs, params: DistillationParams, watch: Watch
) -> LiveViews | CachedViews:
    """Cached answers where they are asked for more often than made, and fit the memory allowed.

    Where nobody looks, there is nothing to save: every step has views of its own.
    """
    needs = frozenset[Need]().union(*(loss.needs for loss in params.losses))
    count = params.views if live.views.augmentation.draws else 1
    looks = any(teacher.looks for teacher in live.panel.teachers)
    pays = looks and params.fit.steps * params.batch_size >= count * len(live.chosen)
    size = cache_bytes(said, needs, count, len(live.chosen))
    if pays and size <= params.cache_mb * MEGABYTE:
        return CachedViews.ask(live, count, needs, watch)
    return live


def _absolute(network: nn.Module) -> Tensor:
    weights: list[Tensor] = [one for one in network.parameters() if one.dim() > 1]
    return torch.stack([one.abs().sum() for one in weights]).sum()
