"""Fit a budget: the cheapest model that a device can hold, chosen on validation rows."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.chain import P, Walker, pretrained, shrink, teach_all, walk, warmed
from flows.once import NOTED, alone, flow_run_id, preflight, wait_for_task_states
from flows.search import Point, Search, applied, hurried, points, space_of
from tasks.data import data
from tasks.distill import distill
from tasks.errors import CompressionError, ParamsError, TrainingError
from tasks.evaluate import Evaluation
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_value
from tasks.measure import host
from tasks.params import Params, load
from tasks.refs import ModelRef, VersionRef
from tasks.register import register
from tasks.rows import Rows
from tasks.settings import Settings
from tasks.stage import Run, Stage
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED
from tasks.weigh import (
    BudgetParams,
    Choice,
    Found,
    Limits,
    Space,
    Weighed,
    WeighParams,
    choose,
    draw_front,
    front,
    labelled_validation,
    weigh,
)

ROLE, PLOT_FILE = "candidate", "front.png"
SECTIONS = ("distill", "prune", "factorize", "quantize")
# A sketch's latency is one look at a busy host: only what is far beyond the limit is given up.
FAR = {"latency_ms": 1.5, "size_kb": 1.02, "memory_kb": 1.25}


@dataclass(frozen=True)
class Fitted:
    """What a search for a budget found.

    Attributes:
        limits: The budget.
        found: Every trained candidate, measured together.
        choice: The cheapest inside, or the nearest miss.
        given_up: Why the others were not trained, by candidate.
        candidates: Every trained candidate's registered version, by name.
        sections: What to write into params.yaml for the chosen, by section; empty for a miss.
        versions: The chosen chain's registered versions by role; empty for a miss.
        evaluation: The chosen chain on the test rows; None for a miss.
        plot: The picture.
        flow_run_id: Prefect's id of the run.
    """

    limits: Limits
    found: Found
    choice: Choice
    given_up: dict[str, str]
    candidates: dict[str, VersionRef]
    sections: dict[str, Any]
    versions: dict[str, VersionRef]
    evaluation: Evaluation | None
    plot: Path
    flow_run_id: str


def _store() -> Tracking:
    settings = Settings()
    return Tracking(settings.tracking_uri, settings.home)


@dataclass(frozen=True)
class Project:
    """What all candidates share.

    Attributes:
        run: What their stages share.
        params: The parameter tree.
        limits: The budget.
        teachers: The chain's teachers, by role.
        reference: The dense float student.
    """

    run: Run
    params: Params
    limits: Limits
    teachers: dict[str, ModelRef]
    reference: ModelRef

    def weigh(self, candidates: dict[str, ModelRef]) -> Found:
        """Measures candidates beside the reference."""
        calls = self.params.evaluate.latency_calls
        section = WeighParams(latency_calls=calls, host=host())
        report = weigh.run(self.run, section, reference=self.reference, **candidates)
        return Found.read(payload_of(_store().fetch(report).folder))


@dataclass(frozen=True)
class Attempt:
    """What became of one candidate.

    Attributes:
        edge: The model; None where it was given up.
        weighed: What was found of it, measured beside the reference alone; None of one given up.
        excess: How far it is beyond the tightest limit; 0 or less is inside.
        reason: Why it was given up.
    """

    edge: ModelRef | None = None
    weighed: Weighed | None = None
    excess: float = math.inf
    reason: str = ""


@task(name="candidate", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def attempt(name: str, project: Project, params: Params) -> Attempt:
    """Makes one candidate: first in one step, to see what it costs, then in earnest."""
    meet = walker(project.run)
    try:
        if any(getattr(project.limits, limit) is not None for limit in FAR):
            sketch = shrink(meet, hurried(params), project.teachers)["edge"]
            over = _beyond(project.weigh({name: sketch}).candidates[0], project.limits)
            if over:
                worst = max(over, key=lambda limit: over[limit])
                reason = f"{over[worst]:.2f} times {worst} before any training"
                return Attempt(excess=over[worst] - 1, reason=reason)
        edge = shrink(meet, params, project.teachers)["edge"]
    except (CompressionError, ParamsError, TrainingError) as error:
        return Attempt(reason=str(error))
    weighed = project.weigh({name: edge}).candidates[0]
    return Attempt(edge, weighed, max(weighed.spent(project.limits).values()) - 1)


def walker(run: Run) -> Walker:
    """Meets a stage by running it."""

    def execute(stage: Stage[P], section: P, **inputs: ModelRef) -> ModelRef:
        return stage.run(run, section, **inputs)

    return execute


def _beyond(found: Weighed, limits: Limits) -> dict[str, float]:
    """Limits that no training can keep, with the share of each that is used."""
    spent = found.spent(limits)
    return {name: spent[name] for name, far in FAR.items() if spent.get(name, 0) > far}


@flow(name="fit-budget", validate_parameters=False, **NOTED)
def fit_budget() -> Fitted:
    """Searches the cheapest model within section `budget`, on the project in the working folder."""
    settings = Settings()
    params = load(settings.root)
    budget = budget_of(params)
    run = Run(params.project, params.compute, data())
    labelled_validation(Rows(settings.root / PREPARED))
    tracking = Tracking(settings.tracking_uri, settings.home)
    meet = warmed(walker(run), tracking, run, params)
    teachers = teach_all(meet, params, pretrained(meet, params))
    reference = meet(distill, params.distill, **teachers)
    project = Project(run, params, budget.limits, teachers, reference)
    edges, given_up = _search(project, settings, budget.trials)
    if not edges:
        nearest = min(given_up, key=lambda name: given_up[name].excess)
        raise CompressionError(
            f"none of {len(given_up)} candidates is within the budget; the nearest, '{nearest}': "
            f"{given_up[nearest].reason}. Raise the limit, or widen budget.space"
        )
    found = project.weigh(edges)
    registered = _register(project, edges, found)
    choice = choose(found.candidates, budget.limits)
    create_table_artifact(rows_of(found, budget.limits), key="front", description=sentence(choice))
    plot = settings.home / PLOT_FILE
    draw_front(found, budget.limits, choice.chosen.name if choice.chosen else None, plot)
    sections, versions, evaluation = _finish(project, choice)
    return Fitted(
        limits=budget.limits,
        found=found,
        choice=choice,
        given_up={name: one.reason for name, one in given_up.items()},
        candidates=registered,
        sections=sections,
        versions=versions,
        evaluation=evaluation,
        plot=plot,
        flow_run_id=flow_run_id(),
    )


def budget_of(params: Params) -> BudgetParams:
    """Section `budget`.

    Raises:
        ParamsError: There is none, or the chain has no student that `distill` makes.
        CompressionError: The student has no such variant as its space names.
    """
    if params.budget is None:
        raise ParamsError(
            "params.yaml has no 'budget'; add what the device can hold, for example "
            "budget: {size_kb: 16, max_accuracy_drop: 0.01}"
        )
    if params.mutual is not None:
        raise ParamsError(
            "params.yaml: a budget is fitted by varying distill.network, but 'mutual' makes the "
            "student; set mutual to null"
        )
    space = space_of(params)
    for point in points(space):
        applied(params, space, point)
    return params.budget


def _search(
    project: Project, settings: Settings, trials: int
) -> tuple[dict[str, ModelRef], dict[str, Attempt]]:
    """Candidates by name, and those given up; what was tried before is taken again."""
    params = project.params
    space = space_of(params)
    search = Search.resume(settings, _study(project, space), space, params.compute.seed)
    edges: dict[str, ModelRef] = {}
    given_up: dict[str, Attempt] = {}

    def make(point: Point) -> Attempt:
        name = point.name(space)
        found = attempt(name, project, applied(params, space, point))
        if found.edge is None:
            given_up[name] = found
        else:
            edges[name] = found.edge
        return found

    for point in search.tried:
        make(point)
    while len(edges) < trials and (proposed := search.propose()):
        trial, point = proposed
        found = make(point)
        search.tell(trial, found.weighed, found.excess)
    return edges, given_up


def _study(project: Project, space: Space) -> str:
    """A search goes on while what its results follow from is the same."""
    chain = {
        name: None if section is None else section.plain()
        for name in ("distill", "prune", "factorize", "quantize", "evaluate", "compute")
        for section in [getattr(project.params, name)]
    }
    return digest_of_value(
        {
            "chain": chain,
            "space": space.plain(),
            "limits": project.limits.plain(),
            "data": project.run.data.content,
            "teachers": [ref.content for ref in project.teachers.values()],
            "code": origin.code().digest,
        }
    )


def _register(project: Project, edges: dict[str, ModelRef], found: Found) -> dict[str, VersionRef]:
    """Makes every candidate a version of `<project>.candidate`; gives them by name."""
    tracking = _store()
    versions: dict[str, VersionRef] = {}
    for one in found.candidates:
        figures = {
            "validation_accuracy": one.accuracy.value,
            "size_bytes": float(one.cost.size_bytes),
            "latency_p50_ms": one.cost.latency_p50_ms,
        }
        ref = edges[one.name]
        tags = {"stillmark.candidate": one.name}
        versions[one.name] = tracking.register(f"{project.run.project}.{ROLE}", ref, tags)
        tracking.log_metrics(ref.run_id, figures, model=ref, data=project.run.data)
    return versions


def _finish(
    project: Project, choice: Choice
) -> tuple[dict[str, Any], dict[str, VersionRef], Evaluation | None]:
    """Walks the chosen candidate's whole chain: the only one that sees the test rows."""
    if choice.chosen is None:
        return {}, {}, None
    params = project.params
    space = space_of(params)
    (point,) = (one for one in points(space) if one.name(space) == choice.chosen.name)
    fitted = applied(params, space, point)
    models = walk(walker(project.run), fitted)
    evaluation = models.pop("evaluation")
    versions = register(project.run, models, evaluation)
    tracking = _store()
    report = Evaluation.read(payload_of(tracking.fetch(evaluation).folder))
    ours, theirs = ({name: _plain(one, name) for name in SECTIONS} for one in (params, fitted))
    sections = _changes(ours, theirs)
    return sections, versions, report


def _plain(params: Params, name: str) -> Any:  # noqa: ANN401 - a section as plain data
    section = getattr(params, name)
    return None if section is None else section.plain()


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The parts of a tree that differ from another of the same shape; a method is one part."""
    found: dict[str, Any] = {}
    for name, value in after.items():
        old = before.get(name)
        if value == old:
            continue
        if isinstance(value, dict) and isinstance(old, dict) and "name" not in value:
            found[name] = _changes(old, value)
        else:
            found[name] = value
    return found


def fit_once() -> Fitted:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    budget_of(preflight(settings))
    with alone(settings):
        fitted = fit_budget()
        wait_for_task_states(fitted.flow_run_id)
    return fitted


def rows_of(found: Found, limits: Limits) -> list[dict[str, Any]]:
    """The table, as plain data: the reference, then the candidates, fewest bytes first."""
    best = {one.name for one in front(found.candidates)}
    ordered = sorted(found.candidates, key=lambda one: (one.cost.size_bytes, one.name))
    return [_row(found.reference, limits, on_front=False)] + [
        _row(one, limits, on_front=one.name in best) for one in ordered
    ]


def _row(one: Weighed, limits: Limits, *, on_front: bool) -> dict[str, Any]:
    spent = one.spent(limits)
    worst = max(spent, key=lambda name: spent[name])
    return {
        "candidate": one.name,
        "accuracy": one.accuracy.value,
        "low": one.accuracy.low,
        "high": one.accuracy.high,
        "drop": one.drop.value,
        "drop_low": one.drop.low,
        "drop_high": one.drop.high,
        "agreement": one.agreement,
        **one.cost.model_dump(),
        "on_front": on_front,
        "inside": spent[worst] <= 1,
        "binding": worst,
    }


def sentence(choice: Choice) -> str:
    """What a search came to, in a sentence."""
    if choice.chosen:
        return (
            f"'{choice.chosen.name}' is the cheapest candidate within the budget; it is closest to "
            f"{choice.binding} ({choice.used:.0%} used)."
        )
    much = f"{choice.used:.2f} times" if math.isfinite(choice.used) else "more than"
    return (
        f"No candidate is within the budget. The nearest, '{choice.nearest.name}', takes {much} "
        f"{choice.binding}."
    )
