"""Backfill: today's code and parameters on past data versions, each model with its lineage.

Each data version is restored from DVC into a scratch project, which shares the project's stores and
nothing else, and the chain runs there in a process of its own: the working tree is never touched.
An encoder starts from fresh weights there, whatever `pretrain.warm_start` says.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict

from flows.once import NOTED, alone, in_process, is_deployed, preflight, wait_for_task_states
from tasks import commits
from tasks.errors import DataError, StillmarkError, TrainingError
from tasks.lineage import origin
from tasks.params import load
from tasks.reasons import Reason
from tasks.refs import VersionRef
from tasks.sections import read_tree
from tasks.settings import PARAMS_FILE, Settings
from tasks.tracking import BACKFILL_TAG, Tracking
from tasks.versioning import DATA_FILE, PREPARED, STAGE, Past, Versions

FOLDER, JOB_FILE, OUTCOME_FILE = "backfill", "job.json", "outcome.json"
TRIGGER = "backfill"
MANIFEST, DATA_FOLDER, PIPELINE_FILE = "manifest.parquet", "data", "dvc.yaml"
WAIT_MINUTES = 10.0  # for a process of an earlier backfill that lost its parent
DIGITS = 12


class Filled(BaseModel):
    """What became of one data version.

    Attributes:
        data: DVC's digest of it.
        commit: The commit that brought it in.
        date: When that was (ISO 8601).
        rows: Prepared rows; 0 where it did not get so far.
        test_rows: Those of them that the models were asked about.
        versions: Number of the registered version of each model, by role.
        accuracy: Of the edge model on this data version's own test rows, with a 95% interval.
        trained: Stages that ran, rather than being reused.
        outcome: As the journal has it; `failed` where it came to no end.
        sentence: The same for people.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    data: str
    commit: str
    date: str
    rows: int = 0
    test_rows: int = 0
    versions: dict[str, int] = {}
    accuracy: tuple[float, float, float] | None = None
    trained: int = 0
    outcome: str
    sentence: str

    @property
    def failed(self) -> bool:
        """Whether nothing was made."""
        return self.outcome == "failed"


class Backfilled(BaseModel):
    """What a backfill made, the oldest data version first.

    Attributes:
        code: sha256 over the code that trained; today's.
        filled: One per data version.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    code: str
    filled: tuple[Filled, ...]


def chosen(versions: Versions, start: str, end: str) -> list[Past]:
    """The data versions of a range, oldest first, each once.

    Args:
        versions: Whose.
        start: A date (from its first moment on, in this machine's time zone) or a commit: from the
            data version that it holds.
        end: A date (to its last moment) or a commit: to the data version that it holds.

    Raises:
        DataError: A bound is neither, they are the wrong way round, or nothing lies between them.
        SetupError: The project is in no git repository.
    """
    past = versions.history.past()
    first, last = _lower(versions.root, past, start), _upper(versions.root, past, end)
    if first > last + 1:
        raise DataError(f"--from {start} is after --to {end}; exchange them")
    found = {one.raw: one for one in past[first : last + 1]}  # the later commit of the same data
    if not found:
        raise DataError(
            f"no data version was committed from {start} to {end}; `git log -- {DATA_FILE}` says "
            "when there was one"
        )
    return list(found.values())


def _lower(root: Path, past: list[Past], bound: str) -> int:
    """Position of the first data version of a range."""
    moment = _moment(bound, time.min)
    if moment is not None:
        return sum(one.date < moment for one in past)
    known = commits.ancestors(root, bound)
    return max(0, sum(one.commit in known for one in past) - 1)


def _upper(root: Path, past: list[Past], bound: str) -> int:
    """Position of the last data version of a range; -1 where all are later."""
    moment = _moment(bound, time.max)
    if moment is not None:
        return sum(one.date <= moment for one in past) - 1
    known = commits.ancestors(root, bound)
    return sum(one.commit in known for one in past) - 1


def _moment(bound: str, of_day: time) -> datetime | None:
    """What a bound says of time, or None where it names a commit."""
    try:
        if len(bound) == len("2026-01-31"):
            return datetime.combine(date.fromisoformat(bound), of_day).astimezone()
        return datetime.fromisoformat(bound).astimezone() if "-" in bound else None
    except ValueError:
        return None


def refuse_gone(versions: Versions, wanted: list[Past]) -> None:
    """Fetches what the cache lacks of data versions, so that nothing starts that cannot end.

    Raises:
        DataError: Bytes of one are nowhere any more.
        SetupError: The remote does not answer.
    """
    for one in wanted:
        try:
            for md5 in versions.cache.listing(one.raw).values():
                versions.cache.stored(md5)
        except DataError as error:
            raise DataError(
                f"the data of {one.date:%Y-%m-%d} (commit {one.commit[:DIGITS]}) is gone: {error}"
            ) from None


@flow(name="backfill", validate_parameters=False, **NOTED)
def backfill(start: str, end: str, *, promotes: bool = False) -> Backfilled:
    """Retrains the project on past data versions; promotes none of them unless asked.

    Args:
        start: First date or commit.
        end: Last date or commit.
        promotes: Whether each is judged against the champion.

    Raises:
        BusyError: A retraining of the project is going on.
        StillmarkError: Whatever else stood in the way before anything ran, in one line.
    """
    settings = Settings()
    if is_deployed():
        preflight(settings)
    versions = Versions.of(settings)
    wanted = chosen(versions, start, end)
    refuse_gone(versions, wanted)
    # Of a team's lock each data version takes a turn of its own: the child could not have it else.
    with alone(settings.model_copy(update={"ledger_uri": None}), about=f"backfill {start} {end}"):
        # Made here, so that its artifacts lie in the project and not in the scratch folder.
        tracking = Tracking(settings.tracking_uri, settings.home)
        tracking.experiment(load(settings.root).project)
        filled = tuple(_fill(settings, tracking, one, promotes=promotes) for one in wanted)
    rows = [one.model_dump(exclude={"versions"}) for one in filled]
    create_table_artifact(rows, key="backfill", description=f"{start} to {end}, code of today")
    return Backfilled(code=origin.code().digest, filled=filled)


def backfill_once(start: str, end: str, *, promotes: bool = False) -> Backfilled:
    """Checks, then runs the flow in this process; the door that the command line uses.

    Raises:
        StillmarkError: Whatever stood in the way, in one line.
    """
    settings = Settings()
    preflight(settings)
    chosen(Versions.of(settings), start, end)  # before Prefect hears of it
    found, _ = in_process(backfill, start, end, promotes=promotes)
    return found


def _fill(settings: Settings, tracking: Tracking, past: Past, *, promotes: bool) -> Filled:
    """Makes the models of one data version; a kill leaves a scratch project to go on with."""
    scratch = settings.home / FOLDER / past.raw.partition(".")[0]
    _lay_out(settings, past, scratch)
    known = {name: _newest(tracking, name) for name in tracking.registered()}
    said = _run(settings, scratch, past, promotes=promotes)
    for name, number in said.pop("registered").items():
        if number > known.get(name, 0):
            tracking.tag_version(tracking.version(name, number), {BACKFILL_TAG: past.raw})
    shutil.rmtree(scratch)
    facts = {"data": past.raw, "commit": past.commit, "date": past.date.isoformat()}
    return Filled.model_validate_json(json.dumps(facts | said))


def _newest(tracking: Tracking, name: str) -> int:
    return max((int(one.version) for one in tracking.versions(name)), default=0)


def _lay_out(settings: Settings, past: Past, scratch: Path) -> None:
    """Makes, or completes, a project of its own around a past data version."""
    versions = Versions.of(settings)
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copy(settings.root / PIPELINE_FILE, scratch)
    tree = read_tree(settings.root / PARAMS_FILE)
    if isinstance(tree.get("pretrain"), dict):
        tree["pretrain"].pop("warm_start", None)  # today's encoder has seen what was to come
    (scratch / PARAMS_FILE).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    for name in _needs(settings.root):
        _copy(settings.root / name, scratch / name)
    versions.share(scratch)
    versions.cache.restore(past.raw, scratch / DATA_FOLDER)
    out = {"md5": past.raw, "hash": "md5", "path": DATA_FOLDER}
    (scratch / DATA_FILE).write_text(yaml.safe_dump({"outs": [out]}), encoding="utf-8")


def _needs(root: Path) -> list[str]:
    """What the data stage needs besides the data, as DVC wants to hash it."""
    tree: dict[str, Any] = yaml.safe_load((root / PIPELINE_FILE).read_text(encoding="utf-8"))
    return [str(name) for name in tree["stages"][STAGE]["deps"] if name != DATA_FOLDER]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def _run(settings: Settings, scratch: Path, past: Past, *, promotes: bool) -> dict[str, Any]:
    """Runs the chain in the scratch project; the child ends when this process does."""
    job = {"commit": past.commit, "date": past.date.isoformat(), "raw": past.raw}
    (scratch / JOB_FILE).write_text(json.dumps(job | {"promotes": promotes}), encoding="utf-8")
    outcome = scratch / OUTCOME_FILE
    outcome.unlink(missing_ok=True)
    environment = os.environ | {
        "STILLMARK_PROJECT": str(scratch),
        "STILLMARK_MLFLOW_URI": settings.tracking_uri,
        "STILLMARK_LEDGER_URI": settings.ledger_address,
        "PYTHONPATH": str(origin.CODE.parent),  # the copies in the scratch are for DVC to hash
        "PYTHONSAFEPATH": "1",
    }
    with subprocess.Popen(  # noqa: S603 - our own words only
        [sys.executable, "-m", "flows.backfill", str(scratch)],
        cwd=scratch,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as child:
        child.wait()
    if not outcome.is_file():
        raise TrainingError(
            f"the backfill of {past.raw} ended with code {child.returncode}; its own lines say why"
        )
    return json.loads(outcome.read_text(encoding="utf-8"))


def _child(scratch: Path) -> None:
    """What runs in the scratch project."""
    from flows.retrain import retrain  # noqa: PLC0415 - the parent has no use for it

    job = json.loads((scratch / JOB_FILE).read_text(encoding="utf-8"))
    reason = Reason(
        trigger=TRIGGER,
        sentence=f"data of {job['date']}, commit {job['commit'][:DIGITS]}",
        about=job["raw"],
    )
    given = {"wait_minutes": WAIT_MINUTES, "promotes": job["promotes"]}
    try:
        preflight(Settings())
        made, flow_run = in_process(retrain, reason.trigger, reason.sentence, reason.about, **given)
        wait_for_task_states(flow_run)
        said = _said(scratch, made)
    except StillmarkError as error:
        line = str(error).splitlines()[0]
        said = {"outcome": "failed", "sentence": line, "registered": {}}
    partial = scratch / f"{OUTCOME_FILE}.partial"
    partial.write_text(json.dumps(said), encoding="utf-8")
    partial.replace(scratch / OUTCOME_FILE)


def _said(scratch: Path, made: Any) -> dict[str, Any]:  # noqa: ANN401 - an Outcome of flows.retrain
    edge = made.evaluation.of("edge")
    versions: dict[str, VersionRef] = made.versions
    manifest = pyarrow.parquet.read_metadata(scratch / PREPARED / MANIFEST)
    return {
        "rows": manifest.num_rows,
        "test_rows": made.evaluation.rows,
        "versions": {role: found.version for role, found in versions.items()},
        "registered": {found.name: found.version for found in versions.values()},
        "accuracy": [edge.accuracy, edge.low, edge.high],
        "trained": made.retraining.trained,
        "outcome": made.retraining.outcome,
        "sentence": made.retraining.sentence,
    }


def _end_with_parent() -> None:
    """The other end of standard input closes when the parent ends, however it ends."""
    os.read(sys.stdin.fileno(), 1)  # a buffered one would be locked when the interpreter ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _child(Path(sys.argv[1]))
