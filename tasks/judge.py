"""Judgement: challenger and champion on the same rows, and what every gate says of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import evidence as stored_evidence
from tasks.answers import asking
from tasks.errors import ArtifactError, DataError, RegistryError
from tasks.evaluate import Evaluation
from tasks.exporters import MODEL_FILE
from tasks.gates import GATES, Evidence, Gate, Side, Verdict
from tasks.keep import SCHEMA_FILE
from tasks.lineage.digests import canonical, digest_of_file, digest_of_files
from tasks.lineage.record import Record
from tasks.measure import interleaved
from tasks.refs import VersionRef
from tasks.rows import HIDDEN, Part, Rows
from tasks.statistics import share
from tasks.tracking import Tracking, payload_of, validate

JUDGEMENT_FILE = "judgement.json"
SECONDS_PER_DAY = 86_400
MILLISECONDS = 1000
MLFLOW, TEACHER = "mlflow", "teacher"


class Judgement(BaseModel):
    """What was judged, by which gates, and what they said.

    Attributes:
        challenger: Version that asked.
        champion: Version that it would follow, or None where it is the first.
        gates: The gates with their thresholds.
        verdicts: One per gate, and one of MLflow's own validation.
    """

    model_config = ConfigDict(frozen=True)

    challenger: VersionRef
    champion: VersionRef | None
    gates: tuple[dict[str, Any], ...]
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate lets the challenger pass."""
        return all(found.passed for found in self.verdicts)


@dataclass(frozen=True)
class Bench:
    """Where versions are asked: the same rows and the same host for both.

    Attributes:
        tracking: Where they are stored.
        rows: Today's rows.
        pool_rows: Most unlabelled rows that they are asked about.
        latency_calls: Calls per version at batch 1 on one thread.
        data_changed: When the data last changed.
        ask_teacher: Whether a gate wants to know what the challenger's teacher says.
    """

    tracking: Tracking
    rows: Rows
    pool_rows: int
    latency_calls: int
    data_changed: datetime
    ask_teacher: bool = False

    def gather(self, challenger: VersionRef, champion: VersionRef | None) -> Evidence:
        """Asks both versions, their files hashed again first.

        Raises:
            ArtifactError: Files of either are missing or are not those recorded.
            RegistryError: One of them is no classifier.
            DataError: There is no test row.
        """
        test = self.rows.open_test()
        if not len(test):
            raise DataError(
                "there is no labelled test row to judge on; label more rows, or raise "
                "prepare.test_share"
            )
        asked = {"challenger": _Asked(self, challenger)}
        if champion is not None:
            asked["champion"] = _Asked(self, champion)
        seconds = interleaved({name: one.call for name, one in asked.items()}, self.latency_calls)
        sides = {name: one.side(seconds[name] * MILLISECONDS) for name, one in asked.items()}
        age = datetime.now(UTC) - self.data_changed
        return Evidence(
            rows=np.asarray(test.names),
            labels=np.asarray(self.rows.classes)[test.labels],
            classes=tuple(self.rows.classes),
            columns={"source": self.rows.test_sources},
            pool=self.pool.names,
            challenger=sides["challenger"],
            champion=sides.get("champion"),
            control=self._control(challenger) if champion is None else None,
            data_age_days=age.total_seconds() / SECONDS_PER_DAY,
            teacher=self._teacher(challenger) if self.ask_teacher else None,
        )

    @cached_property
    def pool(self) -> Part:
        """Unlabelled training rows, the first by their digests."""
        train = self.rows.train
        hidden = np.flatnonzero(train.labels == HIDDEN)
        order = hidden[np.argsort(train.names[hidden], kind="stable")]
        return train.take(order[: self.pool_rows])

    def _control(self, challenger: VersionRef) -> NDArray[np.str_] | None:
        """What the labels-only control of the challenger's own chain predicts."""
        project = challenger.name.rpartition(".")[0]
        control = self.tracking.sibling(challenger, f"{project}.control")
        return None if control is None else _Asked(self, control).labels

    def _teacher(self, challenger: VersionRef) -> NDArray[np.str_] | None:
        """What the challenger's teacher names the unlabelled rows."""
        folder = teacher_of(self.tracking, challenger)
        if folder is None:
            return None
        if not len(self.pool):
            return np.asarray([], dtype=np.str_)
        if (folder / MODEL_FILE).is_file():
            said = self.rows.modality.classifier(folder).predict(self.pool.raw)["label"].tolist()
        else:
            numbers = asking(self.rows.modality, folder)(self.pool).argmax(1)
            said = np.asarray(self.rows.classes)[numbers].tolist()
        return np.asarray(said, dtype=np.str_)


class _Asked:
    """One version, ready to be asked."""

    def __init__(self, bench: Bench, version: VersionRef) -> None:
        self.bench, self.version = bench, version
        stored = bench.tracking.fetch(version.model).folder
        self.folder, self.metrics = payload_of(stored), Record.read(stored).metrics
        if not (self.folder / MODEL_FILE).is_file():
            raise RegistryError(
                f"{version.name} version {version.version} holds no {MODEL_FILE}, so it cannot be "
                "asked about rows; promote a network that classifies, for example the edge model"
            )
        self.classifier = bench.rows.modality.classifier(self.folder)

    @property
    def call(self) -> Callable[[], object]:
        """One call at batch 1, on a row of the version's own encoding: values change no time."""
        schema = json.loads((self.folder / SCHEMA_FILE).read_text(encoding="utf-8"))
        row = np.zeros((1, *schema["shape"]), np.dtype(schema.get("dtype", "uint8")))
        return lambda: self.classifier.probabilities(row)

    @cached_property
    def answers(self) -> Any:  # noqa: ANN401 - a data frame
        """Of the test rows, raw: the version may have been made for another encoding of them."""
        return self.classifier.predict(self.bench.rows.open_test().raw)

    @property
    def labels(self) -> NDArray[np.str_]:
        """Predicted class names of the test rows, (N,)."""
        return np.asarray(self.answers["label"].tolist(), dtype=np.str_)

    def side(self, latency_ms: NDArray[np.float64]) -> Side:
        """All that gates may ask about this version."""
        pool = self.bench.pool
        said = self.classifier.predict(pool.raw)["label"].tolist() if len(pool) else []
        problems, clean = ancestry(self.bench.tracking, self.version)
        return Side(
            version=self.version.version,
            content=self.version.model.content,
            labels=self.labels,
            probabilities=self._probabilities(),
            pool_labels=np.asarray(said, dtype=np.str_),
            size_bytes=(self.folder / MODEL_FILE).stat().st_size,
            latency_ms=latency_ms,
            lineage=problems,
            clean=clean,
            membership=self._membership(),
            metrics=self.metrics,
        )

    def _membership(self) -> tuple[float, float, float] | None:
        """As the evaluation that the version was registered with measured it."""
        try:
            report = self.bench.tracking.evaluation_of(self.version)
        except ArtifactError:
            return None  # where a gate asks for the figure, it says that there is none
        if report is None:
            return None
        found = {one.role: one.membership for one in Evaluation.read(report).models}
        attacked = found.get(self.version.model.role)
        attack = attacked.strongest if attacked else None
        return None if attack is None else (attack.auc, attack.low, attack.high)

    def _probabilities(self) -> NDArray[np.float32]:
        """Over today's classes, which the version may not all know, (N, classes)."""
        said = np.asarray(self.answers["probabilities"].tolist(), dtype=np.float32)
        today = self.bench.rows.classes
        found = np.zeros((len(said), len(today)), np.float32)
        for at, name in enumerate(self.classifier.classes):
            if name in today:
                found[:, today.index(name)] = said[:, at]
        return found


def ancestry(tracking: Tracking, version: VersionRef) -> tuple[tuple[str, ...], bool]:
    """Hashes a version and all that it descends from again.

    Returns:
        What is wrong, one sentence each, and whether committed code made all of it.
    """
    problems: list[str] = []
    clean = True
    known = {version.model.record}
    waiting = [(version.model.role, version.model.model_id, version.model.record)]
    while waiting:
        role, model_id, digest = waiting.pop()
        try:
            record = tracking.record_of(model_id, digest)
        except ArtifactError as error:
            problems.append(f"{role}: {error}")
            continue
        clean &= record.code.clean
        for parent in record.parents:
            if parent.record not in known:
                known.add(parent.record)
                waiting.append((parent.role, parent.model_id, parent.record))
    return tuple(problems), clean


def teacher_of(tracking: Tracking, version: VersionRef) -> Path | None:
    """Folder with the files of the first teacher that a version descends from, hashed again.

    Raises:
        ArtifactError: A record on the way, or the teacher, is missing or not as recorded.
    """
    waiting = [tracking.record_of(version.model.model_id, version.model.record)]
    for record in waiting:
        for parent in record.parents:
            found = tracking.record_of(parent.model_id, parent.record)
            if parent.role == TEACHER:
                return payload_of(tracking.stored_at(str(parent.model_id)))
            waiting.append(found)
    return None


def judge(
    evidence: Evidence,
    gates: Sequence[Gate],
    challenger: VersionRef,
    champion: VersionRef | None,
) -> Judgement:
    """Asks every gate, and MLflow."""
    return Judgement(
        challenger=challenger,
        champion=champion,
        gates=tuple(gate.plain() for gate in gates),
        verdicts=tuple(verdicts(evidence, gates)),
    )


def verdicts(evidence: Evidence, gates: Sequence[Gate]) -> Iterator[Verdict]:
    """One per gate, then MLflow's."""
    yield from (gate.judge(evidence) for gate in gates)
    yield _validation(evidence)


def _validation(evidence: Evidence) -> Verdict:
    """MLflow's own check of plain accuracies, which its users know."""
    _, counts = np.unique(evidence.labels, return_counts=True)
    floor = float(counts.max() / len(evidence.labels))
    accuracies = {name: share(evidence.right(side)).value for name, side in evidence.sides.items()}
    reason = validate(accuracies["challenger"], floor)
    sentence = reason or f"accuracy {accuracies['challenger']:.2%} is at least {floor:.2%}"
    figures = {f"accuracy_{name}": value for name, value in accuracies.items()} | {"floor": floor}
    return Verdict(
        gate=MLFLOW,
        passed=reason is None,
        sentence=f"mlflow.validate_evaluation_results: {sentence}",
        figures=figures,
    )


def keep(evidence: Evidence, judgement: Judgement, folder: Path) -> str:
    """Writes evidence and judgement as files.

    Returns:
        sha256 over them: what the ledger holds.
    """
    files = stored_evidence.write(evidence, folder)
    (folder / JUDGEMENT_FILE).write_bytes(canonical(judgement.model_dump(mode="json")))
    return digest_of_files(files | {JUDGEMENT_FILE: digest_of_file(folder / JUDGEMENT_FILE)})


def recheck(folder: Path, digest: str) -> Iterator[str]:
    """Judges kept evidence again, and says where that differs from what was decided on.

    Args:
        folder: Holds the files that `keep` wrote.
        digest: What the ledger says of them.
    """
    names = (*stored_evidence.FILES, JUDGEMENT_FILE)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        yield f"{', '.join(missing)} of the evidence is missing"
        return
    found = digest_of_files({name: digest_of_file(folder / name) for name in names})
    if found != digest:
        yield f"the evidence has sha256 {found}, the ledger says {digest}"
    try:
        kept = Judgement.model_validate_json((folder / JUDGEMENT_FILE).read_bytes())
        evidence = stored_evidence.read(folder)
    except (ArtifactError, ValidationError) as error:
        yield f"the evidence cannot be read: {str(error).splitlines()[0]}"
        return
    again = list(verdicts(evidence, [GATES.parse(plain) for plain in kept.gates]))
    if len(again) != len(kept.verdicts):
        yield f"gates judged: {len(kept.gates)} and MLflow, verdicts kept: {len(kept.verdicts)}"
    for before, after in zip(kept.verdicts, again, strict=False):
        if before != after:
            yield f"gate {before.gate} said: {before.sentence}; it says now: {after.sentence}"
