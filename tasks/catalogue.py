"""The catalogue: the lineage index of a project, filled from the registry and the ledger.

Everything in it comes from elsewhere: records and versions from MLflow, who held an alias from the
ledger and from its witnesses in MLflow's tags, rows from the manifests that DVC keeps.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from pydantic import ValidationError

from tasks.errors import ArtifactError, DataError, SetupError
from tasks.ledger import Ledger
from tasks.lineage.digests import digest_of_file
from tasks.lineage.graph import Copy, Holding, Version
from tasks.lineage.index import Index
from tasks.lineage.record import Record
from tasks.lineage.row_sets import RowSet, RowSets, read_manifest, rows_of_source
from tasks.refs import DataRef, ModelRef
from tasks.settings import Settings
from tasks.tracking import (
    CONTENT_TAG,
    RECORD_TAG,
    REF_TAG,
    STAGE_TAG,
    Tracking,
    clear_errors,
)
from tasks.versioning import PREPARED, Versions

FOLDER = "lineage"
INDEX_FILE, ROWS_FOLDER, LOCK = "index.db", "rows", "index.lock"
MANIFEST, REPORT = "manifest.parquet", "report.json"
WITNESS = "stillmark.ledger."
SEEN = "seen_ms"
# Clocks of workers may differ by so much, and no finished run is overlooked. Past that, versions
# and parents still lead to every model that matters.
OVERLAP_MS = 3600 * 1000
LOCK_SECONDS = 900
COPIES_PER_WRITE = 100

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Catalogue:
    """What is known of all models of a project, and of the rows behind them.

    Attributes:
        index: The graph.
        row_sets: Rows by manifest.
        tracking: Where records are stored.
        ledger: Who held an alias.
        versions: Where row manifests are kept.
    """

    index: Index
    row_sets: RowSets
    tracking: Tracking
    ledger: Ledger
    versions: Versions

    @classmethod
    def of(cls, settings: Settings) -> "Catalogue":
        """The catalogue of a project; close it after use.

        Raises:
            SetupError: The registry does not answer, or the index cannot be written.
            LedgerError: The ledger does not answer.
        """
        folder = settings.writable_home() / FOLDER
        return cls(
            Index(folder / INDEX_FILE),
            RowSets(folder / ROWS_FOLDER),
            Tracking(settings.tracking_uri, settings.home),
            Ledger(settings.ledger_address),
            Versions.of(settings),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the index."""
        self.index.close()

    def rebuild(self, progress: Progress | None = None) -> int:
        """Forgets the index and reads every stored record again, from MLflow alone.

        Killed half way, it leaves an index that the next refresh completes.

        Args:
            progress: Called with the number of records read so far.

        Returns:
            How many records are known.

        Raises:
            SetupError: The registry does not answer, or another process holds the index.
            LedgerError: The ledger cannot be read.
        """
        with self._alone():
            self.index.clear()
            self.row_sets.clear()
            self._fill(progress)
        return self.index.count()

    def refresh(self, progress: Progress | None = None) -> int:
        """Adds what is new, and tries again what could not be read.

        Returns:
            How many records are new.

        Raises:
            SetupError: The registry does not answer, or another process holds the index.
            LedgerError: The ledger cannot be read.
        """
        with self._alone():
            before = self.index.count()
            self._fill(progress)
        return self.index.count() - before

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self.index.path.with_name(LOCK)
        try:
            with FileLock(lock, timeout=LOCK_SECONDS), clear_errors(self.tracking.uri):
                yield
        except Timeout:
            raise SetupError(
                f"{lock} has been held for {LOCK_SECONDS} s by a process that fills the index; "
                "wait for it, or end it"
            ) from None

    def _fill(self, progress: Progress | None) -> None:
        self._retry()
        seen = int(self.index.noted(SEEN) or 0)
        waiting: list[Copy] = []
        known, done = self.index.runs(), 0
        for run in self.tracking.finished(max(0, seen - OVERLAP_MS)):
            seen = max(seen, run.info.end_time or 0)
            if run.info.run_id in known or not _is_result(run.data.tags):
                continue
            waiting.append(self._copy(run.info.run_id, run.data.tags))
            done += 1
            if len(waiting) == COPIES_PER_WRITE:
                self.index.add(waiting)
                waiting.clear()
            if progress:
                progress(done)
        self.index.add(waiting)
        self._register()
        self._adopt_parents()
        self.index.note(SEEN, str(seen))

    def _copy(self, run_id: str, tags: dict[str, str]) -> Copy:
        """A finished run's record, or why it cannot be read."""
        try:
            return self._read(_reference(tags))
        except ArtifactError as error:
            stage, digest = tags.get(STAGE_TAG, ""), tags.get(RECORD_TAG, "")
            return Copy(stage, stage, run_id, None, digest, None, str(error))

    def _read(self, ref: ModelRef) -> Copy:
        record = reason = None
        try:
            record = self.tracking.read_record(ref.model_id, ref.run_id, ref.record)
        except ArtifactError as error:
            reason = str(error)
        return Copy(ref.stage, ref.role, ref.run_id, ref.model_id, ref.record, record, reason)

    def _retry(self) -> None:
        """What an earlier refresh could not read may be readable by now."""
        self.index.add(
            replace(copy, record=record, reason=None)
            for copy in self.index.unreadable()
            if copy.digest and (record := self._again(copy.model_id, copy.run_id, copy.digest))
        )

    def _again(self, model_id: str | None, run_id: str, digest: str) -> Record | None:
        try:
            return self.tracking.read_record(model_id, run_id, digest)
        except ArtifactError:
            return None  # as it was before, with the reason that is kept already

    def _register(self) -> None:
        """Versions and aliases as they are now; models that only a version names are read, too."""
        known = self.index.digests()
        versions, held = self._promoted()
        for found in self.tracking.all_versions():
            name, number = found.name, int(found.version)
            held |= {
                Holding(name, number, _alias_of(tag), now=False)
                for tag in found.tags
                if tag.startswith(WITNESS)
            }
            versions[name, number], ref = _version(name, number, found.tags)
            if ref is not None and ref.record not in known:
                self.index.add([self._read(ref)])
        for (name, alias), number in self.tracking.aliases().items():
            held.add(Holding(name, number, alias, now=True))
        self.index.register(versions.values(), held)

    def _promoted(self) -> tuple[dict[tuple[str, int], Version], set[Holding]]:
        """What the ledger says; it knows versions that were deleted since."""
        entries = self.ledger.entries()
        return (
            {
                (entry.model, entry.version): Version(entry.model, entry.version, entry.record)
                for entry in entries
            },
            {Holding(entry.model, entry.version, entry.alias, now=False) for entry in entries},
        )

    def _adopt_parents(self) -> None:
        """Reads models that only their children name, for example after their runs were purged."""
        tried: set[str] = set()
        while fresh := [one for one in self.index.missing() if one[1] and one[1] not in tried]:
            for digest, model_id, role in fresh:
                tried.add(model_id)
                record = self._again(model_id, "", digest)
                if record is not None:
                    self.index.add([Copy(record.stage, role, "", model_id, digest, record)])

    def manifests(self) -> Iterator[tuple[str, RowSet | str]]:
        """Every row manifest that a record names, with its rows or why they cannot be read."""
        places: dict[str, list[DataRef]] = {}
        for data in self.index.data():
            places.setdefault(data.manifest, []).append(data)
        for manifest, versions in sorted(places.items()):
            kept = self.row_sets.open(manifest)  # of no rows, it is false
            yield manifest, self._rows(manifest, versions) if kept is None else kept

    def _rows(self, manifest: str, versions: list[DataRef]) -> RowSet | str:
        reasons: list[str] = []
        for data in versions:
            try:
                path = self._manifest(data)
                self.row_sets.keep(manifest, *read_manifest(path))
            except (DataError, SetupError) as error:
                reasons.append(str(error))
            else:
                kept = self.row_sets.open(manifest)
                if kept is not None:
                    return kept
        return "; ".join(dict.fromkeys(reasons)) or f"the rows of {manifest} cannot be kept"

    def _manifest(self, data: DataRef) -> Path:
        """A row manifest's file: today's, where it is that one, or DVC's copy."""
        today = self.versions.root / PREPARED / MANIFEST
        if today.is_file() and digest_of_file(today).sha256 == data.manifest:
            return today
        listing = self.versions.cache.listing(data.prepared)
        if MANIFEST not in listing:
            raise DataError(f"data version {data.prepared} holds no {MANIFEST}; restore it")
        path = self.versions.cache.stored(listing[MANIFEST])
        found = digest_of_file(path).sha256
        if found != data.manifest:
            raise DataError(
                f"the row manifest {path} has sha256 {found}, recorded {data.manifest}; remove it, "
                "so that it is fetched again"
            )
        return path

    def rows_of_file(self, name: str) -> list[str]:
        """Digests of today's rows that came from a file or folder of the raw data.

        A file whose content lies in `data/` twice is found by either name.

        Args:
            name: Relative to `data/`.

        Raises:
            DataError: The data has not been prepared, or no row came from there.
        """
        prepared = self.versions.root / PREPARED
        if not (prepared / MANIFEST).is_file():
            raise DataError("the data has not been prepared; run `dvc repro`, or `dvc pull`")
        names = [name, *_originals(prepared / REPORT, name)]
        rows = {row for one in names for row in rows_of_source(prepared / MANIFEST, one)}
        if not rows:
            raise DataError(
                f"no row of today's data comes from data/{name}; run `dvc repro` if it is new, or "
                "give the row's digest if it was removed"
            )
        return sorted(rows)


def _is_result(tags: dict[str, str]) -> bool:
    """Whether a finished run claims to hold a stage's result; promotions do not."""
    return not tags.keys().isdisjoint({REF_TAG, RECORD_TAG, CONTENT_TAG})


def _version(name: str, number: int, tags: dict[str, str]) -> tuple[Version, ModelRef | None]:
    digest = tags.get(RECORD_TAG, "")
    if not _is_result(tags):
        return Version(name, number, digest, "it was not registered by Stillmark"), None
    try:
        ref = _reference(tags)
    except ArtifactError as error:
        return Version(name, number, digest, str(error)), None
    return Version(name, number, ref.record), ref


def _reference(tags: dict[str, str]) -> ModelRef:
    """What tags say of a result, if they agree.

    Raises:
        ArtifactError: They do not, or say nothing.
    """
    try:
        ref = ModelRef.model_validate_json(tags.get(REF_TAG, ""))
    except ValidationError:
        raise ArtifactError(f"the tag {REF_TAG} is no reference: it was changed") from None
    if tags.get(RECORD_TAG) != ref.record:
        raise ArtifactError(
            f"the tag {RECORD_TAG} says {tags.get(RECORD_TAG)}, {REF_TAG} says {ref.record}: one "
            "was changed"
        )
    return ref


def _alias_of(tag: str) -> str:
    """`stillmark.ledger.<alias>.<sequence>`."""
    return tag.removeprefix(WITNESS).rpartition(".")[0]


def _originals(report: Path, name: str) -> list[str]:
    """Where the content of a file's rows is found again, which were merged with others."""
    if not report.is_file():
        return []
    merged: list[str] = json.loads(report.read_text(encoding="utf-8")).get("duplicates", [])
    inside = (f"{name} = ", f"{name}#", f"{name}/")
    return [line.partition(" = ")[2] for line in merged if line.startswith(inside)]
