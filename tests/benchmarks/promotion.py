"""Seconds of a promotion decision beside inference, and of `history` on a long ledger.

    python -m tests.benchmarks.promotion --out tests/benchmarks/results/promotion.json

- decision: every gate and MLflow's validation on 10,000 test rows of 10 classes, 2,000 unlabelled
  rows and 100 calls, the evidence written and hashed, and the append to a ledger in SQLite with its
  intent opened and closed. What both versions answer is drawn at random from a seed; asking them,
  uploading to MLflow and moving the alias are not in it.
- history: reading 10,000 rows of one alias and saying them. They are sealed by hand into a fresh
  ledger: so many real appends would take minutes.

The median of the rounds, after one that warms up, has to stay under the mark.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import create_engine

from flows.history import history, lines
from tasks.gates import Evidence, Gate, Side
from tasks.gates.agreement import Agreement
from tasks.gates.budget import Budget
from tasks.gates.calibration import Calibration
from tasks.gates.export import Export
from tasks.gates.freshness import Freshness
from tasks.gates.fusion import Fusion
from tasks.gates.lineage import Lineage
from tasks.gates.membership import Membership
from tasks.gates.quality import Quality
from tasks.gates.size import Size
from tasks.gates.slices import Slices
from tasks.judge import judge, keep
from tasks.ledger import Intent, Ledger
from tasks.ledger.entries import Entry, stamp
from tasks.ledger.tables import ENTRIES
from tasks.refs import ModelRef, VersionRef
from tasks.succession import CHAMPION, Succession
from tasks.tracking import Tracking
from tests.benchmarks.throughput import host

NAME = "digits.edge"
ROWS, CLASSES, POOL, CALLS = 10_000, 10, 2_000, 100
LEDGER_ROWS, ROUNDS = 10_000, 5
CHAMPION_ACCURACY, CHALLENGER_ACCURACY = 0.90, 0.92
DECISION_SECONDS, HISTORY_SECONDS = 2.0, 0.5
START = datetime(2026, 1, 1, tzinfo=UTC)

GATES: tuple[Gate, ...] = (
    Quality(),
    Quality(metric="balanced_accuracy"),
    Quality(metric="macro_f1"),
    Slices(columns=("source",)),
    Calibration(largest=0.9),
    Budget(size_ratio=1.5, latency_ratio=1.5),
    Agreement(at_least=0.5),
    Agreement(at_least=0.5, against="teacher"),
    Lineage(),
    Membership(),
    Freshness(days=30.0),
    Fusion(),
    Size(),
    Export(),
)


@dataclass(frozen=True)
class Finding:
    """What one measurement found.

    Attributes:
        what: What was measured.
        seconds: Of every round.
        mark: The bound that their median has to stay under.
    """

    what: str
    seconds: list[float]
    mark: float

    @property
    def median(self) -> float:
        """What the mark is held against."""
        return statistics.median(self.seconds)

    @property
    def met(self) -> bool:
        """Whether the mark is met."""
        return self.median < self.mark

    def plain(self) -> dict[str, Any]:
        """As it enters the results file."""
        return {
            "what": self.what,
            "median_seconds": round(self.median, 3),
            "rounds": [round(one, 3) for one in self.seconds],
            "mark_seconds": self.mark,
            "met": self.met,
        }


def digests(count: int, start: int) -> NDArray[np.str_]:
    """Names of rows, as long as real ones."""
    return np.asarray([f"{start + at:064x}" for at in range(count)])


def side(
    random: np.random.Generator, version: int, labels: NDArray[np.intp], accuracy: float
) -> Side:
    """A version that is right about so often."""
    names = np.asarray([str(at) for at in range(CLASSES)])
    said = np.where(random.random(ROWS) < accuracy, labels, random.integers(0, CLASSES, ROWS))
    scores = random.random((ROWS, CLASSES), dtype=np.float32)
    scores[np.arange(ROWS), said] += 10
    return Side(
        version=version,
        content=f"{version:064x}",
        labels=names[said],
        probabilities=scores / scores.sum(axis=1, keepdims=True),
        pool_labels=names[np.where(random.random(POOL) < accuracy, 0, 1)],
        size_bytes=20_000,
        latency_ms=random.uniform(0.1, 0.2, CALLS),
        lineage=(),
        clean=True,
        membership=(0.55, 0.53, 0.57),
        metrics={"fused_agreement": 0.999, "size_ratio": 0.3, "export_difference": 1e-6},
    )


def random_evidence(seed: int = 0) -> Evidence:
    """Evidence of the benchmark's size."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, ROWS)
    names = tuple(str(at) for at in range(CLASSES))
    return Evidence(
        rows=digests(ROWS, 0),
        labels=np.asarray(names)[labels],
        classes=names,
        columns={"source": np.asarray(["camera", "scanner", "phone"])[random.integers(0, 3, ROWS)]},
        pool=digests(POOL, ROWS),
        challenger=side(random, 2, labels, CHALLENGER_ACCURACY),
        champion=side(random, 1, labels, CHAMPION_ACCURACY),
        control=None,
        data_age_days=1.0,
        teacher=np.asarray(names)[np.zeros(POOL, dtype=int)],
    )


def version_of(found: Side) -> VersionRef:
    """A side as the registry would name it."""
    model = ModelRef(
        stage="quantize",
        role="edge",
        run_id="0" * 32,
        model_id=f"m-{found.version:032x}",
        key="0" * 64,
        content=found.content,
        record="0" * 64,
    )
    return VersionRef(name=NAME, version=found.version, model=model)


def decide(evidence: Evidence, ledger: Ledger, folder: Path) -> Entry:
    """Everything of a decision but asking the models and telling MLflow."""
    champion = None if evidence.champion is None else version_of(evidence.champion)
    challenger = version_of(evidence.challenger)
    head = ledger.head(NAME, CHAMPION)
    intent = ledger.open(
        Intent(
            model=NAME,
            alias=CHAMPION,
            expected=head.sequence if head else 0,
            version=challenger.version,
            action="promoted",
            actor="benchmark",
            reason="all gates passed",
        )
    )
    judgement = judge(evidence, GATES, challenger, champion)
    entry = ledger.append(
        intent.id,
        content=challenger.model.content,
        record=challenger.model.record,
        reason="; ".join(found.sentence for found in judgement.verdicts),
        evidence=keep(evidence, judgement, folder),
        evidence_run="0" * 32,
    )
    ledger.close(intent.id, "done")
    return entry


def fill(address: str, count: int) -> None:
    """Seals entries into a ledger's table, past its appends."""
    rows: list[dict[str, Any]] = []
    for at in range(count):
        last = rows[-1] if rows else None
        entry = Entry.sealed(
            model=NAME,
            alias=CHAMPION,
            sequence=at + 1,
            action="promoted",
            version=at + 1,
            content=f"{at:064x}",
            record=f"{at:064x}",
            previous_version=last and last["version"],
            actor="benchmark@host",
            reason="better than the champion on the same 10000 test rows; " * 4,
            time=stamp(START + timedelta(minutes=at)),
            evidence=f"{at:064x}",
            evidence_run=f"{at:032x}",
            intent=UUID(int=at).hex,
            previous=last and last["digest"],
        )
        rows.append(entry.model_dump())
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.execute(ENTRIES.insert(), rows)
    engine.dispose()


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, after one that warms up."""
    work()
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def decision(folder: Path, rounds: int = ROUNDS) -> Finding:
    """A promotion decision."""
    evidence, ledger = random_evidence(), Ledger(f"sqlite:///{folder / 'decision.db'}")
    kept = folder / "evidence"
    kept.mkdir()
    seconds = timed(lambda: decide(evidence, ledger, kept), rounds)
    what = f"{len(GATES)} gates and MLflow's validation on {ROWS:,} rows, evidence, ledger append"
    return Finding(what, seconds, DECISION_SECONDS)


class _Registry:
    """The one thing that `history` asks the registry, whose speed is MLflow's."""

    def registered(self) -> list[str]:
        """Names of all registered models."""
        return [NAME]


def telling(folder: Path, rounds: int = ROUNDS) -> Finding:
    """The story of one alias."""
    address = f"sqlite:///{folder / 'history.db'}"
    ledger = Ledger(address)
    fill(address, LEDGER_ROWS)
    succession = Succession(ledger, cast("Tracking", _Registry()))
    seconds = timed(lambda: "\n".join(lines(history(succession, NAME))), rounds)
    return Finding(f"history of {LEDGER_ROWS:,} ledger rows, as lines", seconds, HISTORY_SECONDS)


MEASUREMENTS = (decision, telling)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The results file."""
    return {
        "command": f"python -m tests.benchmarks.promotion {shlex.join(sys.argv[1:])}".strip(),
        "host": host(),
        "data": {"rows": ROWS, "classes": CLASSES, "pool": POOL, "calls": CALLS},
        "gates": [gate.plain() for gate in GATES],
        "findings": [finding.plain() for finding in findings],
    }


def main() -> None:
    """Measures, prints the seconds and writes the results."""
    parser = argparse.ArgumentParser(description="Measures promotion decisions and history.")
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    findings: list[Finding] = []
    for measurement in MEASUREMENTS:
        with tempfile.TemporaryDirectory() as scratch:
            findings.append(measurement(Path(scratch)))
        print(json.dumps(findings[-1].plain()))
    if out:
        found = json.dumps(report(findings), indent=2)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
