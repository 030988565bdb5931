"""Old flow runs in the project's own Prefect database, deleted by Prefect's own functions."""

import asyncio
from datetime import timedelta
from typing import Any

import sqlalchemy
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.server.database import PrefectDBInterface, provide_database_interface
from prefect.server.services import db_vacuum
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD,
    temporary_settings,
)
from prefect.types._datetime import now

from flows.services import Running
from tasks.settings import Settings

FILE = "prefect/prefect.db"
SHORTEST = timedelta(hours=1, seconds=1)  # Prefect keeps them for more than an hour at least


def left_because(settings: Settings) -> str | None:
    """Why the old flow runs are nobody's but somebody else's to delete, or None where they are."""
    if Running.of(settings.home) is not None:
        return "old flow runs: `stillmark up` is running; collect when it is not"
    if str(settings.home / FILE) not in PREFECT_API_DATABASE_CONNECTION_URL.value():
        return "old flow runs: Prefect's database is not the project's own"
    return None


def old_runs(settings: Settings, keep_days: float) -> list[str]:
    """Ids of the flow runs that ended before so many days; none where there is no database."""
    if not (settings.home / FILE).is_file():
        return []
    return asyncio.run(_ids(provide_database_interface(), _kept(keep_days)))


def delete_old_runs(keep_days: float) -> None:
    """Deletes them with their task runs, logs and artifacts."""
    period: Any = PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD
    with temporary_settings({period: _kept(keep_days).total_seconds()}):
        asyncio.run(_delete(provide_database_interface()))


def _kept(keep_days: float) -> timedelta:
    return max(timedelta(days=keep_days), SHORTEST)


async def _ids(db: PrefectDBInterface, kept: timedelta) -> list[str]:
    run: Any = db.FlowRun
    wanted = sqlalchemy.select(run.id).where(
        run.parent_task_run_id.is_(None),
        run.state_type.in_(TERMINAL_STATES),
        run.end_time < now("UTC") - kept,
    )
    async with db.session_context() as session:
        return [str(found) for found in (await session.execute(wanted)).scalars()]


async def _delete(db: PrefectDBInterface) -> None:
    await db_vacuum.vacuum_old_flow_runs(db=db)
    await db_vacuum.vacuum_orphaned_logs(db=db)
    await db_vacuum.vacuum_orphaned_artifacts(db=db)
    await db_vacuum.vacuum_stale_artifact_collections(db=db)
    await db_vacuum.vacuum_old_events(db=db)
