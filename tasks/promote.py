"""Promotion: the challenger becomes champion where every gate lets it pass."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from tasks.gates import GATES, Evidence, Gate, Verdict
from tasks.refs import VersionRef
from tasks.rows import Part, Rows
from tasks.sections import Section
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED

CHAMPION = "champion"
DECISION_FILE, EVIDENCE_FILE = "decision.json", "predictions.parquet"


class PromoteParams(Section):
    """Section `promote` of params.yaml.

    Attributes:
        gates: All of them must let the challenger pass.
    """

    gates: Annotated[tuple[Annotated[Gate, GATES], ...], Field(min_length=1)]


class Decision(BaseModel):
    """What was decided, and why.

    Attributes:
        outcome: `promoted`, `rejected`, or `unchanged` where the challenger is the champion.
        challenger: Version that asked.
        champion: Version that held the alias before, or None.
        verdicts: One per gate.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["promoted", "rejected", "unchanged"]
    challenger: VersionRef
    champion: VersionRef | None
    verdicts: tuple[Verdict, ...]

    @property
    def sentence(self) -> str:
        """The decision in one line."""
        name = f"{self.challenger.name} version {self.challenger.version}"
        if self.outcome == "unchanged":
            return f"{name} is the champion already: nothing to decide"
        reasons = [found.sentence for found in self.verdicts if self._decides(found)]
        return f"{name} {self.outcome}: {'; '.join(reasons)}"

    def _decides(self, verdict: Verdict) -> bool:
        return verdict.passed == (self.outcome == "promoted")


@task(name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote(run: Run, params: PromoteParams, challenger: VersionRef) -> Decision:
    """Judges a version against the champion on the same test rows; moves the alias if it passes."""
    settings = Settings()
    tracking = Tracking(settings.tracking_uri, settings.home)
    champion = tracking.holder(challenger.name, CHAMPION)
    if champion is not None and champion.version == challenger.version:
        return Decision(outcome="unchanged", challenger=challenger, champion=champion, verdicts=())
    rows = Rows(settings.root / PREPARED)
    test = rows.open_test()
    evidence = Evidence(
        labels=np.asarray(rows.classes)[test.labels],
        challenger=_labels(tracking, challenger, rows, test),
        champion=_labels(tracking, champion, rows, test) if champion else None,
    )
    verdicts = tuple(gate.judge(evidence) for gate in params.gates)
    passed = all(verdict.passed for verdict in verdicts)
    decision = Decision(
        outcome="promoted" if passed else "rejected",
        challenger=challenger,
        champion=champion,
        verdicts=verdicts,
    )
    _keep(tracking, run, decision, evidence, test)
    if passed:
        tracking.set_alias(challenger, CHAMPION)
    return decision


def _labels(tracking: Tracking, version: VersionRef, rows: Rows, test: Part) -> NDArray[np.str_]:
    """Predicted class names (N,) of a stored version, its files hashed again first.

    Raw rows are asked about, as the version may have been made for another encoding of them.
    """
    classifier = rows.modality.classifier(payload_of(tracking.fetch(version.model).folder))
    return np.asarray(classifier.predict(test.raw)["label"].tolist())


def _keep(tracking: Tracking, run: Run, decision: Decision, evidence: Evidence, test: Part) -> None:
    """Stores decision and per-row evidence, and names the decision on the version."""
    run_id = tracking.start(run.project, "promote", decision.challenger.model.key, run.data)
    columns = {
        "row": test.names.tolist(),
        "label": evidence.labels,
        "challenger": evidence.challenger,
    }
    if evidence.champion is not None:
        columns["champion"] = evidence.champion
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / DECISION_FILE).write_text(decision.model_dump_json(indent=2), encoding="utf-8")
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / EVIDENCE_FILE)
        tracking.store_report(run_id, folder)
    for verdict in decision.verdicts:
        figures = {f"{verdict.gate}.{name}": value for name, value in verdict.figures.items()}
        tracking.log_metrics(run_id, figures, data=run.data)
    tracking.end(run_id)
    tags = {"stillmark.decision": decision.outcome, "stillmark.reason": decision.sentence[:4000]}
    tracking.tag_version(decision.challenger, tags)
