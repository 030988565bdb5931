"""Fit a budget: the cheapest model that a device can hold, chosen on validation rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.candidates import Attempt, Project, attempt, walker
from flows.chain import pretrained, teach_all, walk, warmed
from flows.front_picture import draw_front
from flows.once import NOTED, alone, flow_run_id, preflight, wait_for_task_states
from flows.search import Point, Search, applied, points, space_of
from tasks.data import data
from tasks.distill import distill
from tasks.errors import CompressionError, ParamsError
from tasks.evaluate import Evaluation
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_value
from tasks.params import Params, load
from tasks.refs import ModelRef, VersionRef
from tasks.register import register
from tasks.rows import Rows
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED
from tasks.weigh import (
    BudgetParams,
    Choice,
    Found,
    Limits,
    Space,
    Weighed,
    choose,
    front,
    labelled_validation,
)

ROLE, PLOT_FILE = "candidate", "front.png"
SECTIONS = ("distill", "prune", "factorize", "quantize")


@dataclass(frozen=True)
class Fitted:
    """What a search for a budget found.

    Attributes:
        limits: The budget.
        found: Every trained candidate, measured together.
        choice: The cheapest inside, or the nearest miss.
        given_up: Why the others were not trained in full, by candidate.
        screened: What was found after the short trainings, in their order.
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
    screened: tuple[Weighed, ...]
    candidates: dict[str, VersionRef]
    sections: dict[str, Any]
    versions: dict[str, VersionRef]
    evaluation: Evaluation | None
    plot: Path
    flow_run_id: str


def _store() -> Tracking:
    settings = Settings()
    return Tracking(settings.tracking_uri, settings.home)


@flow(name="fit-budget", validate_parameters=False, **NOTED)
def fit_budget() -> Fitted:
    """Searches the cheapest model within section `budget`, on the project in the working folder."""
    settings = Settings()
    params = load(settings.root)
    budget = budget_of(params)
    run = Run(params.project, params.compute, data(params.compute))
    labelled_validation(Rows(settings.root / PREPARED))
    tracking = Tracking(settings.tracking_uri, settings.home)
    meet = warmed(walker(run), tracking, run, params)
    teachers = teach_all(meet, params, pretrained(meet, params))
    reference = meet(distill, params.distill, **teachers)
    project = Project(run, params, budget.limits, budget.screening_share, teachers, reference)
    attempts = _search(project, settings, budget.trials)
    edges = {name: one.edge for name, one in attempts.items() if one.edge}
    given_up = {name: one for name, one in attempts.items() if not one.edge}
    if not edges:
        nearest = min(given_up, key=lambda name: given_up[name].excess)
        raise CompressionError(
            f"none of {len(given_up)} candidates is within the budget; the nearest, '{nearest}': "
            f"{given_up[nearest].reason}. Raise the limit, or widen budget.space"
        )
    found = project.weigh(edges)
    registered = _register(project, edges, found)
    choice = choose(found.candidates, budget.limits)
    create_table_artifact(
        rows_of(found, budget.limits), key="front", description=sentence(choice, budget.limits)
    )
    plot = settings.home / PLOT_FILE
    draw_front(found, budget.limits, choice.chosen.name if choice.chosen else None, plot)
    sections, versions, evaluation = _finish(project, choice)
    return Fitted(
        limits=budget.limits,
        found=found,
        choice=choice,
        given_up={name: one.reason for name, one in given_up.items()},
        screened=tuple(one.screened for one in attempts.values() if one.screened),
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


def _search(project: Project, settings: Settings, trials: int) -> dict[str, Attempt]:
    """All attempts by candidate, in order; what was tried before is taken again."""
    params = project.params
    space = space_of(params)
    search = Search.resume(settings, _study(project, space), space, params.compute.seed)
    attempts: dict[str, Attempt] = {}

    def make(point: Point) -> Attempt:
        name = point.name(space)
        rivals = [one.screened for one in attempts.values() if one.screened]
        attempts[name] = attempt(name, project, applied(params, space, point), rivals)
        return attempts[name]

    for point in search.tried:
        make(point)
    while _trained(attempts) < trials and (proposed := search.propose()):
        trial, point = proposed
        found = make(point)
        search.tell(trial, found.weighed, found.excess)
    return attempts


def _trained(attempts: dict[str, Attempt]) -> int:
    return sum(one.edge is not None for one in attempts.values())


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
            "screening": project.screening_share,
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
        more = {"low": one.cost.latency_low_ms, "high": one.cost.latency_high_ms}
        figures |= {f"latency_{end}_ms": at for end, at in more.items() if at is not None}
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


def screened_rows(screened: Sequence[Weighed]) -> list[dict[str, Any]]:
    """What was found after the short trainings, as plain data, in the order of the search."""
    return [_figures(one) for one in screened]


def _row(one: Weighed, limits: Limits, *, on_front: bool) -> dict[str, Any]:
    spent = one.spent(limits)
    worst = max(spent, key=lambda name: spent[name])
    return {
        **_figures(one),
        "on_front": on_front,
        "inside": spent[worst] <= 1,
        "binding": worst,
    }


def _figures(one: Weighed) -> dict[str, Any]:
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
    }


def sentence(choice: Choice, limits: Limits) -> str:
    """What a search came to, in a sentence, and a second where a latency may be either side."""
    if choice.chosen:
        return (
            f"'{choice.chosen.name}' is the cheapest candidate within the budget; it is closest to "
            f"{choice.binding} ({choice.used:.0%} used).{_doubt(choice, limits)}"
        )
    much = f"{choice.used:.2f} times" if math.isfinite(choice.used) else "more than"
    return (
        f"No candidate is within the budget. The nearest, '{choice.nearest.name}', takes {much} "
        f"{choice.binding}.{_doubt(choice, limits)}"
    )


def _doubt(choice: Choice, limits: Limits) -> str:
    cost, limit = choice.nearest.cost, limits.latency_ms
    low, high = cost.latency_low_ms, cost.latency_high_ms
    if limit is None or low is None or high is None or not low <= limit < high:
        return ""
    return (
        f" Its latency may be on either side of the limit ({low:.3f}–{high:.3f} ms): raise "
        "evaluate.latency_calls, and keep the host quiet."
    )
