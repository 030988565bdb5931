"""Old flow runs, in a real database of Prefect's."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.past_runs import left_because
from flows.services import Running
from tasks.processes import Process
from tasks.settings import Settings
from tests.conftest import REPOSITORY

SCRIPT = """
import asyncio, json, sys
import flows
from datetime import timedelta
from prefect.server.database import provide_database_interface
from prefect.server.schemas.states import StateType
from prefect.types._datetime import now
import sqlalchemy
from flows.past_runs import delete_old_runs, left_because, old_runs
from tasks.settings import Settings

db = provide_database_interface()
names = {}

async def fill():
    async with db.session_context(begin_transaction=True) as session:
        flow = db.Flow(name="retrain")
        session.add(flow)
        await session.flush()
        for name, state, days in (
            ("old", "COMPLETED", 30), ("died", "CRASHED", 30), ("young", "COMPLETED", 1),
            ("running", "RUNNING", None),
        ):
            ended = None if days is None else now("UTC") - timedelta(days=days)
            run = db.FlowRun(
                flow_id=flow.id, name=name, state_type=StateType(state), state_name=state,
                end_time=ended,
            )
            session.add(run)
            await session.flush()
            names[str(run.id)] = name
            session.add(db.Log(
                name="n", level=20, flow_run_id=run.id, message=name, timestamp=now("UTC")
            ))
            session.add(db.Artifact(key=None, type="table", data="[]", flow_run_id=run.id))

async def left():
    async with db.session_context() as session:
        runs = (await session.execute(sqlalchemy.select(db.FlowRun.name))).scalars().all()
        logs = (await session.execute(sqlalchemy.select(db.Log.message))).scalars().all()
        artifacts = (await session.execute(sqlalchemy.select(db.Artifact.id))).scalars().all()
        return {"runs": sorted(runs), "logs": sorted(logs), "artifacts": len(artifacts)}

asyncio.run(fill())
settings = Settings()
said = {"why": left_because(settings), "old": sorted(names[one] for one in old_runs(settings, 7))}
delete_old_runs(7)
print(json.dumps(said | asyncio.run(left())))
"""


@pytest.fixture
def project(tmp_path, prefect_database):
    home = tmp_path / ".stillmark" / "prefect"
    home.mkdir(parents=True)
    shutil.copy(prefect_database, home)
    return tmp_path


def said(project):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "STILLMARK_PROJECT": str(project)}
    environment |= {"PREFECT_HOME": str(project / ".stillmark" / "prefect")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_old_runs_that_have_ended_go_with_all_that_is_theirs(project):
    assert said(project) == {
        "why": None,
        "old": ["died", "old"],
        "runs": ["running", "young"],
        "logs": ["running", "young"],
        "artifacts": 2,
    }


@pytest.mark.parametrize(("folder", "is_left"), [("project", False), ("elsewhere", True)])
def test_a_database_of_others_is_left(tmp_path, folder, is_left):
    place = tmp_path / folder / ".stillmark" / "prefect" / "prefect.db"
    address: Any = PREFECT_API_DATABASE_CONNECTION_URL
    with temporary_settings({address: f"sqlite+aiosqlite:///{place}"}):
        why = left_because(Settings(project=tmp_path / "project"))
    assert (why is not None) == is_left


def test_while_services_run_their_database_is_left(tmp_path):
    (tmp_path / ".stillmark").mkdir()
    note = Running(prefect="http://p/api", mlflow="http://m", process=Process.mine())
    note.write(tmp_path / ".stillmark")
    assert "is running" in left_because(Settings(project=tmp_path))
