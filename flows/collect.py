"""Garbage collection as a flow, and as a look at what it would do."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.chain import planned
from flows.once import NOTED, alone, in_process, is_deployed, preflight
from flows.past_runs import delete_old_runs, left_because, old_runs
from tasks.collect import Collected, Collector, Item
from tasks.errors import DataError
from tasks.params import Params, load
from tasks.refs import ModelRef
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking
from tasks.versioning import Versions

KILO = 1000


@flow(name="collect", validate_parameters=False, **NOTED)
def collect() -> Collected:
    """Deletes what no alias, ledger row or kept record of the project leads to.

    Raises:
        BusyError: A retraining of the project is going on.
        StillmarkError: Whatever else stood in the way, in one line.
    """
    settings = Settings()
    params = preflight(settings) if is_deployed() else load(settings.root)
    with alone(settings, about="gc"):
        found = collector(settings, params).find().collect()
        found = _with_old_runs(found, settings, params)
    rows = [
        {"kind": kind, "items": count, "kB": size / KILO}
        for kind, (count, size) in found.freed.items()
    ]
    said = f"{len(found.items)} items, {found.size_bytes / KILO:.0f} kB freed"
    create_table_artifact(rows, key="collect", description=said)
    return found


def collect_once() -> Collected:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    preflight(Settings())
    found, _ = in_process(collect)
    return found


def look() -> Collected:
    """What the flow would delete; it changes nothing.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    params = preflight(settings)
    found = collector(settings, params).find().planned()
    return _with_old_runs(found, settings, params)


def collector(settings: Settings, params: Params) -> Collector:
    """The collection that a project's parameters ask for."""
    return Collector(settings, params.project, params.gc, _reused(settings, params))


def _with_old_runs(found: Collected, settings: Settings, params: Params) -> Collected:
    """Does the same with what Prefect's own database holds."""
    why = left_because(settings)
    if why is not None:
        return found.model_copy(update={"left": (*found.left, why)})
    names = old_runs(settings, params.gc.keep_days)
    if names and not found.dry_run:
        delete_old_runs(params.gc.keep_days)
    items = [Item(kind="flow run", name=name, size_bytes=0) for name in names]
    return found.model_copy(update={"items": (*found.items, *items)})


def _reused(settings: Settings, params: Params) -> tuple[ModelRef, ...]:
    """What a retraining of the prepared data would take as it is: nobody wants it trained again."""
    try:
        data = Versions.of(settings).current()
    except DataError:
        return ()  # nothing has been prepared, so nothing can have been made from it
    tracking = Tracking(settings.tracking_uri, settings.home)
    found = planned(tracking, Run(params.project, params.compute, data), params)
    return tuple(ref for ref in found.values() if ref is not None)
