"""The ledger's entries: a chain, each sealed with a digest that covers the one before it.

Knows no database: whoever holds a copy of the rows can judge them with what is here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.lineage.digests import digest_of_value

Action = Literal["promoted", "rolled_back"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
# PostgreSQL stores no NUL character.
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(pattern=r"^[^\x00]+$")]

Row = Mapping[str, Any]
UNSEALED = "0" * 64
# So many misplaced rows are put back where they were; beyond that they are only called changed.
MOST_MISPLACED = 64


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: of one width, so that text sorts as time does."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def digest_of_row(row: Row) -> str:
    """sha256 (hex) of the canonical JSON of every field but `digest`.

    Raises:
        ValueError: A field holds what JSON cannot say.
    """
    return digest_of_value({name: value for name, value in row.items() if name != "digest"})


class Witness(NamedTuple):
    """A copy of one entry's digest that is kept outside the ledger.

    Attributes:
        model: Name of the registered model.
        alias: The alias that moved.
        sequence: Number of the entry.
        digest: sha256 that the entry had when it was copied.
    """

    model: str
    alias: str
    sequence: int
    digest: str


class Entry(BaseModel):
    """One move of an alias: who, when, why, from which version to which, on what evidence.

    Attributes:
        model: Name of the registered model.
        alias: The alias that moved.
        sequence: 1 for an alias's first entry, then 2, 3 …
        action: What was done.
        version: Version that holds the alias from now on.
        content: sha256 over that version's files.
        record: sha256 of its lineage record.
        previous_version: Version that held the alias before, or None.
        actor: Who did it.
        reason: Why.
        time: When (UTC, RFC 3339).
        evidence: sha256 over the kept evidence files, or None.
        evidence_run: MLflow run where they lie, or None.
        intent: Id of the intent that it came from.
        previous: Digest of the entry before it, None for the first.
        digest: sha256 of the canonical JSON of all the other fields.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["stillmark-ledger/1"] = "stillmark-ledger/1"
    model: Name
    alias: Name
    sequence: Annotated[int, Field(ge=1)]
    action: Action
    version: Annotated[int, Field(ge=1)]
    content: Sha256
    record: Sha256
    previous_version: int | None
    actor: Name
    reason: Text
    time: Time
    evidence: Sha256 | None
    evidence_run: Name | None
    intent: Hex
    previous: Sha256 | None
    digest: Sha256

    @classmethod
    def sealed(cls, **fields: Any) -> "Entry":  # noqa: ANN401 - the fields above
        """An entry with its digest.

        Raises:
            ValidationError: A field is missing or is not of its kind.
        """
        draft = cls(digest=UNSEALED, **fields)
        return draft.model_copy(update={"digest": digest_of_row(draft.model_dump())})

    @property
    def is_whole(self) -> bool:
        """Whether the digest is that of the other fields."""
        return self.digest == digest_of_row(self.model_dump())

    @property
    def witness(self) -> Witness:
        """What to keep elsewhere, so that a later check sees whether this entry is still there."""
        return Witness(self.model, self.alias, self.sequence, self.digest)


class Place(NamedTuple):
    """Where an entry stands: one alias of one model, and the number there."""

    model: str
    alias: str
    sequence: int

    def beside(self, steps: int) -> "Place":
        """The place so many numbers further on."""
        return self._replace(sequence=self.sequence + steps)

    def __str__(self) -> str:
        return f"{self.model}@{self.alias} row {self.sequence}"


class Finding(BaseModel):
    """A row that is not what was written.

    Attributes:
        model: Name of the registered model.
        alias: The alias.
        sequence: Number of the row, or of the first of several missing ones.
        sentence: What was found and what was expected.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: str
    alias: str
    sequence: int
    sentence: str


def judge(rows: Iterable[Row], witnesses: Iterable[Witness] = ()) -> list[Finding]:
    """Recomputes every digest and link; returns what is wrong, at most one finding per row.

    Names the row that was touched and not those after it: a row that was changed itself is no
    evidence against its neighbours. What a chain cannot show without a witness: that its last rows
    were removed, that the last row was rewritten and sealed again, or all of them from some row on.

    Args:
        rows: Every field of every row as stored, in any order.
        witnesses: Digests copied while the entries were known to be good.
    """
    audit = _Audit()
    audit.put_back(audit.sort(rows))
    audit.find_gaps()
    audit.hear(witnesses)
    audit.follow_links()
    return [
        Finding(**place._asdict(), sentence=f"{place} {what}")
        for place, what in sorted(audit.found.items())
    ]


class _Audit:
    """One judgement: what is found, and the rows whose seal holds, by their place."""

    def __init__(self) -> None:
        self.found: dict[Place, str] = {}
        self.whole: dict[Place, Row] = {}
        self.confirmed: set[Place] = set()
        self.doubted: set[Place] = set()

    def accuse(self, place: Place, what: str) -> None:
        """Keeps the first thing found about a place: it explains the others."""
        self.found.setdefault(place, what)

    def sort(self, rows: Iterable[Row]) -> list[Row]:
        """Takes in the rows whose seal holds; returns the others."""
        broken = []
        for row in rows:
            place = _place(row)
            if _seal(row) != row["digest"]:
                broken.append(row)
            elif (flaw := _flaw(row)) is not None:
                self.accuse(place, flaw)
            elif place in self.whole:
                self.accuse(place, "stands there twice: another row was put beside it")
            else:
                self.whole[place] = row
        return broken

    def put_back(self, broken: list[Row]) -> None:
        """Finds out where rows with a broken seal stood; those that fit nowhere were changed."""
        seals = {row["digest"]: place for place, row in self.whole.items()}
        vacant = list(islice(self._vacancies(broken), MOST_MISPLACED))
        for at, row in enumerate(broken):
            here = _place(row)
            places = [seals.get(row["digest"], here), here.beside(-1), here.beside(1)]
            if at < MOST_MISPLACED:
                places += vacant
            home = next((place for place in places if _fits(row, place)), None)
            if home is None:
                self.accuse(here, _changed(row))
            else:
                self._return(row, home, here)

    def _vacancies(self, broken: list[Row]) -> Iterator[Place]:
        """Where a misplaced row may have come from: taken by another, in a gap, or past the end."""
        here = [_place(row) for row in broken]
        yield from here
        known = {place[:2]: [0] for place in here} | self._numbers()
        for (model, alias), numbers in known.items():
            for low, high in pairwise([0, *numbers]):
                yield from (Place(model, alias, number) for number in range(low + 1, high))
            yield Place(model, alias, numbers[-1] + 1)

    def _numbers(self) -> dict[tuple[str, str], list[int]]:
        """Numbers in use per model and alias, ascending."""
        numbers = defaultdict(list)
        for model, alias, sequence in sorted(self.whole):
            numbers[model, alias].append(sequence)
        return numbers

    def _return(self, row: Row, home: Place, here: Place) -> None:
        stranger = self.whole.get(home)
        if stranger is not None and stranger["digest"] == row["digest"]:
            self.accuse(here, f"is a copy of row {home.sequence}")
            return
        if stranger is not None:
            self.accuse(home, f"is not the one sealed as such: that stands as {here} now")
        else:
            self.accuse(home, f"was moved: it stands as {here} now")
        self.whole[home] = {**row, **home._asdict()}

    def find_gaps(self) -> None:
        """Numbers below a good row that no row has."""
        for (model, alias), numbers in self._numbers().items():
            taken = {place.sequence for place in self.found if place[:2] == (model, alias)}
            below = sorted({0, *numbers, *(at for at in taken if 0 < at < numbers[-1])})
            for low, high in pairwise(below):
                if high - low > 1:
                    self.accuse(Place(model, alias, low + 1), _missing(low + 1, high))

    def hear(self, witnesses: Iterable[Witness]) -> None:
        """Compares the rows with the digests that were copied elsewhere."""
        last = {names: numbers[-1] for names, numbers in self._numbers().items()}
        for witness in witnesses:
            place = Place(witness.model, witness.alias, witness.sequence)
            row = self.whole.get(place)
            if row is None:
                if place.sequence > last.get(place[:2], 0):
                    self.accuse(place, f"is gone: a witness saw it with sha256 {witness.digest}")
            elif row["digest"] == witness.digest:
                self.confirmed.add(place)
            else:
                self.doubted.add(place)
                self.accuse(place, _rewritten(row, f"a witness saw {witness.digest}"))
        self.confirmed -= self.doubted

    def follow_links(self) -> None:
        """From the last row to the first: does each name the one before it?"""
        for place in sorted(self.whole, reverse=True):
            if place not in self.doubted:
                self._follow(self.whole[place]["previous"], place)

    def _follow(self, previous: str | None, place: Place) -> None:
        before = place.beside(-1)
        row = self.whole.get(before)
        if place.sequence == 1 and previous is not None:
            self.accuse(place, f"is the first, yet names {previous} as the row before it")
        elif row is not None and row["digest"] != previous:
            if before in self.confirmed:
                self.accuse(
                    place, f"names {previous} as the row before it: that is {row['digest']}"
                )
            else:
                self.doubted.add(before)
                last = place not in self.confirmed and place.beside(1) not in self.whole
                doubt = " (unless that row was put there by hand)" if last else ""
                other = f"row {place.sequence} names {previous}{doubt}"
                self.accuse(before, _rewritten(row, other))


def _place(row: Row) -> Place:
    """A row's place as stored; number 0 where it has none."""
    number = row["sequence"]
    return Place(str(row["model"]), str(row["alias"]), number if isinstance(number, int) else 0)


def _seal(row: Row) -> str | None:
    try:
        return digest_of_row(row)
    except ValueError:
        return None


def _fits(row: Row, place: Place) -> bool:
    return _seal({**row, **place._asdict()}) == row["digest"]


def _flaw(row: Row) -> str | None:
    try:
        Entry.model_validate(dict(row))
    except ValidationError as error:
        return f"is sealed, but is no entry: {flaw_of(error)}"
    return None


def flaw_of(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words: which field, and how."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _changed(row: Row) -> str:
    return f"was changed: its fields have sha256 {_seal(row)}, its seal is {row['digest']}"


def _rewritten(row: Row, other: str) -> str:
    return f"was rewritten: it has sha256 {row['digest']}, {other}"


def _missing(first: int, beyond: int) -> str:
    if beyond - first == 1:
        return f"is missing, though row {beyond} is there: it was removed"
    return f"to row {beyond - 1} are missing, though row {beyond} is there: they were removed"
