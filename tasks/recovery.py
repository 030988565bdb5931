"""Finding what died: runs that nobody will end any more, children and files that it left.

A process that is killed cannot say so. Whoever starts next, alone in the project, looks for what
names a process of this machine that is gone, ends it with the reason and tidies up. What belongs to
a living process, or to another machine, is left alone.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from tasks.processes import Note, Process
from tasks.settings import Settings
from tasks.tracking import STAGE_TAG, Tracking

RUNNING, SCRATCH, CHECKPOINTS = "running", "scratch", "checkpoints"
START = "start-"  # of a tag, and of the note of the same name
OWNER_FILE = "owner.json"
OWNER = "STILLMARK_OWNER"  # in the environment of every child
END_SECONDS = 10.0
PAGE = 200  # task runs that Prefect's server names at once


def recover(settings: Settings, project: str) -> list[str]:
    """Ends what a dead process left, so that nothing looks as if it were still going on.

    To be called by whoever holds the project's lock, before it begins anything.

    Returns:
        What was found, a sentence each.

    Raises:
        SetupError: MLflow's store does not answer.
    """
    found = [*_children(settings), *_mlflow_runs(settings, project), *_flow_runs(settings)]
    _leftovers(settings)
    return found


def note_of(settings: Settings, flow_run: object) -> Path:
    """Where it is noted which process runs a flow, by its id or its tag: Prefect does not say."""
    return settings.home / RUNNING / f"{flow_run}.json"


def announce(settings: Settings) -> str:
    """Notes that this process is about to start a flow, before Prefect hears of it.

    Returns:
        A tag that the flow run has to bear. By it `recover` finds the run if this process is killed
        before it knows the id; once that is noted, the note of the tag may go.
    """
    tag = f"{START}{uuid4().hex}"
    Note.mine().write(note_of(settings, tag))
    return tag


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """Has every library put its temporary files where `recover` finds them, and marks children.

    Yields:
        The folder; it is gone afterwards.
    """
    note = Note.mine(str(settings.root))
    folder = settings.home / SCRATCH / note.process.label
    note.write(folder / OWNER_FILE)
    marks = {OWNER: note.model_dump_json(), "TMPDIR": str(folder)}
    before, environment = tempfile.tempdir, {name: os.environ.get(name) for name in marks}
    tempfile.tempdir = str(folder)
    os.environ |= marks
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        for name, value in environment.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def _why(process: Process) -> str:
    return f"{process} died before it could end this: it was killed, or the machine went down"


def _mlflow_runs(settings: Settings, project: str) -> Iterator[str]:
    tracking = Tracking(settings.tracking_uri, settings.home)
    for run, process in tracking.unended(project):
        if process.is_alive() is False:
            tracking.bury(run, _why(process))
            stage = run.data.tags.get(STAGE_TAG, "a stage")
            yield f"{stage} (MLflow run {run.info.run_id}) was cut off: {process} died"


def _flow_runs(settings: Settings) -> Iterator[str]:
    for path in sorted((settings.home / RUNNING).glob("*.json")):
        note = Note.read(path)
        if note is None or note.process.is_alive() is False:
            with get_client(sync_client=True) as client:
                found = [_crash(client, one, note) for one in _noted(client, path.stem)]
            path.unlink(missing_ok=True)
            yield from (sentence for sentence in found if sentence is not None)


def _noted(client: SyncPrefectClient, name: str) -> list[UUID]:
    """The flow runs that a note is about: one by its id, or those that bear a tag, if any."""
    if not name.startswith(START):
        return [UUID(name)]
    # Nobody else gives a run this tag: not a schedule, another project or another machine.
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[name]))
    return [run.id for run in client.read_flow_runs(flow_run_filter=wanted)]


def _crash(client: SyncPrefectClient, flow_run_id: UUID, note: Note | None) -> str | None:
    """Ends a flow run and its task runs; says so where there was anything to end."""
    who = str(note.process) if note else "its process"
    try:
        run = client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        return f"flow run {flow_run_id} was cut off: {who} died; this Prefect server knows no such"
    why = _why(note.process) if note else "its process died"
    _crash_task_runs(client, flow_run_id, why)
    if run.state is not None and run.state.is_final():
        return None
    client.set_flow_run_state(flow_run_id, Crashed(message=why), force=True)
    return f"flow run {run.name} was cut off: {who} died"


def _crash_task_runs(client: SyncPrefectClient, flow_run_id: UUID, why: str) -> None:
    open_ones = [kind for kind in StateType if kind not in TERMINAL_STATES]
    state = TaskRunFilterState(type=TaskRunFilterStateType(any_=open_ones))
    while runs := client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        task_run_filter=TaskRunFilter(state=state),
        limit=PAGE,
    ):
        for run in runs:
            client.set_task_run_state(run.id, Crashed(message=why), force=True)


def _children(settings: Settings) -> Iterator[str]:
    """Ends what a dead process started, for example DVC, which would hold its lock."""
    left = [one for one in psutil.process_iter() if _is_orphan(one, str(settings.root))]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, END_SECONDS)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, END_SECONDS)
    if left:
        numbers = ", ".join(str(process.pid) for process in left)
        yield f"ended what a dead process had started: {numbers}"


def _is_orphan(process: psutil.Process, root: str) -> bool:
    try:
        text = process.environ().get(OWNER)
    except (psutil.Error, OSError):  # another user's, or gone meanwhile
        return False
    if text is None:
        return False
    note = Note.model_validate_json(text)
    return note.about == root and note.process.is_alive() is False


def _leftovers(settings: Settings) -> None:
    """Files that only the dead process would have read: half-written checkpoints, scratch."""
    for folder in (settings.home / SCRATCH).glob("*"):
        note = Note.read(folder / OWNER_FILE)
        if note is None or note.process.is_alive() is False:
            shutil.rmtree(folder, ignore_errors=True)
    halves = [
        *(settings.home / CHECKPOINTS).glob("*.partial"),
        *(settings.home / RUNNING).glob("*.partial"),
    ]
    for path in halves:
        path.unlink(missing_ok=True)
