"""Impact: every model that descends from a row, a data version, a commit or a model.

What cannot be read is listed as unknown, never skipped: it may descend from what is asked about.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.catalogue import Catalogue
from tasks.errors import DataError, ParamsError, RegistryError
from tasks.lineage.graph import Artifact, Copy, Held, Version
from tasks.lineage.index import FEWEST_DIGITS, PREFIX, Index
from tasks.lineage.row_sets import packed
from tasks.refs import Ref, VersionRef

DATA_FOLDER = "data"
DIGITS = 12
SHA256_DIGITS = 64
# Rows of these splits reach a model's weights, or the choices made while it was trained.
LEARNT_FROM = {"train": "trained on", "validation": "chosen by"}
JUDGED_ON = "test"
ITSELF = "itself"
MISSING = "no record of it is stored"


class Registered(Ref):
    """A registered version and the aliases that it holds, and ever held."""

    name: str
    version: int
    now: tuple[str, ...]
    ever: tuple[str, ...]


class Touched(Ref):
    """A model or report that descends from what was asked about.

    Attributes:
        record: sha256 of its lineage record.
        stage: Stage that made it.
        role: What it is in the chain.
        models: Its MLflow models.
        how: `itself`, `directly`, or `through its ancestors`; for rows, how they were used.
        versions: Its registered versions.
    """

    record: str
    stage: str
    role: str
    models: tuple[str, ...]
    how: str
    versions: tuple[Registered, ...]


class Unknown(Ref):
    """What may be touched: nobody can tell.

    Attributes:
        record: sha256 that its record should have; empty where nothing says.
        role: What it is in the chain.
        models: Its MLflow models.
        runs: Its MLflow runs.
        reason: What cannot be read.
        versions: Its registered versions.
    """

    record: str
    role: str
    models: tuple[str, ...]
    runs: tuple[str, ...]
    reason: str
    versions: tuple[Registered, ...]


class Impact(Ref):
    """What was touched.

    Attributes:
        asked: What was asked about, in words.
        rows: Digests of the rows that were asked about; empty for other questions.
        models: Models that descend from it.
        judged: For rows, models that were judged on them (test rows), and no more than that.
        reports: Evaluations and comparisons that descend from it, or read the rows.
        unknown: Models whose record, manifest or ancestor cannot be read.
    """

    asked: str
    rows: tuple[str, ...]
    models: tuple[Touched, ...]
    judged: tuple[Touched, ...]
    reports: tuple[Touched, ...]
    unknown: tuple[Unknown, ...]

    @property
    def holders(self) -> tuple[Registered, ...]:
        """Versions among the models that hold an alias now."""
        return tuple(one for model in self.models for one in model.versions if one.now)


def impact(
    catalogue: Catalogue,
    *,
    row: str | None = None,
    data: str | None = None,
    code: str | None = None,
    model: VersionRef | str | None = None,
) -> Impact:
    """What descends from one thing, after a look at what is new in the registry.

    Args:
        catalogue: What is known.
        row: Digest (sha256) of a row's content, or a unique beginning of at least 8 digits.
        data: A file or folder in `data/`: its rows in today's manifest. Or any digest of a data
            version (raw, prepared, manifest, content), or a row's; or a unique beginning.
        code: A commit, or a unique beginning.
        model: A registered version; or a record's digest or a unique beginning, or the id of an
            MLflow model.

    Raises:
        ParamsError: Not exactly one of them is given.
        DataError: There is no such row, data version or commit, or several begin so.
        RegistryError: There is no such model.
        SetupError: The registry does not answer, or the index cannot be used.
        LedgerError: The ledger cannot be read.
    """
    if sum(one is not None for one in (row, data, code, model)) != 1:
        raise ParamsError("impact needs exactly one of a row, data, a commit and a model")
    catalogue.refresh()
    index = catalogue.index
    if row is not None:
        return _of_row(catalogue, row)
    if data is not None:
        return _of_data(catalogue, data)
    if code is not None:
        commit = index.commit(code)
        if commit is None:
            raise DataError(f"no record names a commit that starts with '{code}'")
        return _Reach(index, f"commit {commit}", index.of_code(commit)).impact()
    return _of_model(index, model if model is not None else "")


def _of_model(index: Index, model: VersionRef | str) -> Impact:
    if isinstance(model, VersionRef):
        named = f"{model.name} version {model.version}"
        return _Reach(index, named, {model.model.record}, how=ITSELF).impact()
    found = index.of_model(model)
    if not found and PREFIX.fullmatch(model):
        record = index.record(model)
        found = set() if record is None else {record}
    if not found:
        raise RegistryError(
            f"no record or MLflow model is known by '{model}'; give a version, a record's digest "
            "or a model's id"
        )
    return _Reach(index, f"model {model}", found, how=ITSELF).impact()


def _of_data(catalogue: Catalogue, data: str) -> Impact:
    index = catalogue.index
    digest = data if index.of_data(data) else None
    if digest is None:
        name = _name_in_data(catalogue.versions.root, data)
        if name is not None:
            rows = catalogue.rows_of_file(name)
            return of_rows(catalogue, f"{DATA_FOLDER}/{name}", rows)
        digest = index.data_digest(data)
    if digest is None:
        return _of_row(catalogue, data)
    return _Reach(index, f"data version {digest}", index.of_data(digest)).impact()


def _name_in_data(root: Path, data: str) -> str | None:
    """Name in `data/` of what is a file or folder there, or was one; None of a digest."""
    folder = root / DATA_FOLDER
    # Not resolved: DVC may have linked the files to its cache.
    paths = [Path(os.path.normpath(place / data)) for place in (Path.cwd(), root, folder)]
    inside = [path for path in paths if path.is_relative_to(folder)]
    there = [path for path in inside if path.exists()]
    if not there and PREFIX.fullmatch(data):
        return None
    if not inside:
        raise DataError(f"{data} does not lie in {folder}; name a file there, or give a digest")
    name = [*there, *inside][0].relative_to(folder)
    return "" if name == Path() else name.as_posix()


def _of_row(catalogue: Catalogue, prefix: str) -> Impact:
    if not PREFIX.fullmatch(prefix) or prefix.endswith(".dir"):
        raise DataError(
            f"'{prefix}' is no row's digest; expected at least {FEWEST_DIGITS} hex digits of it"
        )
    found: dict[str, dict[str, set[str]]] = {}
    unreadable: dict[str, str] = {}
    for manifest, rows in catalogue.manifests():
        if isinstance(rows, str):
            unreadable[manifest] = rows
            continue
        for digest, split in rows.starting_with(prefix):
            found.setdefault(digest, {}).setdefault(split, set()).add(manifest)
    if len(found) > 1:
        raise DataError(
            f"'{prefix}' is ambiguous: {', '.join(sorted(found)[:5])}; give more digits"
        )
    if not found and len(prefix) < SHA256_DIGITS:
        unread = f"; {len(unreadable)} row manifests cannot be read" if unreadable else ""
        raise DataError(
            f"no row or data version that is known starts with '{prefix}'{unread}; give the whole "
            "digest"
        )
    digest, manifests = next(iter(found.items()), (prefix, {}))
    return _rows_reach(catalogue.index, f"row {digest}", (digest,), manifests, unreadable)


def of_rows(catalogue: Catalogue, asked: str, rows: Sequence[str]) -> Impact:
    """What was made from any of these rows, as far as the catalogue knows.

    Args:
        catalogue: What is known; not refreshed.
        asked: What to call them.
        rows: Digests of their contents.

    Raises:
        SetupError: The index cannot be used.
    """
    wanted = packed(list(rows))
    manifests: dict[str, set[str]] = {}
    unreadable: dict[str, str] = {}
    for manifest, known in catalogue.manifests():
        if isinstance(known, str):
            unreadable[manifest] = known
            continue
        for split in known.splits_of(wanted):
            manifests.setdefault(split, set()).add(manifest)
    return _rows_reach(catalogue.index, asked, tuple(rows), manifests, unreadable)


def _rows_reach(
    index: Index,
    asked: str,
    rows: tuple[str, ...],
    manifests: dict[str, set[str]],
    unreadable: dict[str, str],
) -> Impact:
    """Impact of rows, by the manifests that hold them in each split."""
    uses: dict[str, list[str]] = {}
    for split, use in LEARNT_FROM.items():
        for digest in index.of_manifests(manifests.get(split, set())):
            uses.setdefault(digest, []).append(use)
    reports = index.reports_of(set().union(*manifests.values()))
    judging = index.reports_of(manifests.get(JUDGED_ON, set()))
    reach = _Reach(
        index,
        asked,
        uses.keys() - reports,
        uses={digest: ", ".join(words) for digest, words in uses.items()},
        reports=reports,
        judged=index.parents(judging),
        unread={
            digest: f"the rows of its data cannot be read: {reason}"
            for manifest, reason in unreadable.items()
            for digest in index.of_manifests([manifest])
        },
        rows=rows,
    )
    return reach.impact()


@dataclass
class _Reach:
    """What a question found, on its way to an answer.

    Attributes:
        seeds: Records that what was asked about went into directly.
        how: Said of the seeds, where `uses` says nothing.
        uses: Said of single seeds.
        reports: Reports to list beside those that descend.
        judged: Models that were judged.
        unread: Records that may be seeds, with the reason why nobody can tell.
    """

    index: Index
    asked: str
    seeds: Collection[str]
    how: str = "directly"
    uses: dict[str, str] = field(default_factory=dict)
    reports: Collection[str] = ()
    judged: Collection[str] = ()
    unread: dict[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()

    def impact(self) -> Impact:
        """The answer."""
        descendants = self.index.descendants(self.seeds)
        listed = sorted(descendants | set(self.reports) | set(self.judged))
        artifacts = self.index.artifacts(listed)
        touched = [artifacts[digest] for digest in listed if digest in descendants]
        reports = [artifacts[digest] for digest in listed if not artifacts[digest].is_model]
        judged = [artifacts[digest] for digest in self.judged if digest not in descendants]
        return Impact(
            asked=self.asked,
            rows=self.rows,
            models=tuple(self._touched(one) for one in touched if one.is_model),
            judged=tuple(_as_touched(one, "judged on") for one in judged),
            reports=tuple(self._touched(one) for one in reports if one.digest not in self.judged),
            unknown=tuple(self._unknown(descendants)),
        )

    def _touched(self, artifact: Artifact) -> Touched:
        if artifact.digest in self.seeds:
            return _as_touched(artifact, self.uses.get(artifact.digest, self.how))
        reads = artifact.digest in self.reports
        return _as_touched(artifact, "reads them" if reads else "through its ancestors")

    def _unknown(self, touched: set[str]) -> Iterator[Unknown]:
        """What may be touched, as it or an ancestor of it cannot be read."""
        unread = self.index.unreadable()
        known = self.index.artifacts({copy.digest for copy in unread})
        reasons = self.unread | {digest: MISSING for digest, _, _ in self.index.missing()}
        for copy in unread:
            if known[copy.digest].state != "known":
                reasons[copy.digest] = f"its record cannot be read: {copy.reason}"
            elif copy.digest not in touched:
                yield _as_unknown(copy)
        # No model descends from what it was made of; a row or a commit may well have gone into it.
        above = self.index.ancestry(self.seeds) if self.how == ITSELF else set[str]()
        suspects = self.index.descendants(reasons.keys() - above) - touched
        for artifact in self.index.artifacts(sorted(suspects)).values():
            yield _as_suspect(artifact, self._reason(artifact.digest, reasons))
        for version in self.index.foreign():
            if version.digest not in touched | suspects:
                held = self.index.held(version.name, version.number)
                yield _as_foreign(held, version)

    def _reason(self, digest: str, reasons: dict[str, str]) -> str:
        if digest in reasons:
            return reasons[digest]
        first = min(self.index.ancestry([digest]) & reasons.keys())
        return f"it descends from record {first[:DIGITS]}: {reasons[first]}"


def _as_touched(artifact: Artifact, how: str) -> Touched:
    return Touched(
        record=artifact.digest,
        stage=artifact.stage,
        role=artifact.role,
        models=artifact.model_ids,
        how=how,
        versions=tuple(map(_registered, artifact.versions)),
    )


def _as_suspect(artifact: Artifact, reason: str) -> Unknown:
    return Unknown(
        record=artifact.digest,
        role=artifact.role,
        models=artifact.model_ids,
        runs=artifact.run_ids,
        reason=reason,
        versions=tuple(map(_registered, artifact.versions)),
    )


def _as_unknown(copy: Copy) -> Unknown:
    """A damaged copy of a record that is known from elsewhere: its tags may be what is wrong."""
    return Unknown(
        record=copy.digest,
        role=copy.role,
        models=(copy.model_id,) if copy.model_id else (),
        runs=(copy.run_id,),
        reason=f"its record cannot be read: {copy.reason}",
        versions=(),
    )


def _as_foreign(held: Held, version: Version) -> Unknown:
    return Unknown(
        record=version.digest,
        role=held.name.rpartition(".")[2],
        models=(),
        runs=(),
        reason=version.reason or "",
        versions=(_registered(held),),
    )


def _registered(held: Held) -> Registered:
    return Registered(name=held.name, version=held.number, now=held.now, ever=held.ever)


def lines(found: Impact) -> Iterator[str]:
    """The same for people."""
    yield f"{found.asked}: {len(found.models)} models descend from it"
    for title, some in (("", found.models), ("judged", found.judged), ("report", found.reports)):
        for one in some:
            what = f"{title} {one.role}".strip()
            yield f"  {what} · record {one.record[:DIGITS]} · {one.how}{_said(one.versions)}"
    if found.unknown:
        yield f"unknown, and so perhaps touched: {len(found.unknown)}"
    for one in found.unknown:
        record = f"record {one.record[:DIGITS]}" if one.record else "no record"
        yield f"  {one.role or 'model'} · {record}{_said(one.versions)} · {one.reason}"


def _said(versions: tuple[Registered, ...]) -> str:
    words: list[str] = []
    for one in versions:
        past = [alias for alias in one.ever if alias not in one.now]
        now = "".join(f" @{alias}" for alias in one.now)
        before = f" (was @{', @'.join(past)})" if past else ""
        words.append(f" · {one.name} version {one.version}{now}{before}")
    return "".join(words)
