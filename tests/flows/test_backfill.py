"""Backfills: which data versions a range holds, and models of each made in a place of their own."""

import json
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import yaml

from flows.backfill import chosen, refuse_gone
from tasks.errors import DataError, SetupError
from tasks.ledger import Ledger
from tasks.lineage.record import Record
from tasks.succession import Succession
from tasks.tracking import Tracking
from tasks.verify import verify
from tasks.versioning import Places, Versions
from tests.dvc_store import keep_all
from tests.growth import grow, hurry

NAMES = "abcd"
DAYS = {"a": "2026-01-10", "b": "2026-01-20", "c": "2026-02-01", "d": "2026-02-01"}


def git(root, *words, date="2026-01-01"):
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
    when = f"{date}T12:00:00+00:00"
    done = subprocess.run(
        ["git", *who, *words],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
        env={"GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when, "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.strip()


def commit_data(root, md5, date, message):
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": md5, "path": "data"}]}))
    git(root, "add", "data.dvc")
    git(root, "commit", "-qm", message, date=date)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    """Four data versions and a commit that changed something else between the first two."""
    root = tmp_path_factory.mktemp("past")
    git(root, "init", "-q")
    cache = root / ".dvc" / "cache"
    found = {}
    for name in NAMES:
        md5 = keep_all(cache, {"rows.csv": name.encode()})
        found[name] = (md5, commit_data(root, md5, DAYS[name], name))
        if name == "a":
            (root / "other").write_text("x")
            git(root, "add", "other")
            git(root, "commit", "-qm", "other", date="2026-01-15")
            found["between"] = ("", git(root, "rev-parse", "HEAD"))
    return root, found


@pytest.fixture
def versions(past):
    root, _ = past
    found = Versions(root, root / ".stillmark")
    found.cache.places = Places(root / ".dvc" / "cache", None, None)
    return found


@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        ("2026-01-01", "2026-12-31", "abcd"),
        ("2026-01-10", "2026-01-20", "ab"),  # both days are in
        ("2026-01-11", "2026-01-19", ""),
        ("2026-01-11", "2026-02-01", "bcd"),
        ("2026-01-10T12:00:00+00:00", "2026-01-20T11:59:59+00:00", "a"),
        ("a", "a", "a"),
        ("a", "c", "abc"),
        ("between", "b", "ab"),  # the commit holds the first version
        ("b", "2026-01-31", "b"),
        ("2026-01-15", "c", "bc"),
        ("HEAD", "HEAD", "d"),
        ("HEAD~1", "HEAD", "cd"),
    ],
)
def test_a_range_is_inclusive(versions, past, start, end, names):
    _, known = past
    start, end = (known.get(bound, ("", bound))[1] for bound in (start, end))
    if not names:
        with pytest.raises(DataError, match="no data version was committed from"):
            chosen(versions, start, end)
        return
    found = chosen(versions, start, end)
    assert [one.raw for one in found] == [known[name][0] for name in names]
    assert [one.commit for one in found] == [known[name][1] for name in names]
    assert found[0].date == datetime.fromisoformat(f"{DAYS[names[0]]}T12:00:00+00:00").astimezone(
        UTC
    )


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2026-02-01", "2026-01-01", "is after"),
        ("HEAD", "HEAD~2", "is after"),
        ("2027-01-01", "2027-02-01", "no data version"),
        ("2026-13-01", "HEAD", "neither a date"),
        ("nothing", "HEAD", "neither a date"),
        ("--all", "HEAD", "neither a date"),
        ("HEAD", "", "neither a date"),
    ],
)
def test_a_senseless_range_is_one_clear_line(versions, start, end, said):
    with pytest.raises(DataError, match=said) as error:
        chosen(versions, start, end)
    assert "\n" not in str(error.value)


def test_data_that_came_back_is_taken_once(versions, past, tmp_path):
    root, known = past
    again = shutil.copytree(root, tmp_path / "again")
    last = commit_data(again, known["a"][0], "2026-03-01", "back")
    found = chosen(Versions(again, again / ".stillmark"), "2026-01-01", "2026-12-31")
    assert [one.raw for one in found] == [known[name][0] for name in "abcd"]
    assert found[0].commit == last


def test_no_git_is_said(tmp_path):
    with pytest.raises(SetupError, match="no git repository"):
        chosen(Versions(tmp_path, tmp_path), "2026-01-01", "2026-12-31")


def test_bytes_that_are_gone_are_named_before_anything_runs(versions, past, tmp_path):
    root, known = past
    wanted = chosen(versions, "2026-01-01", "2026-12-31")
    refuse_gone(versions, wanted)
    cache = shutil.copytree(root / ".dvc" / "cache", tmp_path / "cache")
    versions.cache.places = Places(cache, None, None)
    md5 = versions.cache.listing(known["b"][0])["rows.csv"]
    (cache / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(DataError, match=f"2026-01-20.*{known['b'][1][:12]}.*gone.*{md5}"):
        refuse_gone(versions, wanted)


@pytest.fixture
def grown(untrained):
    """A project that was never trained, whose data grew after its first commit."""
    grow(untrained)
    git(untrained.root, "commit", "-qam", "more data", date="2099-01-01")
    return untrained


def raw_at(root, commit):
    return yaml.safe_load(git(root, "show", f"{commit}:data.dvc"))["outs"][0]["md5"]


def killed_after(project, stage, *words):
    """Starts a command, and kills it once it has said that a stage is done."""
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith(f"{stage} ") and "done" in line:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_models_of_past_data_are_made_beside_the_champion(grown):
    """The first of them in two goes, the first of which is killed."""
    hurry(grown)
    root = grown.root
    names = ("data.dvc", "params.yaml")
    before = {name: (root / name).read_bytes() for name in names}
    past = [raw_at(root, commit) for commit in ("HEAD~1", "HEAD")]
    killed_after(grown, "teach", "backfill", "--from", "HEAD~1", "--to", "HEAD~1")
    scratch = root / ".stillmark" / "backfill"
    assert [path.name for path in scratch.iterdir()] == [past[0].removesuffix(".dir")]
    done = grown.stillmark("backfill", "--from", "HEAD~1", "--to", "HEAD~1", "--json")
    assert done.returncode == 0, done.stderr
    (first,) = json.loads(done.stdout)["filled"]
    assert first["data"] == past[0]
    assert 4 <= first["trained"] <= 5  # pretraining and teaching were done before the kill
    done = grown.stillmark("backfill", "--from", "HEAD~1", "--to", "HEAD", "--json")
    assert done.returncode == 0, done.stderr
    again, second = json.loads(done.stdout)["filled"]
    assert (again["trained"], again["versions"]) == (0, first["versions"])
    assert (second["trained"], second["data"]) == (7, past[1])
    assert (first["outcome"], second["outcome"]) == ("registered", "registered")
    assert second["rows"] > first["rows"]
    tracking = Tracking(grown.uri, root / ".stillmark")
    succession = Succession(Ledger(f"sqlite:///{root / 'ledger.db'}"), tracking)
    for one in (first, second):
        version = tracking.version("digits.edge", one["versions"]["edge"])
        record = Record.read(tracking.fetch(version.model).folder)
        assert record.data.raw == one["data"]
        assert tracking.tags(version)["stillmark.backfill"] == one["data"]
        versions = Versions(root, root / ".stillmark")
        assert verify(tracking, versions, succession, version).problems == ()
    assert succession.ledger.entries() == []
    assert tracking.aliases() == {}
    assert {name: (root / name).read_bytes() for name in names} == before
    assert not (root / "prepared").exists()
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_asked_to_it_judges_each_against_the_champion(grown):
    root = grown.root
    done = grown.stillmark("backfill", "--from", "HEAD~1", "--to", "HEAD", "--promote", "--json")
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)["filled"]
    first, second = (one["outcome"] for one in both)
    assert first == "promoted"  # there is nothing that it could be worse than
    assert second in {"promoted", "rejected"}
    promoted = [one["versions"]["edge"] for one in both if one["outcome"] == "promoted"]
    tracking = Tracking(grown.uri, root / ".stillmark")
    assert tracking.aliases() == {("digits.edge", "champion"): promoted[-1]}
    succession = Succession(Ledger(f"sqlite:///{root / 'ledger.db'}"), tracking)
    assert succession.check("digits.edge") == []
    entries = succession.ledger.entries("digits.edge", "champion")
    assert sorted(one.version for one in entries if one.action == "promoted") == promoted
    judged = {one["versions"]["edge"] for one in both}
    assert {one.version for one in succession.ledger.entries("digits.edge")} <= judged
