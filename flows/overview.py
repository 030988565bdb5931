"""What `stillmark status` says: registered models, champions, the last runs."""

from typing import Any

from tasks.params import load
from tasks.promote import CHAMPION
from tasks.settings import Settings
from tasks.tracking import REASON_TAG, STAGE_TAG, Tracking

RUNS = 10


def overview(settings: Settings, tracking: Tracking) -> dict[str, Any]:
    """Models and runs of the project as plain data."""
    project = load(settings.root).project
    names = [name for name in tracking.registered() if name.startswith(f"{project}.")]
    return {
        "project": project,
        "models": [_model(tracking, name) for name in names],
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


def _model(tracking: Tracking, name: str) -> dict[str, Any]:
    versions = {int(found.version): found for found in tracking.versions(name)}
    holder = tracking.holder(name, CHAMPION)
    champion = versions[holder.version] if holder else None
    return {
        "model": name,
        "versions": len(versions),
        "champion": holder.version if holder else None,
        "reason": champion.tags.get(REASON_TAG) if champion else None,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    if not found["models"]:
        return [f"'{found['project']}' has no models yet; run `stillmark retrain`", *_runs(found)]
    models: list[str] = []
    for model in found["models"]:
        champion = f"champion: version {model['champion']}" if model["champion"] else "no champion"
        plural = "version" if model["versions"] == 1 else "versions"
        models.append(f"{model['model']:<24} {model['versions']} {plural}, {champion}")
        if model["reason"]:
            models.append(f"    {model['reason']}")
    return [*models, *_runs(found)]


def _runs(found: dict[str, Any]) -> list[str]:
    runs = [
        f"  {run['status']:<9} {run['stage'] or '?':<10} {run['run_id']}  {run['reason'] or ''}"
        for run in found["runs"]
    ]
    return ["last runs, newest first:", *(line.rstrip() for line in runs)] if runs else []
