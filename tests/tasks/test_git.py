"""Git's command: what it says, that it refuses, and that it is not there."""

import hashlib
import subprocess

import pytest

from tasks.errors import SetupError
from tasks.git import answer, ask, output


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "-q", "-b", "trunk"], cwd=tmp_path, check=True)
    return tmp_path


def test_what_git_prints_comes_back_as_bytes(repository):
    said = b"refs/heads/trunk\n"
    words = ("symbolic-ref", "HEAD")
    assert ask(repository, words).stdout == output(repository, words) == said
    assert answer(repository, *words) == said
    content = b"\x00\xff"
    name = hashlib.sha1(b"blob 2\x00" + content).hexdigest()  # noqa: S324 - git's names of files
    assert output(repository, ("hash-object", "--stdin"), content).decode().strip() == name


def test_a_refusal_is_said_in_one_line_or_answered_with_none(tmp_path):
    with pytest.raises(SetupError, match=rf"about {tmp_path}: fatal: not a git repo") as error:
        output(tmp_path, ("status",))
    assert "\n" not in str(error.value)
    assert ask(tmp_path, ("status",)).returncode
    assert answer(tmp_path, "status") is None


def test_no_git_is_said_or_answered_with_none(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository / "nowhere"))
    with pytest.raises(SetupError, match="git is not installed; install it"):
        ask(repository, ("status",))
    assert answer(repository, "status") is None
