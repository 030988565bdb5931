import subprocess
import sys
from importlib import metadata

import pytest

from tasks.lineage import origin


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with a tasks/ folder that `origin` takes for its own."""
    for name in ("tasks", "flows"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "one.py").write_text("A = 1\n")
    (tmp_path / "params.yaml").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qm", "1")
    monkeypatch.setattr(origin, "CODE", tmp_path / "tasks")
    return tmp_path


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode().strip()


def code():
    return origin.code.__wrapped__()  # not the one that this process remembers


def test_the_code_is_named_by_digest_and_commit(repository):
    found = code()
    assert found.commit == git(repository, "rev-parse", "HEAD")
    assert found.clean
    assert found == code()


@pytest.mark.parametrize(
    ("place", "text"),
    [("inner/one.py", "A = 2\n"), ("inner/two.py", ""), ("top.py", "B = 1\n")],
)
def test_any_change_below_tasks_is_other_code(repository, place, text):
    before = code()
    (repository / "tasks" / place).write_text(text)
    after = code()
    assert after.digest != before.digest
    assert after.commit == before.commit
    assert not after.clean


def test_a_moved_file_is_other_code(repository):
    before = code().digest
    (repository / "tasks" / "inner" / "one.py").rename(repository / "tasks" / "one.py")
    assert code().digest != before


@pytest.mark.parametrize("place", ["flows/inner/one.py", "params.yaml"])
def test_what_no_stage_reaches_changes_no_digest(repository, place):
    before = code()
    (repository / place).write_text("changed: true\n")
    after = code()
    assert after.digest == before.digest
    assert not after.clean


def test_bytecode_is_no_code(repository):
    before = code()
    (repository / "tasks" / "__pycache__").mkdir()
    (repository / "tasks" / "__pycache__" / "one.cpython-311.pyc").write_bytes(b"x")
    assert code().digest == before.digest


def test_outside_git_the_digest_alone_speaks(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.py").touch()
    monkeypatch.setattr(origin, "CODE", tmp_path / "tasks")
    found = code()
    assert (found.commit, found.clean) == (None, False)
    assert len(found.digest) == 64


def test_a_machine_without_git_is_no_error(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = code()
    assert (found.commit, found.clean) == (None, False)


def test_packages_are_those_needed_directly_and_through_others():
    found = origin.packages()
    assert found["python"] == sys.version.split()[0]
    for name in ("torch", "onnxruntime", "numpy", "mlflow", "dvc", "stillmark"):
        assert found[name] == metadata.version(name)
    assert found["sympy"] == metadata.version("sympy")  # torch needs it, Stillmark does not name it
    assert "pytest" not in found
    assert list(found) == sorted(found)
