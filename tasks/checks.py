"""The checks that a verification is made of: one stored thing each, against what was recorded."""

import hashlib
import io
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks import git
from tasks.errors import ArtifactError
from tasks.lineage.digests import FileDigest, digest_of_file, digest_of_files, digests_of_folder
from tasks.lineage.record import FILE_NAME, Record
from tasks.tracking import PAYLOAD, payload_of
from tasks.versioning import Copy

Kind = Literal[
    "record",
    "file",
    "tag",
    "parent",
    "manifest",
    "prepared data",
    "raw data",
    "ledger",
    "code",
    "environment",
    "signature",
]
Status = Literal["verified", "declared", "missing", "mismatch"]

CACHE = "cache"
# MLflow leaves this beside a model's files wherever it fetches them.
MLFLOWS_NOTE = "registered_model_meta"
COMMIT = re.compile(r"[0-9a-f]{7,64}")


class Finding(BaseModel):
    """What one check found.

    Attributes:
        edge: Which part of the lineage: a model by name and version, a data version, a ledger.
        subject: What was checked.
        kind: What it is.
        status: `verified`: it is what was recorded. `declared`: it is the record's own word, which
            hashing can neither confirm nor refute. `missing`: it is not there, or cannot be read.
            `mismatch`: it is something else.
        sentence: What that means, and what to do; empty where it was verified.
        expected: What was recorded, where there is one value.
        found: What is there, where there is one value.
        path: The file, where it is one.
        size_bytes: Its size as found.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    edge: str
    subject: str
    kind: Kind
    status: Status
    sentence: str = ""
    expected: str | None = None
    found: str | None = None
    path: str | None = None
    size_bytes: int | None = None

    @classmethod
    def of(
        cls,
        edge: str,
        what: str,
        kind: Kind,
        status: Status,
        sentence: str = "",
        **more: Any,  # noqa: ANN401 - the fields above
    ) -> "Finding":
        """A finding about a thing of an edge."""
        subject = f"{edge}: {what}"
        return cls(edge=edge, subject=subject, kind=kind, status=status, sentence=sentence, **more)


def check_record(edge: str, folder: Path, expected: str | None) -> tuple[Finding, Record | None]:
    """A stored record against its digest.

    Args:
        edge: Whose record it is.
        folder: Holds it.
        expected: sha256 that it must have.

    Returns:
        What was found, and the record where it is the expected one and can be read.
    """
    path = folder / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror}): its files and parents are unknown"
        missing = Finding.of(edge, FILE_NAME, "record", "missing", what, expected=expected)
        return missing, None
    found = hashlib.sha256(content).hexdigest()
    facts = {"expected": expected, "found": found, "path": str(path), "size_bytes": len(content)}
    try:
        record, flaw = Record.parse(content), None
    except ArtifactError as error:
        record, flaw = None, str(error)
    if found != expected:
        what = "it is not the record that was registered, so it is followed no further"
        what = f"{what} ({flaw})" if flaw else what
        return Finding.of(edge, FILE_NAME, "record", "mismatch", what, **facts), None
    if record is None:
        return Finding.of(edge, FILE_NAME, "record", "missing", f"it is {flaw}", **facts), None
    return Finding.of(edge, FILE_NAME, "record", "verified", **facts), record


def check_files(edge: str, folder: Path, record: Record) -> Iterator[Finding]:
    """Every file of a stored model against its record, and what the record does not name."""
    names = list(record.files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_digest, (folder / name for name in names))
    for name, found in zip(names, digests, strict=True):
        recorded = record.files[name]
        yield compared(edge, name, "file", recorded, found, folder / name)
    present = (path for path in sorted(folder.rglob("*")) if path.is_file())
    known = {*names, FILE_NAME, MLFLOWS_NOTE}
    for path in present:
        name = path.relative_to(folder).as_posix()
        if name not in known:
            what = "the record names no such file: it was added"
            facts = {"path": str(path), "size_bytes": path.stat().st_size}
            yield Finding.of(edge, name, "file", "mismatch", what, **facts)


def check_content(edge: str, record: Record) -> Finding:
    """The content digest against the record's own list of files."""
    wrapped = f"data/{PAYLOAD}/"
    prefix = wrapped if any(name.startswith(wrapped) for name in record.files) else f"{PAYLOAD}/"
    files = {
        name.removeprefix(prefix): digest
        for name, digest in record.files.items()
        if name.startswith(prefix)
    }
    return _equal(edge, "content", "record", record.content, digest_of_files(files))


def check_payload(edge: str, folder: Path, expected: str) -> Finding:
    """The stage's own files against a content digest, where no record says which they are."""
    found = digest_of_files(digests_of_folder(payload_of(folder)))
    return _equal(edge, "content", "file", expected, found)


def _equal(edge: str, what: str, kind: Kind, expected: str, found: str) -> Finding:
    status: Status = "verified" if found == expected else "mismatch"
    sentence = "" if found == expected else "the files are not those that were recorded"
    return Finding.of(edge, what, kind, status, sentence, expected=expected, found=found)


def compared(
    edge: str,
    name: str,
    kind: Kind,
    recorded: FileDigest | str,
    found: FileDigest | None,
    path: Path,
) -> Finding:
    """A file's digest against the recorded one; where only its sha256 is recorded, against that."""
    expected = recorded if isinstance(recorded, str) else recorded.sha256
    facts: dict[str, Any] = {"expected": expected, "path": str(path)}
    if found is None:
        return Finding.of(edge, name, kind, "missing", f"{path} cannot be read", **facts)
    facts |= {"found": found.sha256, "size_bytes": found.size_bytes}
    if recorded in (found, found.sha256):
        return Finding.of(edge, name, kind, "verified", **facts)
    what = "its bytes were changed"
    if isinstance(recorded, FileDigest) and recorded.size_bytes != found.size_bytes:
        what = f"it has {found.size_bytes} bytes, recorded {recorded.size_bytes}"
    return Finding.of(edge, name, kind, "mismatch", what, **facts)


def _digest(path: Path) -> FileDigest | None:
    try:
        return digest_of_file(path)
    except OSError:
        return None


@dataclass(frozen=True)
class StoredData:
    """What became of a data version's copies.

    Attributes:
        findings: One per copy that is damaged or missing, and one for the others together.
        whole: A whole copy of every file that has one, by its name.
        complete: Whether every file has one.
    """

    findings: tuple[Finding, ...]
    whole: dict[str, Path]
    complete: bool


def check_copies(edge: str, kind: Kind, copies: list[Copy]) -> StoredData:
    """A data version's files, each against the md5 that it is named by, in every place.

    A cache may lack what a remote has. A remote that has the listing must have every file, as DVC
    pushes the listing last; without it, the version was never pushed there.
    """
    by_name: dict[str, list[Copy]] = defaultdict(list)
    for copy in copies:
        by_name[copy.name].append(copy)
    pushed = {copy.place for copy in by_name[""] if copy.is_whole and copy.place != CACHE}
    findings = [one for found in by_name.values() for one in _accuse(edge, kind, found, pushed)]
    whole = {copy.name: copy for copy in copies if copy.is_whole and copy.name}
    findings += [
        Finding.of(
            edge,
            f"in remote '{copy.place}'",
            kind,
            "declared",
            "it was never pushed there: this machine has the only copy; `dvc push`",
        )
        for copy in by_name[""]
        if copy.found is None and copy.place != CACHE and whole
    ]
    if whole:
        size = sum(copy.size_bytes or 0 for copy in whole.values())
        what = f"{len(whole)} files"
        findings.append(Finding.of(edge, what, kind, "verified", size_bytes=size))
    paths = {name: copy.path for name, copy in whole.items()}
    return StoredData(tuple(findings), paths, bool(whole) and len(whole) == len(by_name) - 1)


def _accuse(edge: str, kind: Kind, found: list[Copy], pushed: set[str]) -> Iterator[Finding]:
    """What is wrong with the copies of one file."""
    name = found[0].name or "listing"
    wrong = [copy for copy in found if copy.found is not None and not copy.is_whole]
    for copy in wrong:
        yield Finding.of(
            edge,
            f"{name} in the {_called(copy.place)}",
            kind,
            "mismatch",
            f"the copy's bytes were changed; remove it and `{_cure(copy.place)}`",
            expected=copy.expected,
            found=copy.found,
            path=str(copy.path),
            size_bytes=copy.size_bytes,
        )
    if all(copy.found is None for copy in found):
        facts = {"expected": found[0].expected, "path": str(found[0].path)}
        what = "no copy is left here; `dvc push` it where it still is"
        yield Finding.of(edge, name, kind, "missing", what, **facts)
        return
    for copy in found:
        if copy.found is None and copy.place in pushed:
            facts = {"expected": copy.expected, "path": str(copy.path)}
            where = f"{name} in the {_called(copy.place)}"
            what = "the remote has the version, but not this file; `dvc push` it"
            yield Finding.of(edge, where, kind, "missing", what, **facts)


def _called(place: str) -> str:
    return place if place == CACHE else f"remote '{place}'"


def _cure(place: str) -> str:
    return "dvc fetch" if place == CACHE else "dvc push"


def committed_code(root: Path, commit: str) -> str | None:
    """Digest of the code in a commit, as `tasks.lineage.origin.code` computes it of the files.

    Returns:
        None where there is no git, no repository or no such commit.
    """
    if not COMMIT.fullmatch(commit):
        return None
    prefix = git.answer(root, "rev-parse", "--show-prefix")
    if prefix is None:
        return None
    packed = git.answer(root, "archive", "--format=tar", f"{commit}:{prefix.decode().strip()}tasks")
    return None if packed is None else digest_of_files(dict(_modules(packed)))


def _modules(packed: bytes) -> Iterator[tuple[str, FileDigest]]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(".py") else None
            if stream is not None:
                sha256 = hashlib.sha256(stream.read()).hexdigest()
                yield member.name, FileDigest(sha256=sha256, size_bytes=member.size)
