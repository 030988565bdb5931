import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

import tasks
from tasks.errors import BusyError, LedgerError
from tasks.project_lock import locked
from tasks.settings import Settings

HOLD = """
import sys
from pathlib import Path
from tasks.project_lock import locked
from tasks.settings import Settings
with locked(Settings(), "digits", about="a drift of the data"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path):
    """Makes projects in folders of their own, as on machines of their own."""

    def make(name="project", ledger=None):
        root = tmp_path / name
        (root / ".stillmark").mkdir(parents=True, exist_ok=True)
        return Settings(project=root, ledger_uri=SecretStr(ledger) if ledger else None)

    return make


@contextlib.contextmanager
def holder(settings):
    """Another process that holds a project."""
    own = {"PYTHONPATH": str(Path(tasks.__file__).parents[1])}
    own["STILLMARK_PROJECT"] = str(settings.root)
    if settings.ledger_uri:
        own["STILLMARK_LEDGER_URI"] = settings.ledger_uri.get_secret_value()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def refusal(settings, **options):
    with pytest.raises(BusyError) as caught, locked(settings, "digits", **options):
        pytest.fail("two at once")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_second_one_gives_way_and_says_to_whom(settings):
    place = settings()
    with holder(place) as other:
        said = refusal(place)
    assert said.startswith(f"another run of {place.root} is going on; wait until it has ended (")
    assert f"process {other.pid} on " in said
    assert ", since 20" in said
    assert said.endswith(", a drift of the data)")


def test_a_killed_holder_holds_nothing(settings):
    place = settings()
    with holder(place) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(place, "digits"):
            pass
    assert not (place.home / "retrain.lock.json").exists()


def test_who_waits_has_it_next(settings, caplog):
    place = settings()
    with holder(place) as other:
        threading.Timer(0.5, other.stdin.close).start()
        began = time.monotonic()
        with locked(place, "digits", wait_seconds=60):
            assert 0.3 < time.monotonic() - began < 30
    (line,) = caplog.messages
    assert line.startswith(f"another run of {place.root} is going on; waiting for its end, 60 s")
    assert f"process {other.pid}" in line


def test_it_does_not_wait_for_ever(settings):
    place = settings()
    with holder(place):
        began = time.monotonic()
        assert "did not within" in refusal(place, wait_seconds=0.5)
        assert 0.4 < time.monotonic() - began < 10


def test_the_clock_does_not_matter(settings, monkeypatch):
    """A day is lost or won while it waits."""
    place = settings()
    now = time.time
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now() + 86400 * (-1) ** next(jumps))
    with holder(place):
        began = time.monotonic()
        refusal(place, wait_seconds=0.5)
        assert 0.4 < time.monotonic() - began < 10


# Machines of a team, which share nothing but the ledger's database


def test_two_machines_never_retrain_one_project_at_once(settings, postgres_url):
    here, there = settings("here", postgres_url), settings("there", postgres_url)
    with holder(there) as other:
        said = refusal(here)
        assert said.startswith("another machine of the team retrains 'digits'; wait until")
        assert f"(process {other.pid} on " in said
        with locked(here, "another project"):
            pass
        assert refusal(here, wait_seconds=0.3).startswith("another machine")
    with locked(here, "digits"):  # that connection is gone, and its lock with it
        assert refusal(there).startswith("another machine")
    with locked(there, "digits"):
        pass


def test_who_waits_for_another_machine_has_it_next(settings, postgres_url):
    here, there = settings("here", postgres_url), settings("there", postgres_url)
    with holder(there) as other:
        threading.Timer(0.5, other.send_signal, [signal.SIGKILL]).start()
        with locked(here, "digits", wait_seconds=60):
            assert other.wait(10) == -signal.SIGKILL


def test_a_database_that_does_not_answer_is_one_line(settings):
    place = settings(ledger="postgresql://nobody@127.0.0.1:9/nothing")
    with pytest.raises(LedgerError, match="cannot be used") as caught, locked(place, "digits"):
        pytest.fail("held")
    assert "\n" not in str(caught.value)
    with pytest.raises(LedgerError), locked(place, "digits"):
        pytest.fail("the file's lock was kept")
