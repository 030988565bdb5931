import json
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from tasks.errors import DataError, SetupError
from tasks.versioning import Dvc, Versions, command

FAKE_DVC = """
import json, sys, time
started = time.time()
time.sleep(0.6)
with open("spans.jsonl", "a") as spans:
    spans.write(json.dumps([started, time.time()]) + "\\n")
"""


def test_two_processes_take_turns(tmp_path):
    """DVC itself fails at once where another DVC is at work."""
    package = tmp_path / "dvc"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_DVC)
    call = (
        f"import os, pathlib; os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "from tasks.versioning import Dvc\n"
        "here = pathlib.Path.cwd(); Dvc(here, here / 'home').run('status')"
    )
    both = [subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    (_, first_end), (second_start, _) = sorted(json.loads(line) for line in lines)
    assert second_start >= first_end


@pytest.mark.parametrize(
    "wait",
    [
        lambda root: Dvc(root, root).run("status"),
        lambda root: list(Versions(root, root).cache.delete([root / "file"])),
    ],
)
def test_a_lock_that_is_never_let_go_is_named(tmp_path, monkeypatch, wait):
    monkeypatch.setattr(command, "LOCK_SECONDS", 0.2)
    started = time.monotonic()
    held = pytest.raises(SetupError, match=r"dvc\.lock has been held")
    with FileLock(tmp_path / "dvc.lock"), held:
        wait(tmp_path)
    assert time.monotonic() - started < 5


HOLDS_DVCS_LOCK = """
import sys, time
from zc.lockfile import LockFile
held = LockFile(sys.argv[1])
print("held", flush=True)
time.sleep(5)
"""


def test_a_dvc_that_outlived_its_parent_is_waited_for(versions):
    place = versions.root / ".dvc" / "tmp" / "lock"
    place.parent.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_DVCS_LOCK, place], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        assert not versions.is_current()  # never prepared; DVC answered
        assert other.poll() == 0


def test_a_dvc_that_does_not_end_is_said(versions, monkeypatch):
    monkeypatch.setattr(command, "BUSY_SECONDS", 0)
    place = versions.root / ".dvc" / "tmp" / "lock"
    place.parent.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_DVCS_LOCK, place], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(DataError, match="Unable to acquire lock"):
            versions.is_current()
        other.kill()


def test_dvcs_own_error_is_one_line_that_says_something(versions):
    (versions.root / "dvc.yaml").unlink()
    with pytest.raises(DataError, match=r"^dvc: .*(prepare|dvc\.yaml)") as caught:
        versions.prepare()
    assert len(str(caught.value).splitlines()) == 1
