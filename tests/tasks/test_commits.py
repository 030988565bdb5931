"""What git still has, in repositories of the kinds that hide something."""

import subprocess

import pytest

from tasks.commits import all_contents, ancestors, changes, is_kept
from tasks.errors import DataError, SetupError

PATTERNS = ("*.dvc", "dvc.lock", "*/dvc.lock")


@pytest.fixture
def git(tmp_path):
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=tmp_path, check=True)

    def call(*words):
        who = ["-c", "user.name=Tests", "-c", "user.email=tests@localhost"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return call


def commit(git, root, name, text):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)
    git("add", name)
    git("commit", "-qm", text)
    return git("rev-parse", "HEAD")


def contents(root):
    return sorted(found.decode() for found in all_contents(root, PATTERNS))


def test_every_content_of_every_branch_is_found(git, tmp_path):
    commit(git, tmp_path, "data.dvc", "first")
    commit(git, tmp_path, "sub/dvc.lock", "nested")
    commit(git, tmp_path, "other.txt", "other")
    git("checkout", "-qb", "side")
    commit(git, tmp_path, "data.dvc", "side")
    git("checkout", "-q", "main")
    git("merge", "-q", "-s", "ours", "side", "-m", "undone")  # as if the side had never been
    git("rm", "-q", "sub/dvc.lock")
    git("commit", "-qm", "removed")
    (tmp_path / "data.dvc").write_text("staged")
    git("add", "data.dvc")
    assert contents(tmp_path) == ["first", "nested", "side", "staged"]


def test_a_commit_that_only_the_reflog_knows_is_found(git, tmp_path):
    commit(git, tmp_path, "data.dvc", "first")
    commit(git, tmp_path, "data.dvc", "lost")
    git("reset", "-q", "--hard", "HEAD~1")
    assert contents(tmp_path) == ["first", "lost"]


def test_an_empty_repository_and_none(git, tmp_path):
    assert is_kept(tmp_path)
    assert contents(tmp_path) == []
    assert changes(tmp_path, "data.dvc") == []
    with pytest.raises(DataError, match="neither a date"):
        ancestors(tmp_path, "HEAD")


def test_changes_are_in_order_and_a_removal_holds_nothing(git, tmp_path):
    first = commit(git, tmp_path, "data.dvc", "first")
    commit(git, tmp_path, "other.txt", "other")
    git("rm", "-q", "data.dvc")
    git("commit", "-qm", "removed")
    last = commit(git, tmp_path, "data.dvc", "last")
    found = changes(tmp_path, "data.dvc")
    assert [one.content for one in found] == ["first", None, "last"]
    assert (found[0].commit, found[2].commit) == (first, last)
    assert first in ancestors(tmp_path, "HEAD")
    assert last not in ancestors(tmp_path, first)


def test_a_repository_that_cannot_be_asked_is_no_empty_one(git, tmp_path, monkeypatch):
    """Else all that its commits name would look like garbage."""
    commit(git, tmp_path, "data.dvc", "first")
    (tmp_path / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(SetupError, match="git cannot be asked"):
        contents(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="git is not installed"):
        contents(tmp_path)
