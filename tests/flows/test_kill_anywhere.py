"""SIGKILL at any moment: the next start finds what died and ends with the same bits."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from tasks.tracking import Tracking

ROLES = ["encoder", "control", "teacher", "student", "pruned", "edge"]
STAGES = ["pretrain", "teach", "distill", "prune", "quantize", "supervise", "evaluate"]
SLOW = pytest.mark.slow
INTERVAL_SECONDS = 0.5  # between two checkpoints
PATIENCE_SECONDS = 240
AT_WORK = (
    "SELECT count(*) FROM runs r JOIN tags t ON r.run_uuid = t.run_uuid"
    " WHERE r.status = 'RUNNING' AND t.key = 'stillmark.stage' AND t.value = ?"
)
TRAINS = AT_WORK + " AND EXISTS (SELECT 1 FROM metrics m WHERE m.run_uuid = r.run_uuid)"  # noqa: S608
REGISTERED = "SELECT count(*) FROM model_versions WHERE ? != ''"


@dataclass(frozen=True)
class Hunt:
    """A project that is retrained, and killed while it is."""

    project: object
    folder: Path
    started: list = field(default_factory=list)

    @property
    def root(self):
        return self.project.root

    def start(self):
        """One retraining, in a process of its own; what it says is kept."""
        with (self.folder / "stderr").open("ab") as err, (self.folder / "stdout").open("wb") as out:
            interval = {"STILLMARK_CHECKPOINT_SECONDS": str(INTERVAL_SECONDS)}
            child = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "retrain", "--json"],
                cwd=self.root,
                env=self.project.environment | interval,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.started.append(child)
        return child

    def said(self):
        return (self.folder / "stderr").read_text()

    def ask(self, database, query, *words):
        """A figure of a database, while others write it; 0 where it is not there yet."""
        path = self.root / database
        with contextlib.suppress(sqlite3.OperationalError):
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
            with contextlib.closing(connection):
                return connection.execute(query, words).fetchall()[0][0]
        return 0

    def kill_when(self, condition):
        """Starts a retraining and kills its process, and that alone, once something is so."""
        child = self.start()
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert child.poll() is None, f"it ended before it could be killed:\n{self.said()}"
        self.kill(child)

    def kill(self, child):
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        self.check_loss(child)

    def check_loss(self, child):
        """No more than one interval of what it trained, and the step that was going on, is lost.

        It trained from its first report to its last: what it did then is not a step.
        """
        for stage in ("teach", "distill", "supervise"):
            first, last = (self.reported(which, stage, child) for which in ("min", "max"))
            if last - first > 2 * INTERVAL_SECONDS + 1:
                kept = list((self.root / ".stillmark" / "checkpoints").glob("*.pt"))
                assert kept, f"{stage} trained for seconds, and nothing is kept of it"
                newest = max(path.stat().st_mtime for path in kept)
                assert last - newest < INTERVAL_SECONDS + 2

    def reported(self, which, stage, child):
        """When a process that was killed in a stage reported first or last, in seconds."""
        found = self.ask(
            "mlflow.db",
            f"SELECT {which}(m.timestamp) FROM metrics m"  # noqa: S608
            " JOIN runs r ON r.run_uuid = m.run_uuid"
            " JOIN tags t ON r.run_uuid = t.run_uuid JOIN tags p ON r.run_uuid = p.run_uuid"
            " WHERE r.status = 'RUNNING' AND t.key = 'stillmark.stage' AND t.value = ?"
            " AND p.key = 'stillmark.process' AND p.value LIKE ?",
            stage,
            f'%"pid":{child.pid},%',
        )
        return (found or 0) / 1000

    def finish(self):
        """Starts it once more and lets it come to its end."""
        assert self.start().wait(PATIENCE_SECONDS) == 0, self.said()
        return json.loads((self.folder / "stdout").read_text())

    def contents(self):
        """sha256 over the files of every model."""
        store = Tracking(self.project.uri, self.root / ".stillmark")
        return {
            role: [store.ref_of(found).content for found in store.versions(f"digits.{role}")]
            for role in ROLES
        }

    def check_tidy(self):
        """Nothing looks as if it still went on, and nothing is left of what died."""
        running = "SELECT count(*) FROM runs WHERE status = 'RUNNING' AND ? != ''"
        assert self.ask("mlflow.db", running, "x") == 0
        for table in ("flow_run", "task_run"):
            unended = f"SELECT count(*) FROM {table} WHERE state_type NOT IN (?, ?, ?, ?)"  # noqa: S608
            final = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")
            assert self.ask(".stillmark/prefect/prefect.db", unended, *final) == 0, table
        home = self.root / ".stillmark"
        for name in ("running", "scratch", "checkpoints"):
            assert list((home / name).glob("*")) == [], name
        with FileLock(home / "retrain.lock", timeout=0), FileLock(home / "dvc.lock", timeout=0):
            pass
        until = time.monotonic() + 20  # Prefect's server ends a little after who asked for it
        while at_work_in(self.root) and time.monotonic() < until:
            time.sleep(0.1)
        assert at_work_in(self.root) == []


def at_work_in(folder):
    """Command lines of processes that run there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process.cmdline())
    return found


@pytest.fixture
def hunt(fresh, tmp_path):
    """Makes copies of the fresh project to kill."""
    made = []

    def make(name="project"):
        folder = tmp_path / name
        shutil.copytree(fresh.root, folder / "project", symlinks=True)
        made.append(Hunt(type(fresh)(folder / "project"), folder))
        return made[-1]

    yield make
    for child in (child for one in made for child in one.started):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.fixture
def expected(finished):
    """What an uninterrupted retraining makes of the same project."""
    contents = Hunt(finished.project, finished.project.root).contents()
    assert all(len(found) == 1 for found in contents.values())
    return contents


@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_with_the_same_bits(hunt, expected):
    """In the middle of a training, and when a stage has just begun."""
    one = hunt()
    one.kill_when(lambda: one.ask("mlflow.db", TRAINS, "distill"))
    one.kill_when(lambda: one.ask("mlflow.db", AT_WORK, "supervise"))
    outcome = one.finish()
    assert outcome["outcome"] == "promoted"
    assert one.contents() == expected
    one.check_tidy()
    said = one.said()
    assert "distill (MLflow run " in said
    assert "supervise (MLflow run " in said
    assert "flow run " in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["data", *STAGES, "register"])
def test_killed_at_the_boundary_of_a_stage(hunt, expected, stage):
    """When its run has just been opened, and the one before it has just ended."""
    one = hunt()
    if stage == "data":
        one.kill_when((one.root / "prepared.partial").exists)  # by a child of a child
    else:
        query, word = (REGISTERED, "x") if stage == "register" else (AT_WORK, stage)
        one.kill_when(lambda: one.ask("mlflow.db", query, word))
    assert one.finish()["outcome"] == "promoted"
    assert one.contents() == expected
    one.check_tidy()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_twenty_random_moments(hunt, expected):
    """Projects are made until so many kills have hit one at work; each ends as if none had."""
    chance = random.Random(7)
    began = time.monotonic()
    hunt("whole").finish()
    longest = time.monotonic() - began
    kills = number = 0
    while kills < 20:
        number += 1
        one = hunt(f"project-{number}")
        while kills < 20:
            child = one.start()
            try:
                assert child.wait(chance.uniform(0, longest)) == 0, one.said()
                break
            except subprocess.TimeoutExpired:
                one.kill(child)
                kills += 1
        one.finish()
        assert one.contents() == expected, one.said()
        one.check_tidy()
        shutil.rmtree(one.folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_a_signal_ends_it_within_ten_seconds_and_it_can_go_on(hunt, number):
    """The step is finished and kept, and everybody has heard of the end."""
    one = hunt()
    child = one.start()
    until = time.monotonic() + PATIENCE_SECONDS
    while not one.ask("mlflow.db", TRAINS, "teach") and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(number)
    began = time.monotonic()
    child.wait(60)
    assert time.monotonic() - began < 10
    assert "not unwound" not in one.said()
    (kept,) = (one.root / ".stillmark" / "checkpoints").glob("*.pt")
    steps = torch.load(kept, weights_only=True)["at"]
    reported = (
        "SELECT max(m.step) FROM metrics m JOIN tags t ON m.run_uuid = t.run_uuid WHERE t.value = ?"
    )
    assert steps >= one.ask("mlflow.db", reported, "teach") > 0
    query = "SELECT status FROM runs WHERE run_uuid IN (SELECT run_uuid FROM tags WHERE value = ?)"
    assert one.ask("mlflow.db", query, "teach") == "KILLED"
    assert one.ask("mlflow.db", query, f"ended by {number.name}") == "KILLED"
    said = "SELECT state_type FROM flow_run WHERE state_type != ?"
    assert one.ask(".stillmark/prefect/prefect.db", said, "x") == "CRASHED"
    kept.unlink()
    one.check_tidy()
