"""Promotion: the challenger becomes champion where every gate lets it pass."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import ConflictError, RegistryError
from tasks.gates import GATES, Evidence, Gate, Verdict
from tasks.judge import Bench, Judgement, judge, keep
from tasks.ledger import Entry, Request
from tasks.notify import News, What, announce
from tasks.refs import VersionRef
from tasks.rows import Rows
from tasks.sections import Section
from tasks.settings import Settings
from tasks.signing import SIGNATURE_FILE, sign
from tasks.stage import Run
from tasks.succession import CHAMPION, Succession, actor
from tasks.tracking import Tracking
from tasks.versioning import PREPARED, Versions

DECISION_TAG, REASON_TAG = "stillmark.decision", "stillmark.reason"
LONGEST_TAG = 4000


class PromoteParams(Section):
    """Section `promote` of params.yaml.

    Attributes:
        gates: All of them must let the challenger pass.
        approval: Whether a person has to agree too (`stillmark approve`).
        pool_rows: Most unlabelled rows that both versions are asked about.
        latency_calls: Calls of either version at batch 1 on one thread, taking turns.
    """

    gates: Annotated[tuple[Annotated[Gate, GATES], ...], Field(min_length=1)]
    approval: bool = False
    pool_rows: Annotated[int, Field(ge=0)] = 2000
    latency_calls: Annotated[int, Field(ge=10)] = 100


class Decision(BaseModel):
    """What was decided, and why.

    Attributes:
        outcome: `promoted`, `rejected`, `awaiting` a person's approval, or `unchanged` where the
            challenger is the champion.
        challenger: Version that asked.
        champion: Version that held the alias before, or None.
        verdicts: One per gate; none where nothing had to be judged.
        note: Why, where no gate decided.
        request: What to name to `stillmark approve`, where a person is asked.
        sequence: Row of the ledger that holds a promotion.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Literal["promoted", "rejected", "awaiting", "unchanged"]
    challenger: VersionRef
    champion: VersionRef | None
    verdicts: tuple[Verdict, ...] = ()
    note: str | None = None
    request: str | None = None
    sequence: int | None = None

    @property
    def sentence(self) -> str:
        """The decision in one line."""
        name = f"{self.challenger.name} version {self.challenger.version}"
        if self.outcome == "unchanged":
            return f"{name} is the champion already: nothing to decide"
        reasons = [found.sentence for found in self.verdicts if self._decides(found)]
        if self.note:
            reasons.insert(0, self.note)
        word = "awaits approval" if self.outcome == "awaiting" else self.outcome
        return f"{name} {word}: {'; '.join(reasons)}"

    def _decides(self, verdict: Verdict) -> bool:
        return verdict.passed == (self.outcome != "rejected")


@dataclass(frozen=True)
class _Case:
    """One challenger before the gates."""

    settings: Settings
    run: Run
    params: PromoteParams
    challenger: VersionRef

    @cached_property
    def succession(self) -> Succession:
        return Succession.of(self.settings)

    @property
    def tracking(self) -> Tracking:
        return self.succession.tracking

    @property
    def name(self) -> str:
        return self.challenger.name

    @cached_property
    def champion(self) -> VersionRef | None:
        return self.succession.champion(self.name)

    @cached_property
    def bench(self) -> Bench:
        versions = Versions.of(self.settings)
        return Bench(
            self.tracking,
            Rows(self.settings.root / PREPARED),
            self.params.pool_rows,
            self.params.latency_calls,
            versions.history.changed(),
            ask_teacher=any(gate.asks_teacher for gate in self.params.gates),
        )

    def decided(
        self, outcome: Literal["promoted", "rejected", "awaiting"], **more: object
    ) -> Decision:
        return Decision.model_validate(
            {"outcome": outcome, "challenger": self.challenger, "champion": self.champion, **more}
        )


@task(name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote(
    run: Run,
    params: PromoteParams,
    challenger: VersionRef,
    *,
    again: str | None = None,
    dry_run: bool = False,
) -> Decision:
    """Judges a version against the champion on the same rows; moves the alias if it passes.

    Args:
        run: The run.
        params: Gates.
        challenger: Version that asks.
        again: A person's reason to judge a version that was rolled back once.
        dry_run: Gives the verdicts only: nothing is stored, nothing changes.

    Raises:
        ConflictError: Another promotion came first; says whose.
        RegistryError: The alias was moved by hand.
        ArtifactError: Stored files are not those recorded.
    """
    case = _Case(Settings(), run, params, challenger)
    case.succession.reconcile(case.name)
    _refuse_out_of_band(case.settings, case.succession, case.name)
    if case.champion == challenger:
        return Decision(outcome="unchanged", challenger=challenger, champion=challenger)
    barred = _barred(case) if again is None else None
    if barred:
        return _told(case, case.decided("rejected", note=barred))
    if dry_run:
        _, judgement = _judged(case)
        outcome = "promoted" if judgement.passed else "rejected"
        return case.decided(outcome, verdicts=judgement.verdicts)
    return _told(case, _decide(case, again))


def _barred(case: _Case) -> str | None:
    """Why a version that was rolled back is not promoted by the next run."""
    entries = case.succession.ledger.entries(case.name, CHAMPION)
    of_it = [
        entry
        for entry in entries
        if case.challenger.version in {entry.version, entry.previous_version}
    ]
    last = of_it[-1] if of_it else None
    if last is None or last.action != "rolled_back" or last.version == case.challenger.version:
        return None
    return (
        f"{last.actor} rolled it back at {last.time} ({last.reason}); "
        f"`stillmark promote {case.name}:{case.challenger.version} --again REASON` judges it anew"
    )


def _judged(case: _Case) -> tuple[Evidence, Judgement]:
    evidence = case.bench.gather(case.challenger, case.champion)
    return evidence, judge(evidence, case.params.gates, case.challenger, case.champion)


def _decide(case: _Case, again: str | None) -> Decision:
    """Intent → evidence → signature → append → alias → read back."""
    succession, ledger = case.succession, case.succession.ledger
    intent = succession.intend(case.challenger, "promoted", again or "all gates passed")
    evidence, judgement = _judged(case)
    kept = _keep(case, evidence, judgement)
    verdicts = judgement.verdicts
    if not judgement.passed:
        ledger.close(intent.id, "rejected", "abandoned")
        return case.decided("rejected", verdicts=verdicts)
    if case.params.approval:
        request = succession.ask(intent, case.challenger, **kept)
        ledger.close(intent.id, f"request {request.id}", "abandoned")
        note = f"`stillmark approve {request.id} --reason …` promotes it"
        return case.decided("awaiting", verdicts=verdicts, note=note, request=request.id)
    reason = again or "; ".join(found.sentence for found in verdicts)
    _sign(case.settings, case.tracking, case.challenger)
    entry = succession.install(intent, case.challenger, reason=reason, **kept)
    return case.decided("promoted", verdicts=verdicts, sequence=entry.sequence)


def _sign(settings: Settings, tracking: Tracking, version: VersionRef) -> None:
    """Leaves a signature beside the run that made a version, where there is a key to sign with."""
    if settings.signing_key is None:
        return
    folder = tracking.fetch(version.model).folder
    with tempfile.TemporaryDirectory() as scratch:
        signature = Path(scratch) / SIGNATURE_FILE
        sign(folder, settings.signing_key, signature, settings.signing_password)
        tracking.store_report(version.model.run_id, Path(scratch))


class Kept(TypedDict):
    """Where evidence was kept: sha256 over its files, and the MLflow run that holds them."""

    evidence: str
    evidence_run: str


def _keep(case: _Case, evidence: Evidence, judgement: Judgement) -> Kept:
    tracking, run = case.tracking, case.run
    run_id = tracking.start(
        run.project, "promote", case.challenger.model.key, run.data, run.journal
    )
    with tempfile.TemporaryDirectory() as scratch:
        digest = keep(evidence, judgement, Path(scratch))
        tracking.store_report(run_id, Path(scratch))
    tracking.log_metrics(run_id, _figures(judgement.verdicts), data=run.data)
    tracking.end(run_id)
    return Kept(evidence=digest, evidence_run=run_id)


def _figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """All figures by gate and name; a gate's second verdict is `quality-2`, its third …-3."""
    found: dict[str, float] = {}
    times: Counter[str] = Counter()
    for verdict in verdicts:
        times[verdict.gate] += 1
        gate = verdict.gate if times[verdict.gate] == 1 else f"{verdict.gate}-{times[verdict.gate]}"
        found |= {f"{gate}.{name}": value for name, value in verdict.figures.items()}
    return found


def _told(case: _Case, decision: Decision) -> Decision:
    """Names the decision on the version, and tells whoever wants to know."""
    tags = {DECISION_TAG: decision.outcome, REASON_TAG: decision.sentence[:LONGEST_TAG]}
    case.tracking.tag_version(decision.challenger, tags)
    if decision.outcome != "unchanged":
        _announce(case.settings, decision.outcome, decision.challenger, decision.sentence)
    return decision


def _announce(settings: Settings, what: What, version: VersionRef, sentence: str) -> None:
    news = News(
        what=what,
        model=version.name,
        version=version.version,
        sentence=sentence,
        actor=actor(),
    )
    announce(settings, news)


def _refuse_out_of_band(settings: Settings, succession: Succession, name: str) -> None:
    """Lets nobody promote over a change made by hand, and tells whoever wants to know."""
    moved = succession.out_of_band(name)
    if moved:
        news = News(what="out_of_band", model=name, version=None, sentence=moved, actor=actor())
        announce(settings, news)
        raise RegistryError(moved)


@task(name="rollback", cache_policy=NO_CACHE, persist_result=False)
def rollback(name: str, to: int | None, reason: str) -> Entry:
    """Makes an earlier version champion again, whatever the gates would say.

    Args:
        name: Registered model.
        to: Version; by default the champion before the present one.
        reason: Why; it stands in the ledger for ever.

    Raises:
        RegistryError: There is no such version, no earlier champion, or nothing to change.
        ArtifactError: The version's files are missing or are not those recorded.
        ConflictError: Another change came first; says whose.
    """
    settings = Settings()
    succession = Succession.of(settings)
    succession.reconcile(name)
    version = succession.tracking.version(name, to or _earlier(succession, name))
    _refuse_idle(succession, version)
    succession.tracking.fetch(version.model)
    intent = succession.intend(version, "rolled_back", reason)
    entry = succession.install(intent, version)
    sentence = f"{name} rolled back to version {entry.version}: {reason}"
    _announce(settings, "rolled_back", version, sentence)
    return entry


def _earlier(succession: Succession, name: str) -> int:
    """The champion that the present one followed, rollbacks not counted as new ones.

    After a rollback from 3 to 2 the next one goes to what was champion before 2 first was.
    """
    line: list[int] = []
    for entry in succession.ledger.entries(name, CHAMPION):
        if entry.version in line:
            del line[line.index(entry.version) :]
        line.append(entry.version)
    if not line:
        raise RegistryError(f"'{name}' never had a champion: there is nothing to roll back")
    if len(line) == 1:
        raise RegistryError(
            f"'{name}' had no champion before version {line[0]}; name a version with --to"
        )
    return line[-2]


def _refuse_idle(succession: Succession, version: VersionRef) -> None:
    head = succession.head(version.name)
    if head and head.version == version.version and not succession.out_of_band(version.name):
        raise RegistryError(
            f"{version.name} version {version.version} is the champion already: nothing to do"
        )


@task(name="settle", cache_policy=NO_CACHE, persist_result=False)
def settle(request: str, reason: str, *, approved: bool) -> Request:
    """Answers a request for approval.

    An approval that was cut off before its promotion may be given again.

    Raises:
        ConflictError: The request was settled before, or challenger or champion changed since.
        LedgerError: There is no such request.
    """
    settings = Settings()
    succession = Succession.of(settings)
    asked = succession.ledger.request(request)
    succession.reconcile(asked.model)
    if not approved:
        settled = succession.ledger.settle(request, "rejected", actor(), reason)
        version = succession.tracking.version(asked.model, asked.version)
        sentence = f"{asked.model} version {asked.version} rejected by {actor()}: {reason}"
        _announce(settings, "rejected", version, sentence)
        return settled
    if asked.state == "approved" and _carried_out(succession, asked):
        raise ConflictError(
            f"request {request} was approved by {asked.settled_by} at {asked.settled} "
            f"({asked.reason}) and carried out: nothing is left to settle"
        )
    return _approve(settings, succession, asked, reason)


def _carried_out(succession: Succession, asked: Request) -> bool:
    entries = succession.ledger.entries(asked.model, asked.alias)
    return any(entry.evidence_run == asked.evidence_run for entry in entries)


def _approve(settings: Settings, succession: Succession, asked: Request, reason: str) -> Request:
    ledger = succession.ledger
    stale = succession.stale(asked)
    if stale:
        if asked.state == "open":
            ledger.settle(asked.id, "stale", actor(), stale)
        raise ConflictError(f"request {asked.id} is stale: {stale}; judge the version again")
    _refuse_out_of_band(settings, succession, asked.model)
    version = succession.tracking.version(asked.model, asked.version)
    intent = succession.intend(version, "promoted", f"approved: {reason}")
    if asked.state != "approved":
        ledger.settle(asked.id, "approved", actor(), reason)
    _sign(settings, succession.tracking, version)
    succession.install(intent, version, evidence=asked.evidence, evidence_run=asked.evidence_run)
    sentence = f"{asked.model} version {asked.version} promoted, approved by {actor()}: {reason}"
    tags = {DECISION_TAG: "promoted", REASON_TAG: sentence[:LONGEST_TAG]}
    succession.tracking.tag_version(version, tags)
    _announce(settings, "promoted", version, sentence)
    return ledger.request(asked.id)
