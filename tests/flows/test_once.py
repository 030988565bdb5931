import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
from filelock import FileLock
from prefect import flow
from prefect.client.schemas.sorting import TaskRunSort

from flows import once
from flows.once import alone, flow_run_id, in_process, preflight, wait_for_task_states
from tasks import interruption
from tasks.errors import BusyError, DataError, ParamsError, SetupError
from tasks.params import load
from tasks.processes import Note, Process
from tasks.recovery import note_of
from tasks.settings import Settings
from tasks.tracking import PROCESS_TAG, Tracking

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


@pytest.fixture
def place(bench_template, inside):
    """Makes a folder a project that knows its parameters and an empty store; goes into it."""

    def make(root):
        root.mkdir(exist_ok=True)
        for name in ("params.yaml", "mlflow.db"):
            shutil.copy(bench_template / name, root)
        inside(root)
        found = Settings()
        found.writable_home()
        return found

    return make


@pytest.fixture
def settings(place, tmp_path):
    return place(tmp_path)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What `alone` sets for the rest of a process does not outlive a test."""
    handler, scratch = signal.getsignal(signal.SIGTERM), tempfile.tempdir
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    yield
    interruption.call_off()
    signal.signal(signal.SIGTERM, handler)
    assert tempfile.tempdir == scratch


def is_locked(settings):
    lock = FileLock(settings.home / "retrain.lock")
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return True
    lock.release()
    return False


def test_one_run_at_a_time(settings):
    with alone(settings):
        assert is_locked(settings)
        with pytest.raises(BusyError, match="is going on; wait until") as caught, alone(settings):
            pytest.fail("two at once")
        assert str(settings.root) in str(caught.value)
        assert f"(process {os.getpid()} on " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert is_locked(settings)
    assert not is_locked(settings)


@pytest.mark.parametrize("error", [ValueError("bug"), SetupError("no luck"), KeyboardInterrupt()])
def test_whatever_ends_a_run_makes_room_for_the_next(settings, error):
    with pytest.raises(type(error)), alone(settings):
        raise error
    assert not is_locked(settings)


def test_another_project_is_another_matter(settings, tmp_path, place):
    other = place(tmp_path / "other")
    with alone(settings), alone(other):
        assert is_locked(settings)
        assert is_locked(other)


def test_a_termination_unwinds(settings):
    """So that Prefect ends its server, and the stage's run its record."""
    unwound = []

    def work():
        with contextlib.ExitStack() as stack:
            stack.callback(unwound.append, True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as caught, alone(settings):
        work()
    assert caught.value.code == 128 + signal.SIGTERM
    assert unwound == [True]
    assert not is_locked(settings)


def test_off_the_main_thread_signals_are_left_alone(settings):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with alone(settings):
            seen.append(is_locked(settings))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def record(message, error=None):
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("prefect", logging.ERROR, "", 0, message, (), exc_info)


@pytest.mark.parametrize("name", LOGGERS)
def test_our_own_errors_are_said_once_and_others_in_full(settings, name):
    with alone(settings):
        logger = logging.getLogger(name)
        assert not logger.filter(record("Encountered an exception", SetupError("no luck")))
        assert not logger.filter(record("Finished in state Failed()"))
        assert logger.filter(record("Encountered an exception", ValueError("a bug")))
        assert logger.filter(record("Crash detected!"))


def test_outside_of_a_flow_there_is_no_run():
    assert flow_run_id() == ""


def test_preflight_gives_the_parameters(untrained, inside):
    inside(untrained.root)
    assert preflight(Settings()) == load(untrained.root)
    assert not (untrained.root / "prepared").exists()


def test_preflight_refuses_what_cannot_succeed(untrained, inside):
    """Parameters before data: what is wrong in the file is said whatever else is."""
    inside(untrained.root)
    (untrained.root / "data").rename(untrained.root / "elsewhere")
    with pytest.raises(DataError, match="data/ is missing"):
        preflight(Settings())
    untrained.change("compute.sed", 1)
    with pytest.raises(ParamsError, match=r"compute\.sed"):
        preflight(Settings())


def test_what_died_before_is_said_in_a_line_each(settings, caplog):
    tracking = Tracking(settings.tracking_uri, settings.home)
    run_id = tracking.start("digits", "teach")
    dead = Process.mine().model_copy(update={"pid": 2**22 + 1})
    tracking.client.set_tag(run_id, PROCESS_TAG, dead.model_dump_json())
    with alone(settings):
        assert tracking.client.get_run(run_id).info.status == "KILLED"
    assert caplog.messages == [f"teach (MLflow run {run_id}) was cut off: {dead} died"]


@pytest.mark.parametrize("fails", [False, True])
def test_while_a_flow_runs_it_is_noted_by_whom(settings, prefect_database, fails):
    noted = []

    @flow
    def look():
        noted.append(Note.read(note_of(settings, flow_run_id())))
        if fails:
            raise DataError("no luck")

    with pytest.raises(DataError) if fails else contextlib.nullcontext():
        in_process(look)
    assert [note.process for note in noted] == [Process.mine()]
    assert list((settings.home / "running").iterdir()) == []


# Prefect's server hears of task runs a little later


@pytest.fixture
def server(monkeypatch):
    """Stands in for Prefect's client; answers from a list, the last one again and again."""

    def make(*answers):
        asked = []

        def read_task_runs(**wanted):
            asked.append(wanted)
            return answers[min(len(asked), len(answers)) - 1]

        client = SimpleNamespace(read_task_runs=read_task_runs)
        monkeypatch.setattr(once, "get_client", lambda **_: contextlib.nullcontext(client))
        return asked

    return make


def task(final):
    state = None if final is None else SimpleNamespace(is_final=lambda: final)
    return SimpleNamespace(state=state)


def test_it_waits_until_the_last_task_has_ended(server):
    running = [[], [task(None)], [task(True), task(False)], [task(True), task(True)]]
    asked = server(*running)
    wanted = uuid4()
    wait_for_task_states(str(wanted))
    assert len(asked) == len(running)
    for one in asked:
        assert one["flow_run_filter"].id.any_ == [wanted]
        # The server names 200 at most; the last ones are to be among them.
        assert one["sort"] == TaskRunSort.EXPECTED_START_TIME_DESC


def test_a_server_that_went_away_fails_no_run_that_is_done(monkeypatch, caplog):
    def away(**_):
        raise httpx.ConnectError("nobody there")

    client = SimpleNamespace(read_task_runs=away)
    monkeypatch.setattr(once, "get_client", lambda **_: contextlib.nullcontext(client))
    wait_for_task_states(str(uuid4()))
    (line,) = caplog.messages
    assert line.startswith("Prefect's server went away before it knew how all tasks ended")


@pytest.mark.parametrize("answer", [[], [task(None)], [task(True), task(False)]])
def test_it_does_not_wait_for_ever(server, monkeypatch, answer):
    monkeypatch.setattr(once, "FINAL_STATE_SECONDS", 0.3)
    asked = server(answer)
    started = time.monotonic()
    wait_for_task_states(str(uuid4()))
    assert 0.3 <= time.monotonic() - started < 5
    assert len(asked) > 1
