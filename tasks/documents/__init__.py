"""Documents about a model, for people and for other programs: one standard, one file.

All are made from the same `Chain`: the records of a version and of all that it descends from, whose
files are hashed again first. Each module here has a `FILE_NAME` and a `render(chain)` that gives
the file's bytes; equal chains give equal bytes.
"""

import importlib
import json
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet
from pydantic import ValidationError

from tasks.errors import ArtifactError, DataError, ParamsError, SetupError
from tasks.evaluate import Evaluation, Measured
from tasks.gates import Verdict
from tasks.judge import JUDGEMENT_FILE, Judgement, recheck
from tasks.keep import SCHEMA_FILE
from tasks.ledger import Entry, Ledger
from tasks.lineage.digests import digest_of_file
from tasks.lineage.record import Record
from tasks.membership import Attack
from tasks.networks import SPEC_FILE
from tasks.refs import DataRef, VersionRef
from tasks.sections import hint
from tasks.succession import CHAMPION
from tasks.tracking import EVALUATION_TAG, Made, Tracking, payload_of
from tasks.versioning import PREPARED, Versions

MANIFEST = "manifest.parquet"
CONTROL = "control"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Link:
    """One stage of a chain: a model or a report, its record and the run that made it.

    Attributes:
        name: What it is registered as, or `<project>.<role>` where it is not.
        version: Number of that version, or None.
        digest: sha256 of its record.
        record: The record; every file that it names was hashed again.
        made: The run.
        model_id: MLflow's logged model, or None of a report.
    """

    name: str
    version: int | None
    digest: str
    record: Record
    made: Made
    model_id: str | None


@dataclass(frozen=True)
class Manifest:
    """What the row manifest of a data version says; its sha256 is the one recorded.

    Attributes:
        columns: Its columns with their Arrow types.
        rows: Distinct rows by split.
        shown: Rows by split whose label training may see.
        classes: Every label there is.
    """

    columns: dict[str, str]
    rows: dict[str, int]
    shown: dict[str, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Promotion:
    """One row of the ledger about the version, with what the gates said.

    Attributes:
        entry: The row.
        verdicts: One per gate, judged again; none of a rollback.
        doubt: Why the kept evidence does not bear the row out, or None.
    """

    entry: Entry
    verdicts: tuple[Verdict, ...]
    doubt: str | None


@dataclass(frozen=True)
class Chain:
    """A registered version, and everything that it was made from.

    Attributes:
        version: The version.
        links: Every model of the chain once, parents first, the version itself last.
        report: The evaluation it was registered with, or None.
        evaluation: That report's figures, or None.
        manifests: By the digest of the data's content; a reason where one is not at hand.
        promotions: The ledger's rows that name the version.
        network: Spec of the version's network, or None where it has none.
        schema: How the version's rows are encoded, or None where it does not say.
        requirements: Names of the packages that serving the version takes.
    """

    version: VersionRef
    links: tuple[Link, ...]
    report: Link | None
    evaluation: Evaluation | None
    manifests: dict[str, Manifest | str]
    promotions: tuple[Promotion, ...]
    network: dict[str, Any] | None
    schema: dict[str, Any] | None
    requirements: tuple[str, ...]

    @property
    def project(self) -> str:
        """Name under which the models are registered."""
        return self.version.name.rpartition(".")[0]

    @property
    def role(self) -> str:
        """What the version is in the chain, as the evaluation calls it."""
        return self.version.name.rpartition(".")[2]

    @property
    def subject(self) -> Link:
        """The version itself."""
        return self.links[-1]

    @cached_property
    def by_digest(self) -> dict[str, Link]:
        """The models by the sha256 of their records."""
        return {link.digest: link for link in self.links}

    @property
    def data(self) -> tuple[DataRef, ...]:
        """Every data version that the chain was made from."""
        return tuple({link.record.data.content: link.record.data for link in self.links}.values())

    @property
    def measured(self) -> Measured | None:
        """The version's own figures on the test rows."""
        return self._measured(self.role)

    @property
    def control(self) -> Measured | None:
        """The figures of the control: the same network, from labels alone."""
        return self._measured(CONTROL)

    @property
    def attacks(self) -> dict[str, Attack]:
        """Membership-inference attacks on the version, by the rows that were attacked."""
        found = self.measured.membership if self.measured else None
        if found is None:
            return {}
        attacks = {"labelled": found.labelled, "pool": found.pool}
        return {name: attack for name, attack in attacks.items() if attack is not None}

    def _measured(self, role: str) -> Measured | None:
        models = self.evaluation.models if self.evaluation else ()
        return next((found for found in models if found.role == role), None)


def gather(
    tracking: Tracking, versions: Versions, version: VersionRef, ledger: Ledger | None = None
) -> Chain:
    """Walks from a version to its first ancestors and hashes every model on the way again.

    Args:
        tracking: Where models and records are.
        versions: Where the data's row manifests are.
        version: Where to begin.
        ledger: Where promotions are, if they are to be told.

    Raises:
        ArtifactError: A model, record or report of the chain is missing or is not as recorded.
    """
    folder = tracking.fetch(version.model).folder
    stored = payload_of(folder)
    links = tuple(_walk(tracking, version))
    report = _report(tracking, version)
    data = {link.record.data.content: link.record.data for link in links}
    return Chain(
        version=version,
        links=links,
        report=report,
        evaluation=_evaluation(tracking, report),
        manifests={content: _manifest(versions, ref) for content, ref in data.items()},
        promotions=tuple(_promotions(tracking, ledger, version)) if ledger else (),
        network=_plain(stored / SPEC_FILE),
        schema=_plain(stored / SCHEMA_FILE),
        requirements=_names(folder / "requirements.txt"),
    )


def _walk(tracking: Tracking, version: VersionRef) -> Iterator[Link]:
    """Depth first, so that a model comes after all that it was made from."""
    project = version.name.rpartition(".")[0]
    known: set[str] = set()

    def visit(model_id: str | None, digest: str) -> Iterator[Link]:
        known.add(digest)
        record = tracking.record_of(model_id, digest)
        for parent in record.parents:
            if parent.record not in known:
                yield from visit(parent.model_id, parent.record)
        yield _link(tracking, project, str(model_id), digest, record)

    *ancestors, subject = visit(version.model.model_id, version.model.record)
    yield from ancestors
    yield Link(
        name=version.name,
        version=version.version,
        digest=subject.digest,
        record=subject.record,
        made=subject.made,
        model_id=subject.model_id,
    )


def _link(tracking: Tracking, project: str, model_id: str, digest: str, record: Record) -> Link:
    registered = next(iter(tracking.registered_as(digest)), None)
    return Link(
        name=registered.name if registered else f"{project}.{record.role}",
        version=int(registered.version) if registered else None,
        digest=digest,
        record=record,
        made=tracking.maker(model_id),
        model_id=model_id,
    )


def _report(tracking: Tracking, version: VersionRef) -> Link | None:
    digest = tracking.tags(version).get(EVALUATION_TAG)
    if digest is None:
        return None
    project = version.name.rpartition(".")[0]
    ref = tracking.report_of(project, digest)
    record = Record.read(tracking.fetch(ref).folder)
    made = tracking.made(ref.run_id)
    return Link(f"{project}.{record.role}", None, digest, record, made, None)


def _evaluation(tracking: Tracking, report: Link | None) -> Evaluation | None:
    if report is None:
        return None
    folder = payload_of(tracking.report(report.made.run_id))
    try:
        return Evaluation.read(folder)
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{folder} holds no evaluation that can be read: {reason}") from None


def _manifest(versions: Versions, data: DataRef) -> Manifest | str:
    """The manifest of a data version, of today's or from DVC; else why it is not at hand."""
    path = versions.root / PREPARED / MANIFEST
    try:
        if not path.is_file() or digest_of_file(path).sha256 != data.manifest:
            path = versions.cache.stored(versions.cache.listing(data.prepared)[MANIFEST])
    except (DataError, SetupError) as error:
        return str(error)
    except KeyError:
        return f"data version {data.prepared} lists no {MANIFEST}"
    found = digest_of_file(path).sha256
    if found != data.manifest:
        return f"{path} has sha256 {found}, recorded {data.manifest}"
    table = pyarrow.parquet.read_table(path)
    splits, shown = table["split"].to_pylist(), table["shown"].to_pylist()
    labels = set(table["label"].to_pylist()) - {None}
    return Manifest(
        columns={field.name: str(field.type) for field in table.schema},
        rows=dict(sorted(Counter(splits).items())),
        shown=dict(
            sorted(
                Counter(s for s, is_shown in zip(splits, shown, strict=True) if is_shown).items()
            )
        ),
        classes=tuple(sorted(labels)),
    )


def _promotions(tracking: Tracking, ledger: Ledger, version: VersionRef) -> Iterator[Promotion]:
    for entry in ledger.entries(version.name, CHAMPION):
        if entry.version == version.version:
            yield _promotion(tracking, entry)


def _promotion(tracking: Tracking, entry: Entry) -> Promotion:
    if entry.evidence is None or entry.evidence_run is None:
        return Promotion(entry, (), None)
    try:
        folder = tracking.report(entry.evidence_run)
    except ArtifactError as error:
        return Promotion(entry, (), str(error))
    doubts = list(recheck(folder, entry.evidence))
    if doubts:
        return Promotion(entry, (), doubts[0])
    kept = Judgement.model_validate_json((folder / JUDGEMENT_FILE).read_bytes())
    return Promotion(entry, kept.verdicts, None)


def _plain(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _names(path: Path) -> tuple[str, ...]:
    """Packages that a requirements file of MLflow's names, in the form of package indexes."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {NAME.match(line) for line in lines}
    return tuple(sorted({re.sub(r"[-_.]+", "-", name[0]).lower() for name in found if name}))


def formats() -> dict[str, str]:
    """Name of every format, with the name of its file."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return {name: _module(name).FILE_NAME for name in names}


def render(name: str, chain: Chain) -> bytes:
    """A document of a format.

    Raises:
        ParamsError: There is no such format.
    """
    known = list(formats())
    if name not in known:
        raise ParamsError(f"unknown format '{name}'{hint(name, known)}")
    return _module(name).render(chain)


def write(name: str, chain: Chain, folder: Path) -> Path:
    """Writes a document into a folder, under the format's own file name.

    Raises:
        ParamsError: There is no such format.
        SetupError: The folder cannot be written.
    """
    content = render(name, chain)
    path = folder / formats()[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A parameter tree as pairs of a dotted name and a value in JSON."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
