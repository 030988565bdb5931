"""The look: every trigger is asked whether it is time for a retraining."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from tasks import incoming
from tasks.atomic import replace_text
from tasks.errors import DataError, StillmarkError
from tasks.journal import Retraining
from tasks.prepare import PREPARED, RAW, PrepareParams
from tasks.processes import Note
from tasks.project_lock import LOCK_FILE
from tasks.reasons import Reason
from tasks.sections import Section
from tasks.settings import Settings
from tasks.signals import Facts, Watched
from tasks.triggers import TRIGGERS, Answer, Trigger
from tasks.versioning import Versions

MEMORY_FILE = "watch.json"
UNFINISHED = "unfinished"
DEAD = frozenset({"running", "killed"})
NOT_WOKEN = frozenset({"hand", "backfill"})
MOST_DEATHS = 3


class ScheduleParams(Section):
    """Section `schedule` of params.yaml.

    Attributes:
        every_minutes: How often the triggers are asked.
        wait_minutes: How long a retraining that was not started by a person waits for another one
            of the project, before it gives way.
        incoming: Folder in the project with rows that arrived since: the layouts of `data/`, those
            with a label in class folders or with the label column filled in.
        absorb: Whether a retraining that such rows woke moves them into `data/` first.
        triggers: What may start a retraining.
    """

    every_minutes: Annotated[float, Field(gt=0)] = 5.0
    wait_minutes: Annotated[float, Field(ge=0)] = 60.0
    incoming: Annotated[str, Field(min_length=1)] = "incoming"
    absorb: bool = True
    triggers: tuple[Annotated[Trigger, TRIGGERS], ...] = ()

    @field_validator("incoming")
    @classmethod
    def _check_incoming(cls, name: str) -> str:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and path.parts
        if not inside or path.parts[0] in {RAW.name, PREPARED.name}:
            raise PydanticCustomError(
                "incoming", "expected a folder of its own in the project, for example 'incoming'"
            )
        return path.as_posix()


class Look(BaseModel):
    """What was found by asking every trigger once.

    Attributes:
        at: When, in UTC.
        answers: One per trigger, in the order of params.yaml.
        busy: Which retraining is going on, where one is: nobody was asked then.
        note: What is odd about the clock; empty where nothing is.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    answers: tuple[Answer, ...] = ()
    busy: str = ""
    note: str = ""

    @property
    def reason(self) -> Reason | None:
        """What to start a retraining with: the first trigger's that wants one."""
        return next((answer.reason for answer in self.answers if answer.reason), None)

    @property
    def failures(self) -> list[str]:
        """What could not be looked at, and why."""
        return [f"{answer.trigger}: {answer.sentence}" for answer in self.answers if answer.failed]

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.busy:
            return self.busy
        if self.reason is not None:
            return f"{self.reason.trigger}: {self.reason.sentence}"
        if not self.answers:
            return "there are no triggers; add some to schedule.triggers"
        return "nothing to do"


class Memory(BaseModel):
    """What looks leave for the next one.

    Attributes:
        since: When the first one was.
        looked: When the last one was.
        answers: By a digest of all that they follow from.
    """

    since: datetime
    looked: datetime
    answers: dict[str, Answer] = {}

    @classmethod
    def read(cls, path: Path, now: datetime) -> "Memory":
        """What is known; as if this were the first look where nothing is, or it is damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls(since=now, looked=now)


def look(
    settings: Settings,
    watched: Watched,
    triggers: tuple[Trigger, ...],
    now: datetime | None = None,
) -> Look:
    """Asks every trigger; one that cannot look keeps no other from it.

    The same thing is no reason twice: a trigger rests while the journal holds a retraining about
    just that which came to an end, however it did; one that was killed or gave way does not count.
    A retraining that a trigger woke and that died is itself a reason, the same again, until it has
    died three times: its rows may have been taken in already.

    Args:
        settings: Where the project is.
        watched: Its parameters.
        triggers: Who is asked.
        now: The time, in UTC; by default what the clock says.

    Raises:
        StillmarkError: MLflow's store does not answer.
    """
    now = now or datetime.now(UTC)
    holder = Note.read(settings.home / f"{LOCK_FILE}.json")
    if holder is not None and holder.process.is_alive():
        return Look(at=now, busy=f"another run of the project is going on ({holder})")
    path = settings.home / MEMORY_FILE
    memory = Memory.read(path, now)
    since = min(memory.since, now)
    signals = Facts(settings, watched, now, since)
    if triggers and signals.worker is not None and signals.worker.is_alive():
        return Look(at=now, busy=f"a retraining is about to begin or to end ({signals.worker})")
    kept: dict[str, Answer] = {}
    answers = tuple(_asked(trigger, signals, memory.answers, kept) for trigger in triggers)
    answers = (*(_unfinished(signals) if triggers else ()), *answers)
    replace_text(path, Memory(since=since, looked=now, answers=kept).model_dump_json())
    return Look(at=now, answers=answers, note=_odd_clock(memory, now))


def _unfinished(signals: Facts) -> Iterator[Answer]:
    """The reason of a retraining that died, again; at most one."""
    newest, worker = signals.newest, signals.worker
    if newest is None or newest.outcome not in DEAD or newest.reason.trigger in NOT_WOKEN:
        return
    if newest.outcome == "running" and (worker is None or worker.is_alive() is not False):
        return  # on another machine, of which nothing is known here
    began = (one for one in signals.retrainings if one.outcome != "gave_way")
    times = sum(1 for _ in takewhile(lambda one: _died_alike(one, newest), began))
    then = newest.started.isoformat(" ", "minutes")
    sentence = f"the retraining of {then} ({newest.reason.trigger}) died before it had ended"
    if times < MOST_DEATHS:
        yield Answer(trigger=UNFINISHED, sentence=sentence, reason=newest.reason)
        return
    sentence = f"{sentence}, as did {times - 1} before it; look why, then run `stillmark retrain`"
    yield Answer(trigger=UNFINISHED, sentence=sentence, failed=True)


def _died_alike(one: Retraining, other: Retraining) -> bool:
    same = (one.reason.trigger, one.reason.about) == (other.reason.trigger, other.reason.about)
    return same and one.outcome in DEAD


def _odd_clock(memory: Memory, now: datetime) -> str:
    back = (memory.looked - now).total_seconds()
    return f"the clock went back by {back / 3600:.1f} hours since the last look" if back > 0 else ""


def _asked(
    trigger: Trigger, signals: "Facts", known: dict[str, Answer], kept: dict[str, Answer]
) -> Answer:
    """A trigger's answer; `kept` takes it up for as long as it holds."""
    try:
        if not trigger.asks_champion:
            return _once(trigger.look(signals), signals)
        key = signals.key(trigger)
        answer = known.get(key) or trigger.look(signals)
        unreadable = incoming.named(signals.unreadable)
        kept[key] = answer.model_copy(update={"sentence": f"{answer.sentence}{unreadable}"})
        return _once(kept[key], signals)
    except (StillmarkError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return Answer(trigger=trigger.title, sentence="; ".join(lines), failed=True)


def _once(answer: Answer, signals: "Facts") -> Answer:
    """The same, at rest where a retraining was started for just this."""
    reason = answer.reason
    done = None if reason is None else signals.settled(reason)
    if done is None:
        return answer
    then = done.started.isoformat(" ", "minutes")
    sentence = f"{answer.sentence}; a retraining of {then} was about that: {done.outcome}"
    return Answer(trigger=answer.trigger, sentence=sentence)


def take_in(settings: Settings, prepare: PrepareParams, folder: str) -> int:
    """Moves the rows that arrived into `data/`, unless the data stage would refuse them.

    Args:
        settings: Where the project is.
        prepare: Section `prepare`.
        folder: `schedule.incoming`.

    Returns:
        How many files moved.

    Raises:
        DataError: A row cannot be read, `data/` is an import, or a file cannot be moved.
    """
    source = Versions.of(settings).source.imported_from
    if source is not None:
        raise DataError(
            f"data/ is an import of {source}: what is put there is lost when that changes; move "
            f"the rows of {folder}/ there, or set schedule.absorb: false"
        )
    schema_file = settings.root / PREPARED / "schema.json"
    if (
        prepare.unreadable == "refuse"
        and schema_file.is_file()
        and (settings.root / folder).is_dir()
    ):
        schema = json.loads(schema_file.read_text(encoding="utf-8"))
        rows = incoming.read(settings.root / folder, prepare.modality)
        _, _, unreadable = incoming.encoded(rows, prepare.modality, schema)
        if unreadable:
            raise DataError(
                f"nothing was moved into data/{incoming.named(unreadable)}; repair or remove "
                "them, or set prepare.unreadable: skip"
            )
    return incoming.absorb(settings.root, settings.home, folder)
