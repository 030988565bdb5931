"""Which candidates to try: Optuna's proposals, kept in the project's folder and resumed."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from tasks.distillation import DistillationParams
from tasks.errors import CompressionError
from tasks.factorize import FactorizeParams
from tasks.factorizers.svd import Svd
from tasks.fit import FitParams
from tasks.params import Params
from tasks.prune import PruneParams
from tasks.pruners.magnitude import Magnitude
from tasks.quantizers import Quantizer
from tasks.quantizers.float32 import Float32
from tasks.scaling import scaled
from tasks.sections import Section
from tasks.settings import Settings
from tasks.weigh import Space, Weighed

DATABASE = "search.db"
DIRECTIONS = ("maximize", "minimize", "minimize")
EXCESS, LARGEST_EXCESS = "excess", 1e9
PROPOSALS = 20  # Optuna may propose what was tried; after so many the next untried point is taken
SHARES = (1.0, 0.75, 0.5)
HALF = 0.5


class Point(Section):
    """One candidate: what is done to the student that `distill` names.

    Attributes:
        width: Share of its widths.
        shallower: Layers fewer.
        keep_ratio: Share of the channels that pruning keeps; None prunes nothing.
        rank: Share of the parameters that low-rank factors keep; None factors nothing.
        precision: Position in the space's `precisions`.
    """

    width: float
    shallower: int
    keep_ratio: float | None
    rank: float | None
    precision: int

    def name(self, space: Space) -> str:
        """As tables, metrics and the registry call it."""
        parts = [f"w{self.width:g}"]
        parts += [f"d-{self.shallower}"] if self.shallower else []
        parts += [f"k{self.keep_ratio:g}"] if self.keep_ratio else []
        parts += [f"r{self.rank:g}"] if self.rank else []
        return " ".join([*parts, _labels(space)[self.precision]])


def _labels(space: Space) -> list[str]:
    names = [str(method.plain()["name"]) for method in space.precisions]
    return [
        name if names.count(name) == 1 else f"{name}-{names[: at + 1].count(name)}"
        for at, name in enumerate(names)
    ]


def space_of(params: Params) -> Space:
    """The space that the parameters state, or the one that a bare budget stands for."""
    stated = params.budget.space if params.budget else None
    own: Quantizer = params.quantize.method
    return stated or Space(
        widths=tuple(share for share in SHARES if _exists(params, share)),
        keep_ratios=(None, _ratio(params.prune and params.prune.method)),
        ranks=(None, _ratio(params.factorize.method)) if params.factorize else (None,),
        precisions=(own,) if isinstance(own, Float32) else (own, Float32()),
    )


def _exists(params: Params, share: float) -> bool:
    try:
        scaled(params.distill.network, share)
    except CompressionError:
        return False
    return True


def _ratio(method: Section | None) -> float:
    return getattr(method, "keep_ratio", None) or HALF


def points(space: Space) -> Iterator[Point]:
    """Every candidate of a space, the student as it is first."""
    numbers = range(len(space.precisions))
    for width, shallower, keep_ratio, rank, precision in itertools.product(
        space.widths, space.shallower, space.keep_ratios, space.ranks, numbers
    ):
        yield Point(
            width=width,
            shallower=shallower,
            keep_ratio=keep_ratio,
            rank=rank,
            precision=precision,
        )


def applied(params: Params, space: Space, point: Point) -> Params:
    """The parameters whose chain makes a candidate.

    Raises:
        CompressionError: The student has no such variant.
    """
    student = scaled(params.distill.network, point.width, point.shallower)
    method = space.precisions[point.precision]
    fine = params.quantize.finetune if method.weight_limit else None
    return params.model_copy(
        update={
            "distill": params.distill.model_copy(update={"network": student}),
            "prune": _pruned(params, point.keep_ratio),
            "factorize": _factored(params, point.rank),
            "quantize": params.quantize.model_copy(update={"method": method, "finetune": fine}),
        }
    )


def hurried(params: Params) -> Params:
    """The same with trainings of one step.

    What such a chain makes costs the device what the trained model will, and takes seconds.
    """
    return _with_steps(params, lambda _steps: 1)


def shortened(params: Params, share: float) -> Params:
    """The same with trainings of a share of the steps, at least one; none stays none."""
    return _with_steps(params, lambda steps: max(1, round(share * steps)) if steps else 0)


def _with_steps(params: Params, change: Callable[[int], int]) -> Params:
    """The same with another number of steps wherever the student, or what it becomes, trains."""

    def changed(section: Any) -> Any:  # noqa: ANN401 - any section
        if isinstance(section, tuple):
            return tuple(map(changed, section))
        if isinstance(section, FitParams):
            return section.model_copy(update={"steps": change(section.steps)})
        if not isinstance(section, Section):
            return section
        return section.model_copy(
            update={name: changed(getattr(section, name)) for name in type(section).model_fields}
        )

    names = ("distill", "prune", "factorize", "quantize")
    return params.model_copy(update={name: changed(getattr(params, name)) for name in names})


def _recovery(params: Params) -> DistillationParams:
    fields = {name: getattr(params.distill, name) for name in DistillationParams.model_fields}
    return DistillationParams.model_construct(**fields)


def _pruned(params: Params, keep_ratio: float | None) -> PruneParams | None:
    if keep_ratio is None:
        return None
    section = params.prune or PruneParams(method=Magnitude(), recovery=_recovery(params))
    method = section.method
    if "keep_ratio" not in type(method).model_fields:
        method = Magnitude()
    return section.model_copy(update={"method": _to(method, keep_ratio, "keep_macs")})


def _factored(params: Params, rank: float | None) -> FactorizeParams | None:
    if rank is None:
        return None
    section = params.factorize or FactorizeParams(method=Svd(keep_ratio=rank), recovery=None)
    recovery = section.recovery or _recovery(params)
    return section.model_copy(
        update={"method": _to(section.method, rank, "energy"), "recovery": recovery}
    )


def _to(method: Section, keep_ratio: float, other: str) -> Section:
    """A method with another ratio; `other` is what may be set instead of it."""
    fields = type(method).model_fields
    update = {"keep_ratio": keep_ratio} | ({other: None} if other in fields else {})
    return method.model_copy(update=update)


@dataclass(frozen=True)
class Search:
    """One search, as far as it has come.

    Attributes:
        study: Optuna's.
        space: What is searched.
    """

    study: optuna.Study
    space: Space

    @classmethod
    def resume(cls, settings: Settings, name: str, space: Space, seed: int) -> "Search":
        """Opens the search of a name, or begins it.

        Trials that a killed process left open are closed; their points will be proposed again.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constraints_func=_constraints)
        study = optuna.create_study(
            storage=f"sqlite:///{settings.writable_home() / DATABASE}",
            sampler=sampler,
            study_name=name,
            directions=DIRECTIONS,
            load_if_exists=True,
        )
        for left in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)
        return cls(study, space)

    @property
    def tried(self) -> list[Point]:
        """The points that came to an end, in order."""
        ended = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        return list(dict.fromkeys(_point(trial) for trial in ended))

    def propose(self) -> tuple[Trial, Point] | None:
        """The next point, or None where all were tried."""
        tried = self.tried
        left = [point for point in points(self.space) if point not in tried]
        if not left:
            return None
        if not tried:
            self._enqueue(left[0])
        for _ in range(PROPOSALS):
            trial = self._ask()
            if (point := _point(trial)) in left:
                return trial, point
            self.study.tell(trial, state=TrialState.FAIL)
        self._enqueue(left[0])
        trial = self._ask()
        return trial, _point(trial)

    def tell(self, trial: Trial, weighed: Weighed | None, excess: float) -> None:
        """Ends a trial.

        Args:
            trial: What `propose` gave.
            weighed: What was found; None of a candidate that was given up.
            excess: How far it is beyond the tightest limit; 0 or less is inside.
        """
        trial.set_user_attr(EXCESS, min(excess, LARGEST_EXCESS))
        if weighed is None:
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        cost = weighed.cost
        values = (weighed.accuracy.value, float(cost.size_bytes), cost.latency_p50_ms)
        self.study.tell(trial, values)

    def _ask(self) -> Trial:
        space = self.space
        choices: dict[str, Sequence[Any]] = {
            "width": space.widths,
            "shallower": space.shallower,
            "keep_ratio": space.keep_ratios,
            "rank": space.ranks,
            "precision": range(len(space.precisions)),
        }
        return self.study.ask(
            {name: CategoricalDistribution(tuple(found)) for name, found in choices.items()}
        )

    def _enqueue(self, point: Point) -> None:
        self.study.enqueue_trial(point.plain())


def _point(trial: Trial | FrozenTrial) -> Point:
    return Point(**{name: trial.params[name] for name in Point.model_fields})


def _constraints(trial: FrozenTrial) -> tuple[float, ...]:
    return (trial.user_attrs.get(EXCESS, 1.0),)
