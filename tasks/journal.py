"""The journal: every retraining that began, why, and what came of it; an MLflow run each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.errors import BusyError
from tasks.interruption import name_of
from tasks.lineage.digests import digest_of_value
from tasks.reasons import Reason
from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.tracking import OUTCOME_TAG, PARENT_TAG, REASON_TAG, REF_TAG, Tracking

STAGE = "retrain"
FACTS_TAG, SEQUENCE_TAG = "stillmark.retraining", "stillmark.sequence"
NOTABLE = 200  # more of the past is never asked for at once
IDLE_SECTIONS = frozenset({"budget", "compare", "gc", "schedule"})

Ending = Literal[
    "promoted", "rejected", "awaiting", "registered", "unchanged", "failed", "killed", "gave_way"
]
Outcome = Literal["running"] | Ending
WELL: frozenset[str] = frozenset({"promoted", "rejected", "awaiting", "registered", "unchanged"})


class Facts(BaseModel):
    """What a retraining began with.

    Attributes:
        reason: What woke it.
        code: sha256 over the code of all stages.
        sections: sha256 of each section of params.yaml that decides what is trained, by name.
        flow_run: Prefect's id of it; empty outside of Prefect.
    """

    model_config = ConfigDict(frozen=True)

    reason: Reason
    code: str
    sections: dict[str, str]
    flow_run: str = ""


class Retraining(Facts):
    """A retraining as the journal knows it.

    Attributes:
        run_id: MLflow's id of its run.
        sequence: Its number; later ones have higher ones, whatever the clock says.
        started: When it began, in UTC.
        ended: When it ended, in UTC; None while it goes on.
        outcome: What came of it; `unchanged` is one that found nothing to do.
        sentence: The same for people.
        raw: DVC's digest of `data/`; empty where it did not get so far.
        content: sha256 over the prepared rows; empty likewise.
        trained: Stages that ran, rather than being reused.
        training_seconds: Those stages' own time.
    """

    run_id: str
    sequence: int
    started: datetime
    ended: datetime | None
    outcome: Outcome
    sentence: str
    raw: str = ""
    content: str = ""
    trained: int = 0
    training_seconds: float = 0.0


@dataclass
class Page:
    """An entry while it is written; what is said here becomes its end.

    Attributes:
        run_id: MLflow's id of its run.
        data: Version of the data, once it is known.
        outcome: What came of it.
        sentence: The same for people.
    """

    run_id: str
    data: DataRef | None = None
    outcome: Ending = "failed"
    sentence: str = "it ended without saying what came of it"


def sections_of(params: dict[str, Any]) -> dict[str, str]:
    """Digests of the sections of a parameter tree, without those that train and judge nothing."""
    return {
        name: digest_of_value(section)
        for name, section in params.items()
        if name not in IDLE_SECTIONS
    }


@dataclass(frozen=True)
class Journal:
    """The retrainings of one project.

    Attributes:
        tracking: Where they are kept.
        project: Whose they are.
    """

    tracking: Tracking
    project: str

    @classmethod
    def of(cls, settings: Settings, project: str) -> "Journal":
        """The journal of a project.

        Raises:
            SetupError: The store does not answer.
        """
        return cls(Tracking(settings.tracking_uri, settings.home), project)

    @contextmanager
    def write(self, facts: Facts) -> Iterator[Page]:
        """An entry around a retraining, which ends with it, however it ends."""
        page = Page(self.open(facts))
        try:
            yield page
        except BaseException as error:
            self.close(page.run_id, *_stopped(error), page.data)
            raise
        self.close(page.run_id, page.outcome, page.sentence, page.data)

    def open(self, facts: Facts) -> str:
        """Begins an entry; returns its run's id."""
        before = self.newest(1)
        run_id = self.tracking.start(self.project, STAGE)
        sequence = before[0].sequence + 1 if before else 1
        tags = {FACTS_TAG: facts.model_dump_json(), SEQUENCE_TAG: str(sequence)}
        self.tracking.note(run_id, {**tags, REASON_TAG: facts.reason.sentence})
        return run_id

    def close(
        self, run_id: str, outcome: Ending, sentence: str, data: DataRef | None = None
    ) -> None:
        """Ends an entry with what came of it, and counts what was trained for it."""
        made = self.trained(run_id)
        figures = {"trained": float(len(made)), "training_seconds": sum(made)}
        facts = {"raw": data.raw, "content": data.content} if data else {}
        tags = {"outcome": outcome, "sentence": sentence, **facts}
        self.tracking.log_metrics(run_id, figures)
        self.tracking.note(run_id, {OUTCOME_TAG: outcome, f"{FACTS_TAG}.end": json.dumps(tags)})
        if outcome in {"failed", "killed"}:
            self.tracking.fail(run_id, sentence, outcome.upper())
        else:
            self.tracking.end(run_id)

    def newest(self, count: int) -> list[Retraining]:
        """The last retrainings, the newest first."""
        runs = self.tracking.last_runs(self.project, NOTABLE, f"tags.`{FACTS_TAG}` != ''")
        found = sorted((_read(run) for run in runs), key=lambda one: -one.sequence)
        return found[:count]

    def entry(self, run_id: str) -> Retraining:
        """One of them."""
        return _read(self.tracking.client.get_run(run_id))

    def trained(self, run_id: str) -> list[float]:
        """Seconds of every stage that was trained for an entry."""
        mine = f"tags.`{PARENT_TAG}` = '{run_id}' and tags.`{REF_TAG}` != ''"
        infos = [run.info for run in self.tracking.last_runs(self.project, NOTABLE, mine)]
        return [(info.end_time - info.start_time) / 1000 for info in infos if info.end_time]


def _stopped(error: BaseException) -> tuple[Ending, str]:
    """How an entry ends that was stopped, and the reason."""
    by_signal = name_of(error)
    if by_signal is not None:
        return "killed", f"ended by {by_signal}"
    words = str(error).splitlines() or [""]
    ending = "gave_way" if isinstance(error, BusyError) else "failed"
    return ending, f"{type(error).__name__}: {words[0]}"


def _read(run: Any) -> Retraining:  # noqa: ANN401 - MLflow's Run
    tags, info = run.data.tags, run.info
    killed = {"outcome": tags.get(OUTCOME_TAG, "running"), "sentence": tags.get(REASON_TAG, "")}
    end = json.loads(tags.get(f"{FACTS_TAG}.end", "null")) or killed
    return Retraining(
        **Facts.model_validate_json(tags[FACTS_TAG]).model_dump(),
        **end,
        run_id=info.run_id,
        sequence=int(tags.get(SEQUENCE_TAG, "0")),
        started=datetime.fromtimestamp(info.start_time / 1000, UTC),
        ended=datetime.fromtimestamp(info.end_time / 1000, UTC) if info.end_time else None,
        trained=round(run.data.metrics.get("trained", 0)),
        training_seconds=run.data.metrics.get("training_seconds", 0.0),
    )
