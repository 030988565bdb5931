"""Candidates for a device: what each costs on this host, and what it still gets right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.answers import asking
from tasks.errors import DataError
from tasks.measure import Cost, costs
from tasks.quantizers import QUANTIZERS, Quantizer
from tasks.refs import ModelRef
from tasks.rows import Part, Rows
from tasks.sections import Section
from tasks.stage import Work, stage
from tasks.statistics import Gain, Share, bootstrap, share

REPORT_FILE = "weighed.json"
KIB = 1024
AGREEMENT_ROWS = 2048
EXACT_DIGITS = 12  # a drop of 5 rows in 100 is 0.05, and not a little more
Limit = Annotated[float, Field(gt=0)] | None
Ratio = Annotated[float, Field(gt=0, lt=1)] | None


class Limits(Section):
    """What the device can hold, and what may be lost for it; any of these, at least one.

    Attributes:
        size_kb: Size of the model file, in units of 1,024 bytes.
        latency_ms: Median time of a call at batch 1 on one thread of this host.
        memory_kb: Memory that loading and running it takes beyond the runtime's own, in units of
            1,024 bytes.
        max_accuracy_drop: Accuracy on validation rows that may be lost against the dense float
            student: 0.01 is a point.
    """

    size_kb: Limit = None
    latency_ms: Limit = None
    memory_kb: Limit = None
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> "Limits":
        if not any(getattr(self, name) is not None for name in LIMITS):
            raise ValueError(f"a budget needs a limit: set one of {', '.join(LIMITS)}")
        return self


LIMITS = tuple(Limits.model_fields)


class Space(Section):
    """What the search may change of the student, and to what; each a list of different choices.

    `keep_ratios` and `ranks` change sections `prune` and `factorize`. Where these are null, or
    prune something else than channels, magnitude and SVD stand in, with the recovery that `distill`
    states.

    Attributes:
        widths: Shares of the student's widths.
        shallower: How many layers fewer.
        keep_ratios: Shares of each layer's channels that pruning keeps; null prunes nothing.
        ranks: Shares of each layer's parameters that low-rank factors keep; null factors nothing.
        precisions: Ways to store the weights. What `quantize.finetune` says goes with those that
            training can imitate.
    """

    widths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    shallower: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    keep_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (None, 0.5)
    ranks: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (None,)
    precisions: Annotated[tuple[Annotated[Quantizer, QUANTIZERS], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_no_choice_twice(self) -> "Space":
        for name in type(self).model_fields:
            choices = [str(found) for found in getattr(self, name)]
            if len(set(choices)) < len(choices):
                raise ValueError(f"{name} holds a choice twice")
        return self


class BudgetParams(Limits):
    """Section `budget` of params.yaml.

    Attributes:
        space: What the search may choose from; null tries three quarters and half of the widths,
            with and without what `prune` and `factorize` say, and the float file beside what
            `quantize` says.
        trials: Candidates that are trained in full at most.
        screening_share: Share of all training steps that a candidate takes first, to see whether
            the rest is worth it (see `flows.candidates`); 0 trains every candidate in full.
    """

    space: Space | None = None
    trials: Annotated[int, Field(ge=1)] = 16
    screening_share: Annotated[float, Field(ge=0, lt=1)] = 0.15

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(**{name: getattr(self, name) for name in LIMITS})


class WeighParams(Section):
    """How candidates are weighed.

    Attributes:
        latency_calls: Timed calls of each, taking turns.
        host: Whose latencies they are: on another machine they are taken anew.
    """

    latency_calls: Annotated[int, Field(ge=1)]
    host: str


class Weighed(BaseModel):
    """One candidate.

    Attributes:
        name: Which.
        cost: What it costs on this host.
        accuracy: Share of the labelled validation rows that it gets right.
        drop: Accuracy of the reference minus its own, paired by row, with a 95% interval.
        agreement: Share of the rows without a shown label where it answers as the reference does;
            None where there are no such rows.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    cost: Cost
    accuracy: Share
    drop: Gain
    agreement: float | None

    def spent(self, limits: Limits) -> dict[str, float]:
        """What share of each limit that is set it uses; above 1 is too much."""
        used = {
            "size_kb": self.cost.size_bytes / KIB,
            "latency_ms": self.cost.latency_p50_ms,
            "memory_kb": self.cost.peak_memory_kib,
            "max_accuracy_drop": max(0.0, round(self.drop.value, EXACT_DIGITS)),
        }
        limited = {name: getattr(limits, name) for name in LIMITS}
        return {
            name: _share(used[name], limit) for name, limit in limited.items() if limit is not None
        }


def _share(used: float, limit: float) -> float:
    if not limit:
        return float("inf") if used else 0.0
    return used / limit


class Found(BaseModel):
    """What came of weighing candidates together.

    Attributes:
        rows: Labelled validation rows.
        host: Processor that costs were measured on, with the flags that its kernels use.
        reference: What the candidates are compared to: the dense float student.
        candidates: In the order given.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    host: str
    reference: Weighed
    candidates: tuple[Weighed, ...]

    @classmethod
    def read(cls, folder: Path) -> "Found":
        """Reads the report in a folder."""
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())


@stage("weighed", is_model=False)
def weigh(
    work: Work, params: WeighParams, *, reference: ModelRef, **candidates: ModelRef
) -> dict[str, float]:
    """Measures candidates beside the reference, and asks them about the validation rows.

    Raises:
        DataError: There is no labelled validation row to choose on.
    """
    validation = labelled_validation(work.rows)
    folders = {"reference": work.files(reference)}
    folders |= {name: work.files(ref) for name, ref in candidates.items()}
    measured = costs(work.rows.modality, folders, validation, params.latency_calls)
    hidden = work.rows.train.hidden
    hidden = hidden.take(np.arange(min(len(hidden), AGREEMENT_ROWS)))
    said = {name: _said(work, folder, validation) for name, folder in folders.items()}
    guesses = {name: _said(work, folder, hidden) for name, folder in folders.items()}
    weighed = [
        Weighed(
            name=name,
            cost=measured[name],
            accuracy=share(said[name] == validation.labels),
            drop=_drop(said["reference"] == validation.labels, said[name] == validation.labels),
            agreement=_agreement(guesses["reference"], guesses[name]),
        )
        for name in folders
    ]
    found = Found(
        rows=len(validation),
        host=params.host,
        reference=weighed[0],
        candidates=tuple(weighed[1:]),
    )
    (work.folder / REPORT_FILE).write_text(found.model_dump_json(indent=2), encoding="utf-8")
    return {f"{one.name}.validation_accuracy": one.accuracy.value for one in weighed}


def labelled_validation(rows: Rows) -> Part:
    """The rows that candidates are chosen on.

    Raises:
        DataError: There are none.
    """
    if not len(rows.validation):
        raise DataError(
            "candidates are chosen on labelled validation rows, and there are none; raise "
            "prepare.validation_labels_per_class, or prepare.validation_share"
        )
    return rows.validation


def _said(work: Work, folder: Path, part: Part) -> NDArray[np.int64]:
    return asking(work.rows.modality, folder)(part).argmax(1)


def _drop(reference: NDArray[np.bool_], right: NDArray[np.bool_]) -> Gain:
    return bootstrap((reference.astype(float) - right)[None])


def _agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    return float((first == second).mean()) if len(first) else None


def front(weighed: Sequence[Weighed]) -> list[Weighed]:
    """The Pareto front of accuracy, bytes and latency, fewest bytes first.

    On it is what no other is as good as in all three and better than in one.
    """
    kept = [one for one in weighed if not any(_dominates(other, one) for other in weighed)]
    return sorted(kept, key=_price)


def _dominates(first: Weighed, second: Weighed) -> bool:
    ours, theirs = _figures(first), _figures(second)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _figures(one: Weighed) -> tuple[float, float, float]:
    return -one.accuracy.value, one.cost.size_bytes, one.cost.latency_p50_ms


def _price(one: Weighed) -> tuple[float, float, str]:
    return one.cost.size_bytes, one.cost.latency_p50_ms, one.name


@dataclass(frozen=True)
class Choice:
    """What a budget leaves.

    Attributes:
        chosen: The cheapest candidate within every limit, by bytes, then latency; None where there
            is none.
        nearest: That one, or the candidate whose worst excess is smallest.
        binding: The limit that the nearest comes closest to, or exceeds most.
        used: Share of that limit that it uses.
    """

    chosen: Weighed | None
    nearest: Weighed
    binding: str
    used: float


def choose(weighed: Sequence[Weighed], limits: Limits) -> Choice:
    """The cheapest candidate inside a budget, or the nearest miss.

    Args:
        weighed: At least one candidate.
        limits: The budget.
    """
    worst = {one.name: max(one.spent(limits).values()) for one in weighed}
    inside = [one for one in weighed if worst[one.name] <= 1]
    chosen = min(inside, key=_price, default=None)
    nearest = chosen or min(weighed, key=lambda one: (worst[one.name], *_price(one)))
    spent = nearest.spent(limits)
    binding = max(spent, key=lambda name: spent[name])
    return Choice(chosen, nearest, binding, spent[binding])
