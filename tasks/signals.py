"""What triggers look at, each fact found when one asks for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import incoming
from tasks.errors import RegistryError
from tasks.incoming import Known, Waiting
from tasks.journal import NOTABLE, WELL, Journal, Retraining
from tasks.ledger import Ledger
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_value
from tasks.lineage.record import Record
from tasks.modalities import MODALITIES, Modality, RowClassifier
from tasks.prepare import PREPARED, PrepareParams
from tasks.processes import Process
from tasks.reasons import Reason
from tasks.refs import VersionRef
from tasks.settings import Settings
from tasks.succession import Succession
from tasks.tracking import payload_of
from tasks.triggers import Arrived, Before, Compared, Late, Trigger
from tasks.versioning import Versions, fingerprint

CHAMPION_ROLE = "edge"
UNSETTLED = frozenset({"running", "killed", "gave_way"})
RETURNING = frozenset({"data", "code", "parameters"})


@dataclass(frozen=True)
class Watched:
    """What a look has to know of params.yaml.

    Attributes:
        project: Its name.
        incoming: Folder with rows that arrived, relative to the project's.
        prepare: Its section.
        sections: Gives the digest of each section that decides what is trained; called only where a
            trigger asks.
    """

    project: str
    incoming: str
    prepare: PrepareParams
    sections: Callable[[], dict[str, str]]


class Facts:
    """`tasks.triggers.Signals`, each found once when a trigger asks for it."""

    def __init__(
        self, settings: Settings, watched: Watched, now: datetime, watched_since: datetime
    ) -> None:
        self.settings, self.watched = settings, watched
        self.now, self.watched_since = now, watched_since
        self.unreadable: dict[str, str] = {}

    @cached_property
    def versions(self) -> Versions:
        """The project's data versions."""
        return Versions.of(self.settings)

    @cached_property
    def journal(self) -> Journal:
        """The project's journal."""
        return Journal.of(self.settings, self.watched.project)

    @cached_property
    def retrainings(self) -> list[Retraining]:
        """What it knows, the newest first."""
        return self.journal.newest(NOTABLE)

    def before(self) -> Before | None:
        """See `Signals.before`; retraining on past data says nothing of today's."""
        for one in self.retrainings:
            if _tells_of_today(one):
                return Before(one.started, one.raw, one.code, one.sections)
        return None

    def settled(self, reason: Reason) -> Retraining | None:
        """The newest retraining that was about the same and came to an end, or None.

        What is there again after something else was (data that was put back) is news.
        """
        comes_back = reason.trigger in RETURNING
        for one in self.retrainings:
            same = (one.reason.trigger, one.reason.about) == (reason.trigger, reason.about)
            same |= reason.trigger == "data" and one.raw == reason.about
            if same and one.outcome not in UNSETTLED:
                return one
            if comes_back and _tells_of_today(one):
                return None
        return None

    @cached_property
    def newest(self) -> Retraining | None:
        """The newest retraining that did not give way, whatever came of it."""
        return next((one for one in self.retrainings if one.outcome != "gave_way"), None)

    @cached_property
    def worker(self) -> Process | None:
        """The process of the newest retraining, where that has not ended; None where it has."""
        if self.newest is None or self.newest.outcome != "running":
            return None
        unended = self.journal.tracking.unended(self.watched.project)
        mine = (process for run, process in unended if run.info.run_id == self.newest.run_id)
        return next(mine, None)

    def data(self) -> str:
        """See `Signals.data`."""
        self.versions.check()
        self.versions.source.refresh()
        return self.versions.source.seen()

    def code(self) -> str:
        """See `Signals.code`."""
        return origin.code().digest

    def sections(self) -> dict[str, str]:
        """See `Signals.sections`."""
        return self.watched.sections()

    @cached_property
    def version(self) -> VersionRef | None:
        """The champion."""
        succession = Succession(Ledger(self.settings.ledger_address), self.journal.tracking)
        return succession.champion(f"{self.watched.project}.{CHAMPION_ROLE}")

    def champion(self) -> int | None:
        """See `Signals.champion`."""
        return None if self.version is None else self.version.version

    @cached_property
    def holder(self) -> "Champion":
        """The champion, ready to be asked.

        Raises:
            RegistryError: There is none.
        """
        if self.version is None:
            raise RegistryError(
                f"'{self.watched.project}.{CHAMPION_ROLE}' has no champion; run `stillmark retrain`"
            )
        return Champion.of(self.journal, self.versions, self.version)

    def key(self, trigger: Trigger) -> str:
        """sha256 of all that an answer about the champion and arrived rows follows from."""
        if not self.folder.is_dir():
            incoming.read(self.folder, self.watched.prepare.modality)  # which says so
        return digest_of_value(
            {
                "trigger": trigger.plain(),
                "champion": None if self.version is None else self.version.model.content,
                "arrived": fingerprint(self.folder),
                "prepared": fingerprint(self.settings.root / PREPARED),
                "modality": self.watched.prepare.modality.plain(),
            }
        )

    @property
    def folder(self) -> Path:
        """Where rows arrive."""
        return self.settings.root / self.watched.incoming

    @cached_property
    def waiting(self) -> list[Waiting]:
        """Every row there."""
        return incoming.read(self.folder, self.watched.prepare.modality)

    @cached_property
    def fresh(self) -> list[Waiting]:
        """Those that the champion's data does not hold."""
        if self.version is None:
            return self.waiting
        known = set(self.holder.known.names.tolist())
        return [row for row in self.waiting if row.row not in known]

    def arrived(self) -> Arrived:
        """See `Signals.arrived`."""
        return Arrived(len(self.fresh), incoming.digest_of(self.waiting))

    def compared(self, most: int, seed: int) -> Compared:
        """See `Signals.compared`."""
        holder = self.holder
        training = holder.known.drawn(training=True, most=most, seed=seed)
        held_out = holder.known.drawn(training=False, most=most, seed=seed)
        rows, inputs = self._encoded(incoming.choose(self.fresh, most, seed))
        contents = [row.content for row in rows]
        return Compared(
            training=holder.known.sample(training),
            arrived=incoming.sample_of(inputs, contents, holder.modality, holder.schema),
            held_out=holder.classifier.probabilities(np.asarray(holder.known.inputs[held_out])),
            answers=holder.classifier.probabilities(inputs),
            classes=tuple(holder.classifier.classes),
        )

    def _encoded(self, rows: list[Waiting]) -> tuple[list[Waiting], NDArray[Any]]:
        holder = self.holder
        good, inputs, unreadable = incoming.encoded(rows, holder.modality, holder.schema)
        self.unreadable |= unreadable
        return good, inputs

    def late(self) -> Late:
        """See `Signals.late`."""
        holder = self.holder
        labelled = dict(zip(holder.known.names.tolist(), holder.known.labels.tolist(), strict=True))
        arrived = [row for row in self.waiting if row.label and labelled.get(row.row) is None]
        arrived, inputs = self._encoded(arrived)
        names = np.asarray(holder.classifier.classes)
        said = names[holder.classifier.probabilities(inputs).argmax(1)].tolist()
        found = {row.row: (row.label, name) for row, name in zip(arrived, said, strict=True)}
        for row, label, name in self._labelled_since(labelled):
            found.setdefault(row, (label, name))
        accuracy, low = holder.recorded
        return Late(
            right=sum(label == name for label, name in found.values()),
            rows=len(found),
            about=digest_of_value([[row, found[row][0]] for row in sorted(found)]),
            accuracy=accuracy,
            low=low,
        )

    def _labelled_since(self, labelled: dict[str, str | None]) -> list[tuple[str, str, str]]:
        """Rows of today's prepared data that have a label now.

        Returns:
            Row, label and what the champion says of each whose label its own data lacks.
        """
        folder = self.settings.root / PREPARED
        if not folder.is_dir():
            return []
        today = Known.open({path.name: path for path in folder.iterdir()})
        places = np.asarray(
            [
                at
                for at, (row, label) in enumerate(zip(today.names, today.labels, strict=True))
                if label is not None and labelled.get(str(row)) is None
            ],
            dtype=np.intp,
        )
        if not len(places):
            return []
        said = self.holder.classifier.predict(today.raw(places))["label"].tolist()
        rows, labels = today.names[places].tolist(), today.labels[places].tolist()
        return list(zip(rows, labels, said, strict=True))


def _tells_of_today(one: Retraining) -> bool:
    """Whether a retraining ended well on the data of its day."""
    return one.outcome in WELL and one.reason.trigger != "backfill"


@dataclass(frozen=True)
class Champion:
    """The champion with all that it is compared by.

    Attributes:
        known: The prepared rows that it was made from.
        schema: Its own encoding.
        modality: As it was made for.
        classifier: The model itself, as on the edge.
        report: Finds its recorded accuracy on its test rows and the lower end of the interval.
    """

    known: Known
    schema: dict[str, Any]
    modality: Modality
    classifier: RowClassifier
    report: Callable[[], tuple[float, float]]

    @classmethod
    def of(cls, journal: Journal, versions: Versions, version: VersionRef) -> "Champion":
        """Opens a registered version; its files are hashed again.

        Raises:
            ArtifactError: They are not those recorded.
            DataError: Its data is neither in DVC's cache nor in the remote.
        """
        stored = journal.tracking.fetch(version.model).folder
        folder = payload_of(stored)
        listed = versions.cache.listing(Record.read(stored).data.prepared)
        known = Known.open({name: versions.cache.stored(md5) for name, md5 in listed.items()})
        schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        modality = MODALITIES.parse(schema["modality"])

        def report() -> tuple[float, float]:
            from tasks.evaluate import Evaluation  # noqa: PLC0415 - imports torch

            found = journal.tracking.evaluation_of(version)
            if found is None:
                raise RegistryError(
                    f"no accuracy is on record for {version.name} version {version.version}; "
                    "promote a version that `stillmark retrain` made"
                )
            measured = Evaluation.read(found).of(version.model.role)
            return measured.accuracy, measured.low

        return cls(known, schema, modality, modality.classifier(folder), report)

    @property
    def recorded(self) -> tuple[float, float]:
        """Accuracy and the lower end of its interval."""
        return self.report()
