import os
import subprocess
import tempfile
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from mlflow.entities import LoggedModelStatus
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Completed, Pending, Running, Scheduled

from tasks.processes import Note, Process
from tasks.recovery import OWNER, announce, note_of, recover, scratch
from tasks.settings import Settings
from tasks.tracking import PROCESS_TAG

MINE = Process.mine()
DEAD = MINE.model_copy(update={"pid": 2**22 + 1})
FAR = DEAD.model_copy(update={"host": "elsewhere"})


@pytest.fixture
def settings(bench):
    return Settings()


def begin(bench, process, stage="teach"):
    """A run of MLflow that a process has begun and not ended."""
    run_id = bench.tracking.start(bench.run.project, stage)
    bench.tracking.client.set_tag(run_id, PROCESS_TAG, process.model_dump_json())
    return run_id


def run_of(bench, run_id):
    return bench.tracking.client.get_run(run_id)


def test_a_run_names_the_process_that_began_it(bench):
    run_id = bench.tracking.start(bench.run.project, "teach")
    assert Process.model_validate_json(run_of(bench, run_id).data.tags[PROCESS_TAG]) == MINE


def test_what_a_dead_process_began_is_ended_with_the_reason(bench, settings):
    run_id = begin(bench, DEAD)
    (said,) = recover(settings, bench.run.project)
    assert said == f"teach (MLflow run {run_id}) was cut off: {DEAD} died"
    run = run_of(bench, run_id)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time
    assert run.data.tags["stillmark.reason"].startswith(f"{DEAD} died before it could end this")
    assert run.data.tags["stillmark.outcome"] == "killed"
    assert recover(settings, bench.run.project) == []


@pytest.mark.parametrize("process", [MINE, FAR])
def test_what_may_still_go_on_is_left_alone(bench, settings, process):
    run_id = begin(bench, process)
    assert recover(settings, bench.run.project) == []
    assert run_of(bench, run_id).info.status == "RUNNING"


@pytest.mark.parametrize("text", [None, "no JSON", "{}"])
def test_what_somebody_else_began_is_left_alone(bench, settings, text):
    run_id = begin(bench, DEAD)
    if text is None:
        bench.tracking.client.delete_tag(run_id, PROCESS_TAG)
    else:
        bench.tracking.client.set_tag(run_id, PROCESS_TAG, text)
    assert recover(settings, bench.run.project) == []
    assert run_of(bench, run_id).info.status == "RUNNING"


def test_a_run_that_ended_keeps_its_end(bench, settings, toy):
    ref = toy.make(bench)
    bench.tracking.client.set_tag(ref.run_id, PROCESS_TAG, DEAD.model_dump_json())
    assert recover(settings, bench.run.project) == []
    assert toy.find(bench) == ref


def test_its_half_stored_model_never_counts(bench, settings, toy):
    run_id = begin(bench, DEAD)
    model_id = bench.tracking.new_model(bench.run.project, run_id, "teacher", "key")
    whole = toy.make(bench)
    recover(settings, bench.run.project)
    status = {one.model_id: one.status for one in bench.tracking.models(bench.run.project)}
    assert status == {model_id: LoggedModelStatus.FAILED, whole.model_id: LoggedModelStatus.READY}


def test_a_project_that_never_ran_has_nothing_dead(settings):
    assert recover(settings, "another") == []


# Prefect


@task
def at_work():
    pass


@flow
def example():
    pass


@pytest.fixture
def flow_run(prefect_database, settings):
    """Opens a flow run with two task runs, which is running; notes the process that runs it."""

    def make(process, state=None):
        with get_client(sync_client=True) as client:
            found = client.create_flow_run(example, state=state or Running())
            for number, of_task in enumerate((Running(), Completed())):
                client.create_task_run(at_work, found.id, str(number), state=of_task)
        note = Note(process=process, since="2026-01-01T00:00:00+00:00", about="example")
        note.write(note_of(settings, found.id))
        return found

    return make


def states_of(flow_run):
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId  # noqa: PLC0415

        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        tasks = client.read_task_runs(flow_run_filter=wanted)
        state = client.read_flow_run(flow_run.id).state
    return state, sorted(one.state_type for one in tasks)


def test_a_dead_flow_run_is_crashed_and_a_living_one_goes_on(bench, settings, flow_run):
    dead, alive, far = flow_run(DEAD), flow_run(MINE), flow_run(FAR)
    ended, unknown = flow_run(DEAD, Completed()), uuid4()
    Note(process=DEAD, since="2026-01-01T00:00:00+00:00").write(note_of(settings, unknown))
    found = recover(settings, bench.run.project)
    assert sorted(found) == sorted(
        [
            f"flow run {dead.name} was cut off: {DEAD} died",
            f"flow run {unknown} was cut off: {DEAD} died; this Prefect server knows no such",
        ]
    )
    state, tasks = states_of(dead)
    assert state.type == StateType.CRASHED
    assert f"{DEAD} died before it could end this" in state.message
    assert tasks == [StateType.COMPLETED, StateType.CRASHED]
    for one in (alive, far):
        assert states_of(one)[0].type == StateType.RUNNING
        assert note_of(settings, one.id).exists()
    assert states_of(ended)[0].type == StateType.COMPLETED
    assert states_of(ended)[1] == [StateType.COMPLETED, StateType.CRASHED]
    for gone in (dead.id, ended.id, unknown):
        assert not note_of(settings, gone).exists()


def test_what_was_killed_before_its_id_was_noted_is_found_by_its_tag(
    bench, settings, prefect_database
):
    """And nothing else: no schedule, nobody else's run, and no run of a living process."""
    tags = [announce(settings) for _ in range(4)]
    for tag, process in zip(tags[:3], (DEAD, DEAD, FAR), strict=True):
        Note(process=process, since="").write(note_of(settings, tag))
    dead, never, far, alive = tags
    with get_client(sync_client=True) as client:

        def begin(state, *words):
            return client.create_flow_run(example, state=state, tags=words)

        lost = begin(Pending(), "another", dead)
        ended = begin(Completed(), dead)
        others = [begin(Pending(), far), begin(Pending(), alive), begin(Pending())]
        others += [begin(Scheduled()), begin(Running())]
        found = recover(settings, bench.run.project)
        assert found == [f"flow run {lost.name} was cut off: {DEAD} died"]
        state = client.read_flow_run(lost.id).state
        assert (state.type, f"{DEAD} died before" in state.message) == (StateType.CRASHED, True)
        assert client.read_flow_run(ended.id).state.type == StateType.COMPLETED
        for other in others:
            assert client.read_flow_run(other.id).state.type == other.state.type
    assert not note_of(settings, dead).exists()
    assert not note_of(settings, never).exists()
    assert note_of(settings, far).exists()
    assert note_of(settings, alive).exists()


# Files and children


def test_temporary_files_lie_in_the_project_and_go(settings):
    before, outside = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with scratch(settings) as folder:
        assert folder.is_relative_to(settings.home)
        with tempfile.NamedTemporaryFile() as inside:
            assert Path(inside.name).parent == folder
        (folder / "left").touch()
        assert os.environ["TMPDIR"] == str(folder)
        assert recover(settings, "another") == []
        assert (folder / "left").exists()
    assert not folder.exists()
    assert tempfile.gettempdir() == before
    assert os.environ.get("TMPDIR") == outside
    assert OWNER not in os.environ


def test_files_of_the_dead_go_and_those_of_the_living_stay(settings):
    home = settings.home
    for name, process in (("dead", DEAD), ("far", FAR)):
        Note(process=process, since="").write(home / "scratch" / name / "owner.json")
    (home / "scratch" / "nobody").mkdir()
    (home / "checkpoints").mkdir()
    for name in ("key.pt", "key.partial"):
        (home / "checkpoints" / name).touch()
    recover(settings, "another")
    assert [path.name for path in (home / "scratch").iterdir()] == ["far"]
    assert [path.name for path in (home / "checkpoints").iterdir()] == ["key.pt"]


@pytest.mark.parametrize(
    ("process", "root", "ends"), [(DEAD, None, True), (MINE, None, False), (DEAD, "/x", False)]
)
def test_children_of_the_dead_are_ended(settings, process, root, ends):
    """As a DVC whose parent was killed would keep its own lock."""
    note = Note(process=process, since="", about=root or str(settings.root))
    mark = {OWNER: note.model_dump_json()}
    with subprocess.Popen(["sleep", "100"], env=os.environ | mark) as child:
        try:
            found = recover(settings, "another")
            assert bool(found) is ends
            if ends:
                assert found == [f"ended what a dead process had started: {child.pid}"]
            assert psutil.pid_exists(child.pid) is not ends
        finally:
            child.kill()
