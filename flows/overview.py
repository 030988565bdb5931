"""What `stillmark status` says: what runs, what is due, who is champion, how retrainings ended.

Asks what is there already and starts nothing; what does not answer is named, and the rest is said.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.services import (
    PREFECT_ADDRESS,
    Running,
    mlflow_trouble,
    post,
    prefect_trouble,
    runner_trouble,
)
from tasks.errors import LedgerError, ParamsError, SetupError
from tasks.journal import Journal, Retraining
from tasks.ledger import Ledger
from tasks.sections import read_tree
from tasks.settings import PARAMS_FILE, Settings
from tasks.succession import CHAMPION
from tasks.tracking import REASON_TAG, STAGE_TAG, Tracking

RUNS, RETRAININGS, DUE = 10, 20, 5
ANSWER_SECONDS = 2.0
POLLED_WITHIN = timedelta(minutes=1)  # the runner asks every few seconds


def reach(settings: Settings) -> Tracking | None:
    """The project's MLflow store, or None where it is a server that does not answer at once."""
    if settings.tracking_uri.startswith("http") and mlflow_trouble(
        settings.tracking_uri, ANSWER_SECONDS
    ):
        return None
    return Tracking(settings.tracking_uri, settings.home)


def overview(settings: Settings, tracking: Tracking | None) -> dict[str, Any]:
    """Services, schedule, models and runs of the project as plain data.

    Args:
        settings: Of the project.
        tracking: Its store; None where that does not answer.

    Raises:
        ParamsError: params.yaml cannot be read, or names no project.
    """
    tree = read_tree(settings.root / PARAMS_FILE)
    if not isinstance(tree.get("project"), str):
        raise ParamsError("params.yaml: 'project' is missing")
    project, running = tree["project"], Running.of(settings.home)
    api = os.environ.get(PREFECT_ADDRESS) or (running.prefect if running else None)
    problems: list[str] = []
    found = {
        "project": project,
        "services": _services(running, api),
        "scheduled": _scheduled(api, problems),
        "watch": _watch(tree.get("schedule")),
    }
    if tracking is None:
        problems.append(f"MLflow's server at {settings.tracking_uri} does not answer")
        stored = {"models": [], "runs": [], "retraining": None, "going_on": []}
    else:
        stored = _stored(settings, tracking, project, problems)
    return {**found, **stored, "problems": problems}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    return [
        *_service_lines(found),
        *_schedule_lines(found),
        *_retraining_lines(found),
        *_model_lines(found),
        *_runs(found),
        *(f"problem: {problem}" for problem in found["problems"]),
    ]


def _services(running: Running | None, api: str | None) -> list[dict[str, Any]]:
    asked: list[tuple[str, str, str | None]] = []
    if api is not None:
        trouble = prefect_trouble(api, ANSWER_SECONDS)
        asked.append(("prefect", api.removesuffix("/api"), trouble))
        if running is not None and trouble is None:
            since = (datetime.now(UTC) - POLLED_WITHIN).isoformat()
            asked.append(("runner", "", runner_trouble(api, since)))
    if running is not None:
        asked.append(("mlflow", running.mlflow, mlflow_trouble(running.mlflow, ANSWER_SECONDS)))
    return [
        {"name": name, "address": address, "healthy": trouble is None, "trouble": trouble}
        for name, address, trouble in asked
    ]


def _scheduled(api: str | None, problems: list[str]) -> list[dict[str, Any]]:
    """The next runs that Prefect has planned, the soonest first."""
    if api is None or prefect_trouble(api, ANSWER_SECONDS):
        return []
    due = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": DUE,
    }
    try:
        runs = post(f"{api}/flow_runs/filter", due, ANSWER_SECONDS)
        ids = [run["deployment_id"] for run in runs if run["deployment_id"]]
        which = {"deployments": {"id": {"any_": ids}}}
        known = post(f"{api}/deployments/filter", which, ANSWER_SECONDS)
    except SetupError as error:
        problems.append(str(error))
        return []
    names = {one["id"]: one["name"] for one in known}
    return [
        {"deployment": names[run["deployment_id"]], "at": run["expected_start_time"]}
        for run in runs
        if run["deployment_id"] in names
    ]


def _watch(section: object) -> dict[str, Any]:
    """What params.yaml asks of the watch, read but not checked."""
    given: Mapping[str, Any] = section if isinstance(section, dict) else {}
    return {
        "every_minutes": given.get("every_minutes", 5),
        "triggers": list(given.get("triggers") or []),
    }


def _stored(
    settings: Settings, tracking: Tracking, project: str, problems: list[str]
) -> dict[str, Any]:
    newest = Journal(tracking, project).newest(RETRAININGS)
    ended = [one for one in newest if one.outcome != "running"]
    ledger = _ledger(settings, problems)
    names = [name for name in tracking.registered() if name.startswith(f"{project}.")]
    return {
        "models": [_model(tracking, ledger, name) for name in names],
        "going_on": [_plain(one) for one in newest if one.outcome == "running"],
        "retraining": _plain(ended[0]) if ended else None,
        "runs": [
            {
                "stage": run.data.tags.get(STAGE_TAG),
                "status": run.info.status,
                "reason": run.data.tags.get(REASON_TAG),
                "run_id": run.info.run_id,
            }
            for run in tracking.last_runs(project, RUNS)
        ],
    }


def _plain(one: Retraining) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude={"code", "sections"})


def _ledger(settings: Settings, problems: list[str]) -> Ledger | None:
    try:
        ledger = Ledger(settings.ledger_address)
    except LedgerError as error:
        problems.append(str(error))
        return None
    return ledger


def _model(tracking: Tracking, ledger: Ledger | None, name: str) -> dict[str, Any]:
    versions = {int(found.version): found for found in tracking.versions(name)}
    holder = tracking.holder(name, CHAMPION)
    champion = versions[holder.version] if holder else None
    head = ledger.head(name, CHAMPION) if ledger and champion else None
    return {
        "model": name,
        "versions": len(versions),
        "champion": holder.version if holder else None,
        "reason": champion.tags.get(REASON_TAG) if champion else None,
        "since": head.time if head else None,
        "by": head.actor if head else None,
    }


def _service_lines(found: dict[str, Any]) -> Iterator[str]:
    if not found["services"]:
        yield "no servers run here; `stillmark up` starts them"
    for one in found["services"]:
        state = "healthy" if one["healthy"] else one["trouble"]
        yield f"{one['name']:<8} {one['address']:<28} {state}"


def _schedule_lines(found: dict[str, Any]) -> Iterator[str]:
    watch = found["watch"]
    names = ", ".join(_trigger(one) for one in watch["triggers"]) or "no triggers"
    runs = any(one["name"] == "runner" and one["healthy"] for one in found["services"])
    when = "" if runs else " while `stillmark up` runs"
    yield f"watch looks every {watch['every_minutes']:g} minutes{when}: {names}"
    for one in found["scheduled"][:2]:
        yield f"  next: {one['deployment']} at {_moment(one['at'])}"


def _trigger(given: object) -> str:
    if not isinstance(given, dict):
        return str(given)
    more = " ".join(str(value) for name, value in given.items() if name != "name")
    return f"{given.get('name')} {more}".strip()


def _retraining_lines(found: dict[str, Any]) -> Iterator[str]:
    for one in found["going_on"]:
        yield f"retraining since {_moment(one['started'])}, {_woken(one)}"
    last = found["retraining"]
    if last is not None:
        yield f"last retraining: {_moment(last['ended'] or last['started'])}, {last['outcome']}"
        yield f"  {_woken(last)}"
        yield f"  {last['sentence']}"


def _woken(one: dict[str, Any]) -> str:
    return f"woken by {one['reason']['trigger']}: {one['reason']['sentence']}"


def _model_lines(found: dict[str, Any]) -> Iterator[str]:
    if not found["models"] and not found["problems"]:
        yield f"'{found['project']}' has no models yet; run `stillmark retrain`"
    for model in found["models"]:
        champion = f"champion: version {model['champion']}" if model["champion"] else "no champion"
        since = f" since {_moment(model['since'])}, by {model['by']}" if model["since"] else ""
        plural = "version" if model["versions"] == 1 else "versions"
        yield f"{model['model']:<24} {model['versions']} {plural}, {champion}{since}"
        if model["reason"]:
            yield f"    {model['reason']}"


def _runs(found: dict[str, Any]) -> list[str]:
    runs = [
        f"  {run['status']:<9} {run['stage'] or '?':<10} {run['run_id']}  {run['reason'] or ''}"
        for run in found["runs"]
    ]
    return ["last runs, newest first:", *(line.rstrip() for line in runs)] if runs else []


def _moment(text: str) -> str:
    """A time in UTC, to the second."""
    found = datetime.fromisoformat(text).astimezone(UTC)
    return f"{found:%Y-%m-%d %H:%M:%SZ}"
