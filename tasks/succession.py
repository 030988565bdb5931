"""Who is champion: the ledger says it, and the registry's alias follows.

An alias in MLflow is whatever was written last. Here a change is intent → evidence → append → alias
→ read back. The append is the one step that decides, and whatever ends a process between two steps,
`Succession.reconcile` finishes what was appended and leaves alone what was not.
"""

import getpass
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ArtifactError, ConflictError, LedgerError
from tasks.ledger import Action, Entry, Intent, Ledger, Request, Witness
from tasks.refs import VersionRef
from tasks.settings import Settings
from tasks.tracking import Tracking

CHAMPION = "champion"
WITNESS_TAG = f"stillmark.ledger.{CHAMPION}."
PROJECTION_TRIES, PROJECTION_WAIT_SECONDS = 10, 0.1


def actor() -> str:
    """Who acts: the user and machine that this process runs as."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@dataclass(frozen=True)
class Succession:
    """The champions of registered models.

    Attributes:
        ledger: The truth.
        tracking: The registry, whose alias `champion` is a projection of it.
    """

    ledger: Ledger
    tracking: Tracking

    @classmethod
    def of(cls, settings: Settings) -> "Succession":
        """The succession of a project.

        Raises:
            LedgerError: The ledger does not answer.
            SetupError: The registry does not answer.
        """
        tracking = Tracking(settings.tracking_uri, settings.home)
        return cls(Ledger(settings.ledger_address), tracking)

    def head(self, name: str) -> Entry | None:
        """The newest ledger row of a model, or None."""
        return self.ledger.head(name, CHAMPION)

    def champion(self, name: str) -> VersionRef | None:
        """The version that the ledger names champion, or None."""
        head = self.head(name)
        return None if head is None else self.tracking.version(name, head.version)

    def intend(self, version: VersionRef, action: Action, reason: str) -> Intent:
        """Notes down, before anything else, what is about to be tried."""
        head = self.head(version.name)
        return self.ledger.open(
            Intent(
                model=version.name,
                alias=CHAMPION,
                expected=head.sequence if head else 0,
                version=version.version,
                action=action,
                actor=actor(),
                reason=reason,
            )
        )

    def install(
        self,
        intent: Intent,
        version: VersionRef,
        *,
        evidence: str | None = None,
        evidence_run: str | None = None,
        reason: str | None = None,
    ) -> Entry:
        """Makes a version champion.

        Raises:
            ConflictError: Somebody else's change came first; says whose.
            LedgerError: The ledger does not answer.
        """
        entry = self.ledger.append(
            intent.id,
            content=version.model.content,
            record=version.model.record,
            evidence=evidence,
            evidence_run=evidence_run,
            reason=reason,
        )
        self._complete(entry)
        return entry

    def ask(
        self, intent: Intent, version: VersionRef, *, evidence: str, evidence_run: str
    ) -> Request:
        """Files the question whether exactly this challenger may follow exactly this champion.

        Raises:
            ConflictError: The champion changed while the challenger was judged.
        """
        head = self.head(version.name)
        if (head.sequence if head else 0) != intent.expected:
            raise ConflictError(
                f"the champion of {version.name} changed while version {version.version} was "
                "judged; judge again against the new one"
            )
        return self.ledger.ask(
            Request(
                model=version.name,
                alias=CHAMPION,
                version=version.version,
                content=version.model.content,
                expected=intent.expected,
                head=head.digest if head else None,
                evidence=evidence,
                evidence_run=evidence_run,
                actor=actor(),
            )
        )

    def stale(self, asked: Request) -> str | None:
        """What changed since a request was filed, or None where it still stands."""
        head = self.head(asked.model)
        if (head.digest if head else None) != asked.head:
            now = "there is none" if head is None else f"it is version {head.version}"
            return f"the champion changed since it was asked: {now} (row {asked.expected} then)"
        version = self.tracking.version(asked.model, asked.version)
        if version.model.content != asked.content:
            return (
                f"version {asked.version} has content {version.model.content}, asked about was "
                f"{asked.content}"
            )
        try:
            self.tracking.fetch(version.model)
        except ArtifactError as error:
            return str(error)
        return None

    def _complete(self, entry: Entry) -> None:
        """The steps after the append; done twice, they change nothing."""
        version = self.tracking.version(entry.model, entry.version)
        self.tracking.tag_version(version, {f"{WITNESS_TAG}{entry.sequence}": entry.digest})
        self._project(entry.model)
        self.ledger.close(entry.intent, "done")

    def _project(self, name: str) -> None:
        """Points the alias at the ledger's head and reads both back.

        Another process may append in between; the last to look sets the last row's version.
        """
        for _ in range(PROJECTION_TRIES):
            head = self.head(name)
            if head is None:
                return
            self.tracking.set_alias(self.tracking.version(name, head.version), CHAMPION)
            if self.tracking.alias(name, CHAMPION) == head.version and self.head(name) == head:
                return
        raise LedgerError(
            f"the alias '{CHAMPION}' of {name} changes faster than it can be read back; run "
            "`stillmark history --check` when the other processes have ended"
        )

    def reconcile(self, name: str | None = None) -> list[str]:
        """Finishes what a killed process appended; says what it did, one sentence each."""
        done: list[str] = []
        for intent in self.ledger.open_intents(name):
            entry = self.ledger.entry_of(intent.id)
            if entry is not None:
                self._complete(entry)
                done.append(
                    f"finished {entry.action.replace('_', ' ')} of {entry.model} version "
                    f"{entry.version} (ledger row {entry.sequence}), which had stopped half way"
                )
        return done

    def out_of_band(self, name: str) -> str | None:
        """What moved the alias beside the ledger, or None where the two agree."""
        head, holder = self._at_rest(name)
        if holder == (head.version if head else None):
            return None
        now = "at no version" if holder is None else f"at version {holder}"
        said = "names none" if head is None else f"says {head.version} (row {head.sequence})"
        to = holder or (head.version if head else 1)
        return (
            f"the alias '{CHAMPION}' of {name} was moved by hand: it is {now}, the ledger {said}; "
            f"settle it with `stillmark rollback {name} --to {to} --reason …`"
        )

    def _at_rest(self, name: str) -> tuple[Entry | None, int | None]:
        """Ledger's head and alias, when no other process is on its way from one to the other."""
        head, holder = self.head(name), self.tracking.alias(name, CHAMPION)
        for _ in range(PROJECTION_TRIES):
            if holder == (head.version if head else None):
                break
            time.sleep(PROJECTION_WAIT_SECONDS)
            again = self.head(name), self.tracking.alias(name, CHAMPION)
            if again == (head, holder) and not (head and self._is_open(head)):
                break
            head, holder = again
        return head, holder

    def _is_open(self, entry: Entry) -> bool:
        return any(found.id == entry.intent for found in self.ledger.open_intents(entry.model))

    def check(self, name: str | None = None) -> list[str]:
        """Everything that is not as it was written: rows, links, witnesses, aliases."""
        names = (
            {name}
            if name
            else {
                *(entry.model for entry in self.ledger.entries()),
                *self.tracking.registered(),
            }
        )
        witnesses = [found for one in sorted(names) for found in self._witnesses(one)]
        found = self.ledger.check(name, witnesses)
        moved = [self.out_of_band(one) for one in sorted(names)]
        return [finding.sentence for finding in found] + [one for one in moved if one]

    def _witnesses(self, name: str) -> Iterator[Witness]:
        """What the registry's tags say was once in the ledger."""
        for version in self.tracking.versions(name):
            for tag, digest in version.tags.items():
                if tag.startswith(WITNESS_TAG):
                    number = tag.removeprefix(WITNESS_TAG)
                    yield Witness(
                        model=name, alias=CHAMPION, sequence=int(number), digest=str(digest)
                    )
