"""One candidate of a search for a budget: sketched, screened, and only then trained in full."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.chain import P, Walker, shrink
from flows.search import hurried, shortened
from tasks.errors import CompressionError, ParamsError, TrainingError
from tasks.measure import host
from tasks.params import Params
from tasks.refs import ModelRef
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.tracking import Tracking, payload_of
from tasks.weigh import Found, Limits, Weighed, WeighParams, weigh

# A sketch's latency is one look at a busy host: only what is far beyond the limit is given up.
FAR = {"latency_ms": 1.5, "size_kb": 1.02, "memory_kb": 1.25}
REDUCTION = 3  # of so many that are screened, one is trained in full at least


@dataclass(frozen=True)
class Project:
    """What all candidates share.

    Attributes:
        run: What their stages share.
        params: The parameter tree.
        limits: The budget.
        screening_share: Share of all training steps that a candidate is screened by; 0 for none.
        teachers: The chain's teachers, by role.
        reference: The dense float student.
    """

    run: Run
    params: Params
    limits: Limits
    screening_share: float
    teachers: dict[str, ModelRef]
    reference: ModelRef

    def make(self, params: Params) -> ModelRef:
        """The edge model of a chain that begins with these teachers."""
        return shrink(walker(self.run), params, self.teachers)["edge"]

    def weigh(self, candidates: dict[str, ModelRef]) -> Found:
        """Measures candidates beside the reference."""
        calls = self.params.evaluate.latency_calls
        section = WeighParams(latency_calls=calls, host=host())
        report = weigh.run(self.run, section, reference=self.reference, **candidates)
        settings = Settings()
        tracking = Tracking(settings.tracking_uri, settings.home)
        return Found.read(payload_of(tracking.fetch(report).folder))


@dataclass(frozen=True)
class Attempt:
    """What became of one candidate.

    Attributes:
        edge: The model; None where it was given up.
        weighed: What was found of it, measured beside the reference alone; None of one given up.
        excess: How far it is beyond the tightest limit; 0 or less is inside.
        reason: Why it was given up.
        screened: What was found of it after the short training; None where there was none.
    """

    edge: ModelRef | None = None
    weighed: Weighed | None = None
    excess: float = math.inf
    reason: str = ""
    screened: Weighed | None = None


@task(name="candidate", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def attempt(name: str, project: Project, params: Params, rivals: Sequence[Weighed]) -> Attempt:
    """Makes one candidate: in one step, to see what it costs; in a few; then in earnest.

    Args:
        name: The candidate's.
        project: What all of them share.
        params: Whose chain makes it.
        rivals: The candidates that were screened before it, after their short trainings.
    """
    screened = None
    try:
        if given_up := _too_costly(name, project, params):
            return given_up
        if project.screening_share:
            screened = _screened(name, project, params)
            if reason := refusal(screened, rivals):
                reason = f"{reason}, after {project.screening_share:.0%} of the training"
                return Attempt(None, None, _excess(screened, project), reason, screened)
        edge = project.make(params)
    except (CompressionError, ParamsError, TrainingError) as error:
        return Attempt(reason=str(error), screened=screened)
    weighed = project.weigh({name: edge}).candidates[0]
    return Attempt(edge, weighed, _excess(weighed, project), screened=screened)


def walker(run: Run) -> Walker:
    """Meets a stage by running it."""

    def execute(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        return stage.run(run, section, **inputs)

    return execute


def _too_costly(name: str, project: Project, params: Params) -> Attempt | None:
    """Gives up what no training can bring within the limits; None where that cannot be said."""
    if all(getattr(project.limits, limit) is None for limit in FAR):
        return None
    sketch = project.make(hurried(params))
    over = _beyond(project.weigh({name: sketch}).candidates[0], project.limits)
    if not over:
        return None
    worst = max(over, key=lambda limit: over[limit])
    reason = f"{over[worst]:.2f} times {worst} before any training"
    return Attempt(excess=over[worst] - 1, reason=reason)


def _beyond(found: Weighed, limits: Limits) -> dict[str, float]:
    """Limits that no training can keep, with the share of each that is used."""
    spent = found.spent(limits)
    return {name: spent[name] for name, far in FAR.items() if spent.get(name, 0) > far}


def _screened(name: str, project: Project, params: Params) -> Weighed:
    """A candidate after the short training.

    That is a chain of stages of its own, each with its own key: kept, found again and resumed as
    any other. It is not the beginning of the full one. There the learning rate has hardly fallen
    after so few steps, and networks at a high rate tell little of how they end; and what follows
    the distillation (pruning, factors, fine-tuning) starts from its end.
    """
    short = project.make(shortened(params, project.screening_share))
    return project.weigh({name: short}).candidates[0]


def _excess(found: Weighed, project: Project) -> float:
    return max(found.spent(project.limits).values()) - 1


def refusal(one: Weighed, rivals: Sequence[Weighed]) -> str | None:
    """Why a screened candidate is not trained in full; None where it is.

    Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) with one short round, in the
    asynchronous form (Li et al. 2020, arXiv:1810.05934) that Optuna's `SuccessiveHalvingPruner`
    has: of all that were screened so far the best third goes on, and always the best one. That
    pruner refuses searches with several objectives, so its rule is taken from figures to ranks: a
    candidate's rank is the number of those that beat it (Fonseca and Fleming 1993). With accuracy
    as the only difference both rules are one. What nothing beats goes on, however small: it may
    belong to the front.

    Args:
        one: The candidate.
        rivals: Those screened before it.
    """
    better = [rival for rival in rivals if beats(rival, one)]
    if len(better) < max(1, (len(rivals) + 1) // REDUCTION):
        return None
    best = max(better, key=lambda rival: rival.accuracy.value)
    return (
        f"{one.accuracy.value:.1%} of the validation rows where '{best.name}', neither larger nor "
        f"slower, has {best.accuracy.value:.1%}"
    )


def beats(one: Weighed, other: Weighed) -> bool:
    """Whether a candidate is more accurate than another, no larger, and not surely slower.

    Latencies are held against each other as ratios to the reference, beside which each was
    measured: the host may have been busier for one than for the other. Where the 95% intervals
    overlap, neither is slower.
    """
    if one.accuracy.value <= other.accuracy.value or one.cost.size_bytes > other.cost.size_bytes:
        return False
    ours, theirs = one.cost.latency_ratio_low, other.cost.latency_ratio_high
    return ours is None or theirs is None or ours <= theirs
