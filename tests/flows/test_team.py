"""Two machines of a team, which share addresses and nothing else."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.conftest import Project
from tests.postgres import postgres  # noqa: F401 - a fixture
from tests.team import BUCKET, services

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Member(Project):
    """A machine's own clone, with the team's addresses in its environment."""

    team: dict = None
    patience_seconds: ClassVar[float] = 900  # every call goes over a server

    @property
    def environment(self):
        return super().environment | self.team


@pytest.fixture(scope="module")
def shared(tmp_path_factory, postgres):  # noqa: F811
    with services(tmp_path_factory.mktemp("services"), postgres) as found:
        yield found


def clone(fresh, folder, team, *, with_data):
    kept = () if with_data else ("data", "cache", ".stillmark", "prepared")
    shutil.copytree(fresh.root, folder, ignore=lambda at, names: _own(fresh, at, names, kept))
    return Member(folder, team.environment)


def _own(fresh, at, names, kept):
    top = str(at) in {str(fresh.root), str(fresh.root / ".dvc")}
    return [name for name in names if top and name in kept]


@pytest.fixture(scope="module")
def first(fresh, shared, tmp_path_factory):
    """The machine that has the data, after its first retraining."""
    member = clone(fresh, tmp_path_factory.mktemp("first") / "project", shared[0], with_data=True)
    done = member.stillmark("retrain", "--json")
    assert done.returncode == 0, done.stderr
    return member, json.loads(done.stdout)


@pytest.fixture(scope="module")
def second(fresh, shared, first, tmp_path_factory):
    """Another one, which has a clone of the repository and no data."""
    return clone(fresh, tmp_path_factory.mktemp("second") / "project", shared[0], with_data=False)


def test_what_one_machine_made_another_one_reuses(first, second, shared):
    member, outcome = first
    assert outcome["outcome"] == "promoted"
    assert not (member.root / "mlflow.db").exists()
    assert not (member.root / "ledger.db").exists()
    kept = shared[1].list_objects_v2(Bucket=BUCKET, Prefix="data/files/md5/")["Contents"]
    assert len(kept) > 250  # the rows of the raw data, each under its md5

    assert not (second.root / "data").exists()
    done = second.stillmark("retrain", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert (again["outcome"], again["trained"]) == ("unchanged", 0)
    assert again["versions"] == outcome["versions"]
    assert again["data"] == outcome["data"]


def test_another_machine_can_verify_and_judge(first, second):
    for words in (
        ("history", "digits.edge", "--check", "--recheck"),
        ("verify", "digits.edge"),
        ("promote", "digits.edge", "--dry-run"),
    ):
        done = second.stillmark(*words)
        assert done.returncode == 0, done.stderr


def test_two_machines_never_retrain_one_project_at_once(first, second):
    members = (first[0], second)
    for member in members:
        member.change("pretrain.fit.steps", 12)
    command = [sys.executable, "-m", "flows.cli", "retrain", "--json"]
    both = [
        subprocess.Popen(
            command,
            cwd=member.root,
            env=member.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for member in members
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (gave_way,) = [err for process, (_, err) in zip(both, said, strict=True) if process.returncode]
    assert "another" in gave_way.splitlines()[-1]


def test_a_wrong_password_is_one_line(first, shared):
    member, _ = first
    wrong = member.environment["STILLMARK_LEDGER_URI"].replace("open-sesame", "guess")
    done = member.stillmark("retrain", env=member.environment | {"STILLMARK_LEDGER_URI": wrong})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "correct the user and the password" in line
    assert "guess" not in line
