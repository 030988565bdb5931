"""Is a model still what was recorded? Hashes again all that it follows from, and compares.

Each check accuses what it looked at and nothing that only depends on it: a parent's changed byte is
the parent's, and a record that is not the recorded one is followed no further. What hashing cannot
show (that training ran as the record says) is called declared.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.checks import (
    MLFLOWS_NOTE,
    Finding,
    Kind,
    Status,
    StoredData,
    check_content,
    check_copies,
    check_files,
    check_payload,
    check_record,
    committed_code,
    compared,
)
from tasks.claims import Claim, Node, check_tags, of_model, of_run, of_version
from tasks.compute import Compute, ComputeParams
from tasks.errors import ArtifactError, DataError, LedgerError, RegistryError, SetupError
from tasks.ledger import Entry
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_file, digest_of_files
from tasks.lineage.record import Code, Record
from tasks.refs import DataRef, VersionRef
from tasks.signing import SIGNATURE_FILE, check_signature
from tasks.succession import Succession
from tasks.tracking import Tracking
from tasks.versioning import Versions

WORST: tuple[Status, ...] = ("verified", "declared", "missing", "mismatch")
MANIFEST = "manifest.parquet"
HOST = ("machine", "instruction_set", "device")
DIGITS = 12


class Report(BaseModel):
    """What became of one version's lineage.

    Attributes:
        name: The registered model.
        version: Its version.
        findings: One per check, the version's own first, then its ancestors'.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    version: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is missing and nothing differs."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is missing or differs."""
        return tuple(one for one in self.findings if one.status in {"missing", "mismatch"})

    @property
    def edges(self) -> dict[str, Status]:
        """The worst that was found of each part of the lineage, in order."""
        found: dict[str, Status] = {}
        for one in self.findings:
            known = WORST.index(found.get(one.edge, WORST[0]))
            found[one.edge] = WORST[max(known, WORST.index(one.status))]
        return found


def verify(
    tracking: Tracking,
    versions: Versions,
    succession: Succession,
    version: VersionRef,
    *,
    key: Path | None = None,
) -> Report:
    """Hashes a version and everything that it descends from again.

    Args:
        tracking: Where the models are.
        versions: Where the data is.
        succession: The ledger, and the alias that follows it.
        version: What to verify.
        key: Public key that the version must have been signed with; None asks for no signature.

    Raises:
        SetupError: The key cannot be used, or a service does not answer.
    """
    return _Audit(tracking, versions, succession, key).report(version.name, version.version)


def verify_all(
    tracking: Tracking, versions: Versions, succession: Succession, *, key: Path | None = None
) -> list[Report]:
    """Verifies every version that holds an alias, and every one that the ledger names champion.

    What several of them descend from is hashed once.

    Raises:
        SetupError: The key cannot be used, or a service does not answer.
    """
    audit = _Audit(tracking, versions, succession, key)
    held = {(name, number) for (name, _), number in tracking.aliases().items()}
    return [audit.report(*one) for one in sorted(held | audit.champions())]


class _Audit:
    """One verification, or several that share what they hash."""

    def __init__(
        self, tracking: Tracking, versions: Versions, succession: Succession, key: Path | None
    ) -> None:
        self.tracking, self.versions, self.succession = tracking, versions, succession
        self.key = key
        self.models: dict[tuple[str, str | None], tuple[list[Finding], Record | None]] = {}
        self.data: dict[DataRef, list[Finding]] = {}
        self.ledgers: dict[str, list[Finding]] = {}
        self.commits: dict[str, str | None] = {}

    @cached_property
    def host(self) -> dict[str, Any]:
        """What this machine computes on."""
        return Compute.resolve(ComputeParams()).describe()

    def champions(self) -> set[tuple[str, int]]:
        """The version that the ledger's last row names, of each model whose rows can be read."""
        found: set[tuple[str, int]] = set()
        for name in {one.model for one in self._entries()} | set(self.tracking.registered()):
            try:
                head = self.succession.head(name)
            except LedgerError:
                continue  # reported with each version of that name
            if head is not None:
                found.add((name, head.version))
        return found

    def _entries(self) -> list[Entry]:
        try:
            return self.succession.ledger.entries()
        except LedgerError:
            return []  # reported with each version of the name whose row it is

    def report(self, name: str, number: int) -> Report:
        findings = [*self._lineage(name, number), *self._ledger(name)]
        return Report(name=name, version=number, findings=tuple(findings))

    def _lineage(self, name: str, number: int) -> Iterator[Finding]:
        edge = f"{name} version {number}"
        try:
            noted = self.tracking.noted(name, number)
        except RegistryError as error:
            yield Finding.of(edge, "version", "record", "missing", str(error))
            return
        top = Node(edge, "", None, tuple(of_version(noted)))
        top = top.hearing(self._of_run(top.agreed("run_id")))
        model_id = top.agreed("model_id")
        if model_id is None:
            what = "no tag names its model: it was not registered by Stillmark"
            yield Finding.of(edge, "version", "record", "missing", what)
            return
        top = replace(top, model_id=model_id).hearing(self._of_model(model_id))
        yield from self._walk(top)
        yield from self._promoted(name, number, top)
        if self.key is not None:
            yield self._signature(top, self.key)

    def _walk(self, top: Node) -> Iterator[Finding]:
        """The model, its ancestors, and the data that they were made from."""
        waiting, met, data = [top], set[tuple[str, str]](), dict[DataRef, None]()
        while waiting:
            node = waiting.pop(0)
            findings, record = self._model(node)
            yield from findings
            if record is None:
                continue
            data[record.data] = None
            for parent in record.parents:
                label = f"{parent.role} of {node.edge}"
                if parent.model_id is None:
                    what = f"record {parent.record} names no model"
                    yield Finding.of(label, "parent", "parent", "missing", what)
                elif (parent.model_id, parent.record) not in met:
                    met.add((parent.model_id, parent.record))
                    waiting.append(self._parent(parent.model_id, parent.record, parent.role))
        for version in data:
            yield from self._data(version)

    def _parent(self, model_id: str, record: str, role: str) -> Node:
        """An ancestor, called by the name under which it is registered, where it is."""
        node = Node(f"{role} {model_id}", model_id, record, tuple(self._of_model(model_id)))
        run_id = node.agreed("run_id")
        node = node.hearing(self._of_run(run_id))
        found = self.tracking.versions_of(run_id) if run_id else []
        if not found:
            return node
        edge = f"{found[0].name} version {found[0].version}"
        claims = (claim for one in found for claim in of_version(one))
        return replace(node, edge=edge).hearing(claims)

    def _of_model(self, model_id: str) -> Iterator[Claim]:
        """What the logged model says; nothing where it is gone, which `_model` reports."""
        try:
            about = self.tracking.about_model(model_id)
        except ArtifactError:
            return
        yield from of_model(about)

    def _of_run(self, run_id: str | None) -> Iterator[Claim]:
        """What the run that made a model says."""
        try:
            tags = self.tracking.run_tags(run_id or "")
        except ArtifactError:
            yield Claim("run", f"run {run_id}", None)
            return
        yield from of_run(tags)

    def _model(self, node: Node) -> tuple[list[Finding], Record | None]:
        """One stored model; its record where that is the recorded one."""
        at = node.model_id, node.agreed("record")
        if at not in self.models:
            self.models[at] = self._check_model(node)
        return self.models[at]

    def _check_model(self, node: Node) -> tuple[list[Finding], Record | None]:
        kind: Kind = "record" if node.trusted is None else "parent"
        try:
            folder = self.tracking.stored_at(node.model_id)
        except ArtifactError as error:
            return [Finding.of(node.edge, "stored model", kind, "missing", str(error))], None
        found, record = check_record(node.edge, folder, node.agreed("record"))
        content = node.agreed("content")
        findings = [found, *check_tags(node, record)]
        if record is not None:
            findings += check_files(node.edge, folder, record)
            findings.append(check_content(node.edge, record))
            findings += [self._code(node.edge, record.code), self._environment(node.edge, record)]
        elif content is not None:
            findings.append(check_payload(node.edge, folder, content))
        return findings, record

    def _code(self, edge: str, code: Code) -> Finding:
        """The digest of the code, recomputed from the commit that the record names."""
        subject = f"code {code.commit[:DIGITS]}" if code.commit else "code"
        if code.commit is None:
            what = "it ran outside git: only the digest of the code is recorded"
            return Finding.of(edge, subject, "code", "declared", what, found=code.digest)
        if code.commit not in self.commits:
            self.commits[code.commit] = self._committed(code.commit)
        found = self.commits[code.commit]
        compared = {"expected": code.digest, "found": found}
        if found == code.digest:
            return Finding.of(edge, subject, "code", "verified", **compared)
        if not code.clean:
            what = "the working tree was not as committed: only the digest of the code is recorded"
            return Finding.of(edge, subject, "code", "declared", what, **compared)
        if found is None:
            what = "git does not have the commit that the record names; fetch it (`git fetch`)"
            return Finding.of(edge, subject, "code", "missing", what, **compared)
        what = "the commit holds other code than the record says"
        return Finding.of(edge, subject, "code", "mismatch", what, **compared)

    def _committed(self, commit: str) -> str | None:
        """Digest of the code in a commit, of the project or of where Stillmark is installed."""
        roots = (self.versions.root, origin.CODE.parent)
        found = (committed_code(root, commit) for root in roots)
        return next((digest for digest in found if digest is not None), None)

    def _environment(self, edge: str, record: Record) -> Finding:
        recorded = record.environment
        other = [
            f"{name.replace('_', ' ')} {recorded.get(name)} (here {self.host[name]})"
            for name in HOST
            if recorded.get(name) != self.host[name]
        ]
        edge = f"training of {edge}"
        what = "what ran is the record's own word; `stillmark replay` makes it again"
        if other:
            what = f"it was trained on {', '.join(other)}: only a host like that makes equal bits"
        return Finding.of(edge, "environment", "environment", "declared", what)

    def _promoted(self, name: str, number: int, top: Node) -> Iterator[Finding]:
        """Compares the ledger's rows of a version with what the registry says of it."""
        for entry in self._entries():
            if (entry.model, entry.version) != (name, number) or not entry.is_whole:
                continue
            for field, said in (("record", entry.record), ("content", entry.content)):
                agreed = top.agreed(field)
                if agreed != said:
                    yield Finding.of(
                        top.edge,
                        f"{field} in ledger row {entry.sequence}",
                        "ledger",
                        "mismatch",
                        "the registry was changed since that row was written",
                        expected=said,
                        found=agreed,
                    )

    def _ledger(self, name: str) -> list[Finding]:
        if name not in self.ledgers:
            try:
                sentences = self.succession.check(name)
            except LedgerError as error:
                rows = self.succession.ledger.check(name)
                sentences = [one.sentence for one in rows] or [str(error)]
            edge, subject = f"ledger of {name}", "rows and alias"
            self.ledgers[name] = [
                Finding.of(edge, subject, "ledger", "mismatch", one) for one in sentences
            ] or [Finding.of(edge, subject, "ledger", "verified")]
        return self.ledgers[name]

    def _signature(self, top: Node, key: Path) -> Finding:
        run_id = top.agreed("run_id") or ""
        try:
            signature = self.tracking.attached(run_id, SIGNATURE_FILE)
            folder = self.tracking.stored_at(top.model_id)
        except ArtifactError as error:
            return Finding.of(top.edge, "signature", "signature", "missing", str(error))
        if signature is None:
            what = f"run {run_id} holds no {SIGNATURE_FILE}: the version was not signed"
            return Finding.of(top.edge, "signature", "signature", "missing", what)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                shown = Path(scratch) / "model"
                ignored = shutil.ignore_patterns(MLFLOWS_NOTE)
                shutil.copytree(folder, shown, ignore=ignored)
                check_signature(shown, signature, key)
        except ArtifactError as error:
            return Finding.of(top.edge, "signature", "signature", "mismatch", str(error))
        return Finding.of(top.edge, "signature", "signature", "verified", path=str(signature))

    def _data(self, data: DataRef) -> list[Finding]:
        if data not in self.data:
            raw = self._stored("raw data", data.raw)
            self.data[data] = [*self._prepared(data), *raw.findings]
        return self.data[data]

    def _prepared(self, data: DataRef) -> Iterator[Finding]:
        """The prepared rows: DVC's md5 of each file, then sha256 over the whole copies."""
        stored = self._stored("prepared data", data.prepared)
        yield from stored.findings
        edge = f"prepared data {data.prepared}"
        if MANIFEST in stored.whole:
            path = stored.whole[MANIFEST]
            found = digest_of_file(path)
            yield compared(edge, MANIFEST, "manifest", data.manifest, found, path)
        if stored.complete:
            digests = {name: digest_of_file(path) for name, path in stored.whole.items()}
            found = digest_of_files(digests)
            status: Status = "verified" if found == data.content else "mismatch"
            what = "" if found == data.content else "this is not the data version that was recorded"
            facts = {"expected": data.content, "found": found}
            yield Finding.of(edge, "content", "prepared data", status, what, **facts)

    def _stored(self, kind: Kind, directory: str) -> StoredData:
        """A data version's copies in DVC's cache and default remote."""
        edge = f"{kind} {directory}"
        try:
            stored = check_copies(edge, kind, self.versions.cache.copies(directory))
            places = self.versions.cache.places
        except (DataError, SetupError) as error:
            nothing = Finding.of(edge, "files", kind, "missing", str(error))
            return StoredData((nothing,), {}, complete=False)
        if places.folder is None or places.folder.is_dir():
            return stored
        what = f"{places.folder} is no folder; mount it, or correct it: `dvc remote modify`"
        away = Finding.of(edge, f"remote '{places.remote}'", kind, "missing", what)
        return replace(stored, findings=(*stored.findings, away))
