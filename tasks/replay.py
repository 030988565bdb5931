"""Can it be made again? Executes the recorded stages once more, in a place of their own.

Code comes from the recorded commit, rows from DVC, parameters, seed, threads, device and precision
from the records; the project itself is only read. Where a stage runs on what its record says, its
files have to come out bit for bit. Elsewhere arithmetic rounds otherwise: then weights are compared
by a stated tolerance, and the report says what is different here.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks import rerun
from tasks.checks import committed_code
from tasks.differences import Difference, differing
from tasks.errors import ParamsError, SetupError, TrainingError
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_value
from tasks.lineage.record import Record
from tasks.refs import DataRef, ModelRef, VersionRef
from tasks.settings import Settings
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED, Versions

Status = Literal["equal", "within tolerance", "different", "declared"]

TOLERANCE = 1e-4
HOST = ("machine", "instruction_set", "device", "precision", "threads", "seed")
NAMED_AT_MOST = 5
# The packages of Stillmark itself are named by the code digest.
OWN_PACKAGE = "stillmark"


class Remade(BaseModel):
    """What became of one model.

    Attributes:
        stage: The stage that made it.
        role: What it is in the chain.
        record: sha256 of its record.
        status: `equal` bit for bit; `within tolerance`, where something here is not as recorded;
            `different`; or `declared`: it cannot be made again.
        reasons: What is not as recorded here, or why it cannot be made again.
        expected: The recorded content digest.
        found: The content digest that came out, or None.
        files: Those that differ.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    stage: str
    role: str
    record: str
    status: Status
    reasons: tuple[str, ...]
    expected: str
    found: str | None
    files: tuple[Difference, ...] = ()


class Replay(BaseModel):
    """What came of making a version again.

    Attributes:
        name: The registered model.
        version: Its version.
        tolerance: Largest relative difference of a weight that passes where bits cannot be equal.
        remade: One per executed stage, the oldest ancestor first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    version: int
    tolerance: float
    remade: tuple[Remade, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing came out different; what could not be made again is only declared."""
        return all(one.status != "different" for one in self.remade)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A recorded model and its files."""

    digest: str
    record: Record
    folder: Path


def replay(
    settings: Settings,
    version: VersionRef,
    *,
    scratch: Path,
    stage: str | None = None,
    tolerance: float = TOLERANCE,
) -> Replay:
    """Makes a version again, from its oldest ancestor on, and compares what comes out.

    Args:
        settings: Where the project is; nothing in it is written but DVC's cache.
        version: What to make again.
        scratch: A folder that is empty or not there yet; holds code, data and results afterwards.
        stage: Only this stage, from its recorded parents.
        tolerance: Largest difference of a weight, relative to the largest of its tensor, that
            passes where something here is not as recorded. int8 weights may differ by 1.

    Raises:
        SetupError: The folder cannot be used or is full, or a service does not answer.
        ArtifactError: A recorded model is damaged or gone, so that there is nothing to compare.
        DataError: The data cannot be fetched.
        ParamsError: The lineage has no such stage.
        TrainingError: A stage failed.
    """
    tracking = Tracking(settings.tracking_uri, settings.home)
    chain = _chain(tracking, version)
    wanted = [one for one in chain.values() if stage in {None, one.record.stage}]
    if not wanted:
        known = ", ".join(dict.fromkeys(one.record.stage for one in chain.values()))
        raise ParamsError(
            f"no stage '{stage}' made {version.name} version {version.version}: {known}"
        )
    _need_empty(scratch)
    project = version.name.rpartition(".")[0] or version.name
    work = _Replay(settings, project, chain, scratch, tolerance)
    try:
        remade = tuple(work.make(wanted))
    except OSError as error:
        _clear(scratch)
        raise _of_system(error, scratch) from None
    except BaseException:
        _clear(scratch)
        raise
    return Replay(name=version.name, version=version.version, tolerance=tolerance, remade=remade)


def _chain(tracking: Tracking, version: VersionRef) -> dict[str, _Stored]:
    """The version and its ancestors by their records' digests, parents first; files are hashed."""
    found: dict[str, _Stored] = {}

    def visit(model_id: str | None, digest: str) -> None:
        if digest in found:
            return
        record = tracking.record_of(model_id, digest)
        for parent in record.parents:
            visit(parent.model_id, parent.record)
        found[digest] = _Stored(digest, record, tracking.stored_at(str(model_id)))

    visit(version.model.model_id, version.model.record)
    return found


def _need_empty(scratch: Path) -> None:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        taken = any(scratch.iterdir())
    except OSError as error:
        raise _of_system(error, scratch) from None
    if taken:
        raise SetupError(f"{scratch} is not empty; name a folder that is, or that is not there yet")


def _clear(scratch: Path) -> None:
    """Leaves the folder as it was found: empty."""
    for path in scratch.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _of_system(error: OSError, scratch: Path) -> SetupError:
    if error.errno == errno.ENOSPC:
        return rerun.full(scratch)
    return SetupError(f"{error.filename or scratch} cannot be used: {error.strerror}")


@dataclass(frozen=True)
class _Replay:
    """One replay.

    Attributes:
        settings: Where the project is.
        project: Its name.
        chain: Every recorded model of the lineage, by its record's digest, parents first.
        scratch: The folder to work in.
        tolerance: See `replay`.
    """

    settings: Settings
    project: str
    chain: dict[str, _Stored]
    scratch: Path
    tolerance: float

    def make(self, wanted: list[_Stored]) -> Iterator[Remade]:
        """Executes stages, those of one commit and data version in one process."""
        sources = {one.digest: self._source(one) for one in wanted}
        known: dict[str, dict[str, Any]] = {}
        (self.scratch / "results").mkdir()

        def place(one: _Stored) -> tuple[str, DataRef]:
            source = sources[one.digest]
            return (source if isinstance(source, str) else source.commit), one.record.data

        remade: dict[str, Remade] = {}
        for number, (_, together) in enumerate(groupby(wanted, place)):
            members = list(together)
            source = sources[members[0].digest]
            if isinstance(source, rerun.Source):
                self._execute(self.scratch / str(number), source, members, known)
            for one in members:
                why = sources[one.digest]
                remade[one.digest] = (
                    _declared(one, why) if isinstance(why, str) else self._compare(one, remade)
                )
        yield from remade.values()

    def _source(self, one: _Stored) -> rerun.Source | str:
        """Where a record's code is, or why it cannot be executed again."""
        code = one.record.code
        if self._key(one) != one.record.key:
            return (
                "its key does not follow from its record: it was made with other labels than the "
                "data version shows (a comparison's draw), which no record holds"
            )
        if code.commit is None:
            return "it ran outside git: its code is not kept"
        for root in (self.settings.root, origin.CODE.parent):
            if committed_code(root, code.commit) == code.digest:
                return rerun.Source(root, code.commit)
        if not code.clean:
            return f"the working tree was not as in commit {code.commit}: its code is not kept"
        return f"git does not have commit {code.commit} with the recorded code; fetch it"

    def _key(self, one: _Stored) -> str:
        """The stage key that follows from a record (see `tasks.stage.Stage.key`)."""
        record = one.record
        inputs = {parent.role: self.chain[parent.record].record for parent in record.parents}
        return digest_of_value(
            {
                "stage": record.stage,
                "code": record.code.digest,
                "parameters": record.parameters,
                "data": record.data.content,
                "inputs": {name: parent.content for name, parent in inputs.items()},
                "environment": record.environment,
            }
        )

    def _execute(
        self,
        root: Path,
        source: rerun.Source,
        members: list[_Stored],
        known: dict[str, dict[str, Any]],
    ) -> None:
        """Runs stages of one commit and data version; adds what they made to what is known."""
        data = members[0].record.data
        rerun.unpack(source, root)
        cache = Versions.of(self.settings).cache
        cache.restore(data.prepared, root / PREPARED)
        cache.restore(data.raw, root / "data")
        made = {*known, *(one.digest for one in members)}
        job = {
            "project": self.project,
            "data": data.model_dump(),
            "known": known,
            "results": str(self.scratch / "results"),
            "steps": [self._step(one, root, made) for one in members],
        }
        path = root.with_suffix(".json")
        path.write_text(json.dumps(job))
        self._run(root, path, members)
        for one in members:
            known[one.digest] = self._result(one)["ref"]

    def _step(self, one: _Stored, root: Path, made: set[str]) -> dict[str, Any]:
        record = one.record
        parents = [self.chain[parent.record] for parent in record.parents]
        return {
            "record": one.digest,
            "stage": record.stage,
            "module": rerun.module_of(root, record.stage),
            "parameters": record.parameters,
            "compute": rerun.compute_of(record.environment),
            "inputs": {parent.role: parent.record for parent in record.parents},
            "given": {one.digest: _given(one) for one in parents if one.digest not in made},
        }

    def _run(self, root: Path, job: Path, members: list[_Stored]) -> None:
        last = rerun.run(root, job, self.scratch)
        if last is not None:
            undone = (one for one in members if not self._at(one).exists())
            at = next(undone, members[-1]).record.stage
            raise TrainingError(f"stage {at} failed when it was made again: {last}")

    def _at(self, one: _Stored) -> Path:
        return self.scratch / "results" / one.digest

    def _result(self, one: _Stored) -> dict[str, Any]:
        return json.loads(self._at(one).read_text())

    def _compare(self, one: _Stored, earlier: dict[str, Remade]) -> Remade:
        """A model made again against the recorded one."""
        result = self._result(one)
        ref, folder = ModelRef(**result["ref"]), Path(result["folder"])
        reasons = [
            *_reasons(one.record.environment, Record.read(folder).environment),
            *_of_parents(one.record, earlier),
        ]
        files = tuple(differing(payload_of(one.folder), payload_of(folder)))
        close = all(
            file.difference is not None and file.difference <= self.tolerance for file in files
        )
        status: Status = "different"
        if ref.content == one.record.content:
            status = "equal"
        elif close and reasons:
            status = "within tolerance"
        elif not reasons:
            reasons = ["everything here is as recorded, yet other bits came out"]
        return Remade(
            stage=one.record.stage,
            role=one.record.role,
            record=one.digest,
            status=status,
            reasons=tuple(reasons),
            expected=one.record.content,
            found=ref.content,
            files=files,
        )


def _declared(one: _Stored, why: str) -> Remade:
    return Remade(
        stage=one.record.stage,
        role=one.record.role,
        record=one.digest,
        status="declared",
        reasons=(why,),
        expected=one.record.content,
        found=None,
    )


def _given(one: _Stored) -> dict[str, str]:
    """A recorded parent, as the driver takes it in."""
    record = one.record
    return {
        "stage": record.stage,
        "role": record.role,
        "key": record.key,
        "content": record.content,
        "folder": str(one.folder),
    }


def _reasons(recorded: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    """What is not as recorded on this machine."""
    for name in HOST:
        if recorded.get(name) != here.get(name):
            yield f"{name.replace('_', ' ')}: {here.get(name)}, recorded {recorded.get(name)}"
    before, now = recorded.get("packages", {}), here.get("packages", {})
    changed = [
        f"{name} {now.get(name, 'missing')} ({before.get(name, 'missing')})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name != OWN_PACKAGE
    ]
    if changed:
        more = f" and {len(changed) - NAMED_AT_MOST} more" if len(changed) > NAMED_AT_MOST else ""
        yield f"packages here (recorded): {', '.join(changed[:NAMED_AT_MOST])}{more}"


def _of_parents(record: Record, earlier: dict[str, Remade]) -> Iterator[str]:
    for parent in record.parents:
        remade = earlier.get(parent.record)
        if remade is not None and remade.status in {"within tolerance", "different"}:
            yield f"its {parent.role}, made again, has other bits"
