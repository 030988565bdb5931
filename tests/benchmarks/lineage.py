"""Seconds of `trace` and `impact` on 10,000 models, and records per minute of an index rebuild.

    python -m tests.benchmarks.lineage --out tests/benchmarks/results/lineage.json

- trace, impact of a model, impact of a data version: made records of 1,000 chains of 10 models and
  an evaluation, each chain on a data version of its own; all are registered. Asking MLflow what is
  new comes before each question and is not in it: it is measured by itself.
- impact of a row: 1,000 data versions of 60,000 random rows in their compact form, as the first
  question leaves it; half of the questions are about one row that all versions hold, so that all
  models are listed.
- rebuild: real entries in an MLflow store in SQLite, each with its run, parameters, record and
  version, read back into an empty index.
- manifest: the first question about rows also reads each manifest (Parquet) once.

Of many questions, the 95th percentile has to stay under its mark; of few, the slowest.
"""

import argparse
import hashlib
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.parquet

from tasks.catalogue import OVERLAP_MS, SEEN, Catalogue, Progress
from tasks.impact import impact
from tasks.ledger import Ledger
from tasks.lineage import origin
from tasks.lineage.graph import Copy, Holding, Version
from tasks.lineage.index import Index
from tasks.lineage.record import Code, Parent, Record
from tasks.lineage.row_sets import SPLITS, RowSets, packed, read_manifest
from tasks.refs import DataRef, ModelRef, VersionRef
from tasks.settings import Settings
from tasks.trace import trace, tree
from tasks.tracking import Tracking
from tasks.versioning import Versions
from tests.benchmarks.throughput import host

PROJECT = "digits"
DATA_VERSIONS, ROWS = 1_000, 60_000
QUESTIONS, ROW_QUESTIONS, ENTRIES = 200, 6, 300
CHAINS_PER_COMMIT = 10
QUESTION_SECONDS, ROW_SECONDS, RECORDS_PER_MINUTE = 0.1, 2.0, 2_000.0
SHARED_ROW = "5" * 64

# Roles of a chain, each with those of its parents.
CHAIN = {
    "encoder": (),
    "teacher": ("encoder",),
    "second_teacher": ("encoder",),
    "labels": ("encoder", "teacher", "second_teacher"),
    "student": ("labels",),
    "control": (),
    "supervised": ("encoder",),
    "pruned": ("student", "labels"),
    "edge": ("pruned",),
    "edge_fp32": ("pruned",),
}
JUDGED = ("control", "edge")


@dataclass(frozen=True)
class Finding:
    """What one measurement found.

    Attributes:
        what: What was measured.
        statistic: Which figure of it the mark is held against.
        value: That figure.
        unit: Its unit.
        mark: The bound.
        is_rate: The mark is a lower bound, not an upper one.
    """

    what: str
    statistic: str
    value: float
    unit: str
    mark: float
    is_rate: bool = False

    @property
    def met(self) -> bool:
        """Whether the mark is met."""
        return self.value > self.mark if self.is_rate else self.value < self.mark

    def plain(self) -> dict[str, Any]:
        """As it enters the results file."""
        return {
            "what": self.what,
            self.statistic: round(self.value, 4),
            "unit": self.unit,
            "mark": self.mark,
            "met": self.met,
        }


def sha256(*words: object) -> str:
    """A digest, always the same for the same words."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


def data_of(number: int) -> DataRef:
    """A data version."""
    raw, prepared = (f"{sha256(kind, number)[:32]}.dir" for kind in ("raw", "prepared"))
    manifest, content = (sha256(kind, number) for kind in ("manifest", "content"))
    return DataRef(raw=raw, prepared=prepared, manifest=manifest, content=content)


def record_of(number: int, role: str, parents: tuple[tuple[str, Record], ...]) -> Record:
    """A made record with the fields and the packages of a real one."""
    return Record(
        stage=role,
        role=role,
        key=sha256("key", number, role),
        data=data_of(number),
        code=Code(
            digest=sha256("code", number // CHAINS_PER_COMMIT),
            commit=sha256("commit", number // CHAINS_PER_COMMIT)[:40],
            clean=True,
        ),
        parameters={"network": {"name": "resnet", "widths": [16, 32, 64]}, "steps": 1000 + number},
        environment={"machine": "x86_64", "threads": 2, "packages": origin.packages()},
        parents=tuple(
            Parent(role=name, record=digest_of(parent), model_id=model_of(parent))
            for name, parent in parents
        ),
        files={},
        content=sha256("files", number, role),
        metrics={"validation_accuracy": 0.9},
    )


DIGESTS: dict[str, str] = {}


def digest_of(record: Record) -> str:
    """A record's digest, worked out once: making the records is not what is measured."""
    if record.key not in DIGESTS:
        DIGESTS[record.key] = record.digest
    return DIGESTS[record.key]


def model_of(record: Record) -> str:
    """Id of the MLflow model that would hold it."""
    return f"m-{record.key[:32]}"


def chain(number: int) -> Iterator[Record]:
    """Records of a chain and of its evaluation."""
    made: dict[str, Record] = {}
    for role, parents in CHAIN.items():
        made[role] = record_of(number, role, tuple((name, made[name]) for name in parents))
        yield made[role]
    yield record_of(number, "evaluation", tuple((name, made[name]) for name in JUDGED))


def ref_of(record: Record) -> ModelRef:
    """How the registry would refer to it."""
    return ModelRef(
        stage=record.stage,
        role=record.role,
        key=record.key,
        run_id=record.key[32:],
        model_id=None if record.role == "evaluation" else model_of(record),
        record=digest_of(record),
        content=record.content,
    )


def copy_of(ref: ModelRef, record: Record) -> Copy:
    """As the catalogue would have read it."""
    return Copy(ref.stage, ref.role, ref.run_id, ref.model_id, ref.record, record)


class Still(Catalogue):
    """A catalogue whose registry never has anything new."""

    def refresh(self, progress: Progress | None = None) -> int:
        """Finds nothing."""
        return 0


def made(folder: Path, chains: int = DATA_VERSIONS) -> tuple[Catalogue, list[VersionRef]]:
    """A filled index, and the versions in it."""
    index = Index(folder / "index.db")
    versions: list[VersionRef] = []
    for number in range(chains):
        pairs = [(ref_of(record), record) for record in chain(number)]
        index.add(copy_of(*pair) for pair in pairs)
        versions += [
            VersionRef(name=f"{PROJECT}.{ref.role}", version=number + 1, model=ref)
            for ref, _ in pairs
            if ref.model_id
        ]
    name = f"{PROJECT}.edge"
    holdings = [Holding(name, number + 1, "champion", now=False) for number in range(chains)]
    index.register(
        [Version(one.name, one.version, one.model.record) for one in versions],
        [*holdings, Holding(name, chains, "champion", now=True)],
    )
    catalogue = Still(
        index,
        RowSets(folder / "rows"),
        cast("Tracking", None),
        cast("Ledger", None),
        Versions(folder, folder),
    )
    return catalogue, versions


def fill_rows(catalogue: Catalogue, chains: int, rows: int = ROWS) -> list[str]:
    """Random rows for every data version, and one that all hold; returns one of each version."""
    known: list[str] = []
    for number in range(chains):
        source = np.random.default_rng(number)
        drawn = source.bytes(32 * (rows - 1))
        digests = np.frombuffer(drawn + packed([SHARED_ROW]).tobytes(), "S32")
        splits = source.choice(len(SPLITS), rows, p=[0.75, 0.05, 0.2]).astype(np.uint8)
        splits[0] = splits[-1] = 0
        catalogue.row_sets.keep(data_of(number).manifest, digests, splits)
        known.append(drawn[:32].hex())
    return known


def timed(work: Callable[[Any], object], inputs: list[Any]) -> list[float]:
    """Seconds for each input, after one that warms up."""
    work(inputs[0])
    seconds: list[float] = []
    for one in inputs:
        start = time.perf_counter()
        work(one)
        seconds.append(time.perf_counter() - start)
    return seconds


def asking(folder: Path, chains: int = DATA_VERSIONS) -> list[Finding]:
    """Trace, and impact of a model, a data version and a commit."""
    catalogue, versions = made(folder, chains)
    draw = random.Random(0)
    some = [draw.choice(versions) for _ in range(QUESTIONS)]
    data = [data_of(draw.randrange(chains)).prepared for _ in range(QUESTIONS)]
    commits = [
        sha256("commit", draw.randrange(chains) // CHAINS_PER_COMMIT)[:40] for _ in range(QUESTIONS)
    ]
    questions: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "trace, with its tree": (lambda one: tree(trace(catalogue, one)), some),
        "impact of a model": (lambda one: impact(catalogue, model=one), some),
        "impact of a data version": (lambda one: impact(catalogue, data=one), data),
        "impact of a commit": (lambda one: impact(catalogue, code=one), commits),
    }
    found = [
        Finding(
            f"{what}, of {len(versions):,} models",
            "p95",
            float(np.quantile(timed(ask, inputs), 0.95)),
            "s",
            QUESTION_SECONDS,
        )
        for what, (ask, inputs) in questions.items()
    ]
    catalogue.close()
    return found


def rows_asked(folder: Path, chains: int = DATA_VERSIONS, rows: int = ROWS) -> list[Finding]:
    """Impact of a row."""
    catalogue, versions = made(folder, chains)
    known = fill_rows(catalogue, chains, rows)
    scale = f"{len(versions):,} models over {chains:,} data versions of {rows:,} rows"
    questions = {
        f"impact of a row that one version holds, {scale}": known[:: max(1, chains // 6)],
        f"impact of a row that all versions hold, {scale}": [SHARED_ROW] * ROW_QUESTIONS,
    }
    found = [
        Finding(
            what,
            "slowest",
            max(timed(lambda row: impact(catalogue, row=row), asked[:ROW_QUESTIONS])),
            "s",
            ROW_SECONDS,
        )
        for what, asked in questions.items()
    ]
    catalogue.close()
    return found


def store(tracking: Tracking, record: Record, folder: Path) -> ModelRef:
    """A record as a real entry: run, parameters, metrics, model, version."""
    folder.mkdir()
    record.write(folder)
    run_id = tracking.start(PROJECT, record.stage, record.key, record.data)
    parameters = {f"section.parameter_{at}": at for at in range(40)}
    tracking.log_params(run_id, parameters)
    for step in range(5):
        tracking.log_metrics(run_id, {"loss": 1.0 / (step + 1)}, step=step)
    model_id = tracking.new_model(PROJECT, run_id, record.role, record.key)
    tracking.store_model(model_id, folder)
    update = {"run_id": run_id, "model_id": model_id}
    ref = ref_of(record).model_copy(update=update)
    tracking.log_metrics(run_id, record.metrics, model=ref, data=record.data)
    tracking.finish(run_id, ref)
    tracking.register(f"{PROJECT}.{record.role}", ref, {})
    return ref


def stored(folder: Path, entries: int = ENTRIES) -> Catalogue:
    """A project whose MLflow store holds so many results."""
    (folder / "params.yaml").touch()
    settings = Settings(project=folder)
    tracking = Tracking(settings.tracking_uri, settings.home)
    refs: dict[str, Record] = {}
    for at in range(entries):
        role = list(CHAIN)[at % len(CHAIN)]
        parents = tuple((name, refs[name]) for name in CHAIN[role])
        refs[role] = record_of(at // len(CHAIN), role, parents)
        store(tracking, refs[role], folder / f"entry-{at}")
    return Catalogue.of(settings)


def rebuilding(folder: Path, entries: int = ENTRIES) -> list[Finding]:
    """Rebuild from MLflow, and a refresh that finds nothing."""
    catalogue = stored(folder, entries)
    start = time.perf_counter()
    count = catalogue.rebuild()
    rate = count / (time.perf_counter() - start) * 60
    # As if an hour had gone by: what ended within the last is listed again.
    seen = int(catalogue.index.noted(SEEN) or 0)
    catalogue.index.note(SEEN, str(seen + OVERLAP_MS + 1))
    again = timed(lambda _: catalogue.refresh(), [None] * 10)
    catalogue.close()
    return [
        Finding(
            f"index rebuild from {count} entries in MLflow (SQLite)",
            "records_per_minute",
            rate,
            "1/min",
            RECORDS_PER_MINUTE,
            is_rate=True,
        ),
        Finding(
            f"refresh with nothing new in the last hour, of {count} registered versions",
            "p95",
            float(np.quantile(again, 0.95)),
            "s",
            1.0,
        ),
    ]


def manifest_read(folder: Path, rows: int = ROWS) -> list[Finding]:
    """What the first question about rows costs for each manifest."""
    digests = [sha256(at) for at in range(rows)]
    table = pyarrow.table({"row": digests, "split": ["train"] * rows})
    pyarrow.parquet.write_table(table, folder / "manifest.parquet", compression="zstd")
    sets = RowSets(folder / "rows")
    seconds = timed(
        lambda _: sets.keep("m", *read_manifest(folder / "manifest.parquet")), [None] * 5
    )
    return [
        Finding(f"a manifest of {rows:,} rows read and kept", "slowest", max(seconds), "s", 1.0)
    ]


MEASUREMENTS = (asking, rows_asked, rebuilding, manifest_read)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The results file."""
    return {
        "command": f"python -m tests.benchmarks.lineage {shlex.join(sys.argv[1:])}".strip(),
        "host": host(),
        "data": {
            "models": DATA_VERSIONS * len(CHAIN),
            "data_versions": DATA_VERSIONS,
            "rows": ROWS,
            "mlflow_entries": ENTRIES,
        },
        "findings": [finding.plain() for finding in findings],
    }


def main() -> None:
    """Measures, prints the figures and writes the results."""
    parser = argparse.ArgumentParser(description="Measures trace, impact and the index rebuild.")
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    findings: list[Finding] = []
    for measurement in MEASUREMENTS:
        with tempfile.TemporaryDirectory() as scratch:
            found = measurement(Path(scratch))
        findings += found
        for one in found:
            print(json.dumps(one.plain()), flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report(findings), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
