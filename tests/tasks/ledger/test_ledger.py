import contextlib
import hashlib
import json
import sqlite3
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import DBAPIError

from tasks.errors import ConflictError, LedgerError
from tasks.ledger import Entry, Intent, Ledger, Request, Witness
from tasks.ledger.entries import digest_of_row, judge, stamp
from tasks.ledger.tables import ENTRIES

CONTENT, RECORD, OTHER = "c" * 64, "d" * 64, "e" * 64
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRIGGERS = {
    "sqlite": ["stillmark_no_update", "stillmark_no_delete", "stillmark_no_replace"],
    "postgresql": ["stillmark_no_change ON stillmark_ledger"],
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Address of a ledger that is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'folder' / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def shared(request, tmp_path_factory):
    """A ledger for tests that make many of their own rows."""
    if request.param == "sqlite":
        return Ledger(f"sqlite:///{tmp_path_factory.mktemp('shared') / 'ledger.db'}")
    return Ledger(request.getfixturevalue("postgres").database())


def intent(model="edge", alias="champion", **changes):
    plain = {"expected": 0, "version": 1, "action": "promoted", "actor": "ann", "reason": "better"}
    return Intent(model=model, alias=alias, **(plain | changes))


def append(ledger, *, content=CONTENT, record=RECORD, evidence=None, run=None, **changes):
    """One whole promotion, as the promote stage does it."""
    noted = intent(**changes)
    if "expected" not in changes:
        head = ledger.head(noted.model, noted.alias)
        noted = noted.model_copy(update={"expected": head.sequence if head else 0})
    ledger.open(noted)
    entry = ledger.append(
        noted.id, content=content, record=record, evidence=evidence, evidence_run=run
    )
    ledger.close(noted.id, "the alias points to it")
    return entry


def request(**changes):
    plain = {"version": 7, "content": CONTENT, "expected": 0, "head": None, "actor": "ann"}
    return Request(model="edge", alias="champion", **(plain | changes))


@contextlib.contextmanager
def refused(kind, *words):
    """Expects one line that says all of this, and no chain of causes behind it."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for word in words:
        assert str(word) in message


@contextlib.contextmanager
def forging(url):
    """A connection of somebody who took the triggers away."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for trigger in TRIGGERS[engine.dialect.name]:
            connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger}"))
        yield connection
    engine.dispose()


def accused(findings):
    return {(found.model, found.alias, found.sequence) for found in findings}


# Entries


def test_an_empty_ledger_has_no_head_and_nothing_wrong(url):
    ledger = Ledger(url)
    assert ledger.head("edge", "champion") is None
    assert (ledger.entries(), ledger.open_intents(), ledger.check()) == ([], [], [])


def test_entries_follow_one_another(url):
    ledger = Ledger(url, now=lambda: START)
    first = append(ledger, version=3)
    second = append(ledger, version=5, actor="bob", evidence=OTHER, run="run-1")
    third = append(ledger, version=3, action="rolled_back", reason="it heard noise")
    assert [entry.sequence for entry in (first, second, third)] == [1, 2, 3]
    assert [entry.previous_version for entry in (first, second, third)] == [None, 3, 5]
    assert [entry.previous for entry in (second, third)] == [first.digest, second.digest]
    assert first.previous is None
    assert (second.actor, second.evidence, second.evidence_run) == ("bob", OTHER, "run-1")
    assert (third.action, third.reason) == ("rolled_back", "it heard noise")
    assert first.time == "2026-03-01T12:00:00.000000Z"
    assert ledger.head("edge", "champion") == third
    assert Ledger(url).entries("edge") == [first, second, third]


def test_every_alias_of_every_model_has_its_own_chain(url):
    ledger = Ledger(url)
    one, other = append(ledger, alias="canary"), append(ledger, model="cloud")
    both = append(ledger), append(ledger)
    assert (one.sequence, other.sequence) == (1, 1)
    assert ledger.entries("edge", "champion") == list(both)
    assert ledger.entries("edge") == [one, *both]
    assert ledger.entries() == [other, one, *both]


def test_the_digest_is_that_of_the_sorted_compact_json(url):
    entry = append(Ledger(url), actor='Åsa "0"\n\t\\', reason="🜁 besser\x1f\x7f")
    plain = entry.model_dump(exclude={"digest"})
    spelled = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert entry.digest == hashlib.sha256(spelled.encode()).hexdigest()
    assert Ledger(url).head("edge", "champion") == entry


def test_a_reason_may_be_found_after_the_intent_was_opened(url):
    ledger = Ledger(url)
    noted = ledger.open(intent(reason="nightly"))
    entry = ledger.append(noted.id, content=CONTENT, record=RECORD, reason="94% against 92%")
    assert entry.reason == "94% against 92%"


@pytest.mark.parametrize("facts", [{"content": "abc"}, {"record": "D" * 64}, {"evidence": ""}])
def test_what_is_no_entry_is_not_written(url, facts):
    ledger = Ledger(url)
    noted = ledger.open(intent())
    with refused(LedgerError, "this entry cannot be written", *facts):
        ledger.append(noted.id, **({"content": CONTENT, "record": RECORD} | facts))
    assert ledger.entries() == []


@pytest.mark.parametrize(
    "changes",
    [{"actor": ""}, {"reason": "a\x00b"}, {"version": 0}, {"version": True}, {"action": "moved"}],
)
def test_an_intent_is_of_its_kind(changes):
    with pytest.raises(ValidationError):
        intent(**changes)


# Compare and set


def test_who_comes_second_is_told_who_came_first(url):
    ledger = Ledger(url)
    late = ledger.open(intent(version=9, actor="late"))
    first = append(ledger, version=4, actor="early")
    append(ledger, version=5, actor="third")
    with refused(ConflictError, "early came first", "edge@champion version 4", first.time, "row 1"):
        ledger.append(late.id, content=CONTENT, record=RECORD)
    assert [entry.version for entry in ledger.entries()] == [4, 5]


def test_an_intent_gives_one_entry_however_often_it_is_asked(url):
    ledger = Ledger(url)
    noted = ledger.open(intent())
    assert ledger.entry_of(noted.id) is None
    first = ledger.append(noted.id, content=CONTENT, record=RECORD)
    append(ledger)
    assert Ledger(url).append(noted.id, content=CONTENT, record=RECORD) == first
    assert ledger.entry_of(noted.id) == first
    assert len(ledger.entries()) == 2


@pytest.mark.parametrize("change", ["content", "record"])
def test_an_intent_is_not_repeated_with_another_model(url, change):
    ledger = Ledger(url)
    noted = ledger.open(intent())
    facts = {"content": CONTENT, "record": RECORD}
    ledger.append(noted.id, **facts)
    with refused(LedgerError, noted.id, change, OTHER):
        ledger.append(noted.id, **(facts | {change: OTHER}))


def test_rows_that_were_there_when_an_intent_began_are_missed(url):
    ledger = Ledger(url)
    append(ledger)
    append(ledger)
    noted = ledger.open(intent(expected=2))
    with forging(url) as connection:
        connection.execute(text("DELETE FROM stillmark_ledger WHERE sequence = 2"))
    with refused(LedgerError, "row 2 of edge@champion", "is gone"):
        ledger.append(noted.id, content=CONTENT, record=RECORD)


def test_nothing_is_appended_to_a_row_that_was_changed(url):
    ledger = Ledger(url)
    append(ledger)
    with forging(url) as connection:
        connection.execute(text("UPDATE stillmark_ledger SET version = 99"))
    with refused(LedgerError, "row 1 of edge@champion", "changed"):
        append(ledger)
    assert len(ledger.entries()) == 1


def test_the_unique_key_holds_against_writers_who_take_no_lock(postgres_url):
    ledger = Ledger(postgres_url)
    noted = ledger.open(intent())
    stranger = Entry.sealed(
        **noted.model_dump(include={"model", "alias", "version", "action", "reason"}),
        sequence=1,
        content=CONTENT,
        record=RECORD,
        previous_version=None,
        actor="stranger",
        time=stamp(START),
        evidence=None,
        evidence_run=None,
        intent="0" * 32,
        previous=None,
    )
    engine = create_engine(postgres_url)
    caught = []

    def try_it():
        try:
            ledger.append(noted.id, content=CONTENT, record=RECORD)
        except LedgerError as error:
            caught.append(error)

    with engine.begin() as connection:
        connection.execute(insert(ENTRIES).values(stranger.model_dump()))
        second = threading.Thread(target=try_it)
        second.start()
        second.join(0.5)
        assert second.is_alive()  # it waits for the stranger's commit
    second.join(20)
    engine.dispose()
    assert isinstance(caught[0], ConflictError)
    assert "stranger came first" in str(caught[0])


RACE = """
import json, multiprocessing, sys
from tasks.errors import ConflictError
from tasks.ledger import Intent, Ledger

url, racers, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fork = multiprocessing.get_context("fork")
barrier, told = fork.Barrier(racers), fork.SimpleQueue()

def race(name):
    barrier.wait()
    ledger = Ledger(url)  # nobody has made it yet
    for turn in range(rounds):
        noted = ledger.open(Intent(
            model="edge", alias="champion", expected=turn, version=name + 1, action="promoted",
            actor=f"racer {name}", reason="a race",
        ))
        barrier.wait()
        try:
            ledger.append(noted.id, content="c" * 64, record="d" * 64)
            told.put([turn, name, "won"])
        except ConflictError as error:
            told.put([turn, name, str(error)])
        barrier.wait()

processes = [fork.Process(target=race, args=(name,)) for name in range(racers)]
for process in processes:
    process.start()
results = [told.get() for _ in range(racers * rounds)]
for process in processes:
    process.join()
print(json.dumps([results, [process.exitcode for process in processes]]))
"""


def test_of_eight_processes_exactly_one_wins_each_round(url, python):
    done = python("-c", RACE, url, 8, 3)
    assert done.returncode == 0, done.stderr
    results, codes = json.loads(done.stdout)
    assert codes == [0] * 8
    ledger = Ledger(url)
    entries = ledger.entries()
    assert [entry.sequence for entry in entries] == [1, 2, 3]
    for turn, entry in enumerate(entries):
        won = [name for at, name, how in results if at == turn and how == "won"]
        lost = [how for at, _, how in results if at == turn and how != "won"]
        assert [f"racer {name}" for name in won] == [entry.actor]
        assert len(lost) == 7
        assert all(how.startswith(f"{entry.actor} came first") for how in lost)
    assert ledger.check() == []


KILL = """
import json, os, signal, sys
from sqlalchemy import Engine, event
from tasks.ledger import Intent, Ledger

url = sys.argv[1]

def die_on_insert(*args):
    if "INSERT INTO stillmark_ledger" in args[2]:
        os.kill(os.getpid(), signal.SIGKILL)

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

POINTS = [("before_cursor_execute", die_on_insert), ("after_cursor_execute", die_on_insert),
          ("commit", die), ("after", None)]
results = []
for at, (point, deadly) in enumerate(POINTS):
    ledger = Ledger(url)
    noted = ledger.open(Intent(model=f"model-{at}", alias="champion", expected=0, version=1,
                               action="promoted", actor="ann", reason="a kill"))
    child = os.fork()
    if not child:
        if deadly:
            event.listen(Engine, point, deadly)
        Ledger(url).append(noted.id, content="c" * 64, record="d" * 64)
        die()
    _, status = os.waitpid(child, 0)
    results.append([noted.id, os.WTERMSIG(status)])
print(json.dumps(results))
"""


def test_a_killed_append_is_there_or_not_and_may_be_repeated(url, python):
    done = python("-c", KILL, url)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert [signal for _, signal in killed] == [9] * 4
    ledger = Ledger(url)
    there = [ledger.entry_of(noted) for noted, _ in killed]
    assert [entry is not None for entry in there] == [False, False, False, True]
    assert [noted.id for noted in ledger.open_intents()] == [noted for noted, _ in killed]
    again = [ledger.append(noted, content=CONTENT, record=RECORD) for noted, _ in killed]
    assert ledger.entries() == again
    assert again[3] == there[3]
    assert ledger.check() == []


# The clock


def test_a_clock_behind_the_ledger_is_refused(url):
    clock = [START, START - timedelta(microseconds=1), START]
    ledger = Ledger(url, now=lambda: clock.pop(0))
    append(ledger)
    late = intent(expected=1)
    ledger.open(late)
    words = ("11:59:59.999999Z", "12:00:00.000000Z", "set the clock right")
    with refused(LedgerError, *words):
        ledger.append(late.id, content=CONTENT, record=RECORD)
    assert len(ledger.entries()) == 1
    assert ledger.append(late.id, content=CONTENT, record=RECORD).sequence == 2


def test_time_is_kept_in_utc(url):
    east = timezone(timedelta(hours=9))
    ledger = Ledger(url, now=lambda: START.astimezone(east))
    assert append(ledger).time == stamp(START) == "2026-03-01T12:00:00.000000Z"


# Intents


def test_intents_stay_open_until_they_are_closed(url):
    ledger = Ledger(url)
    late = ledger.open(intent(started=stamp(START + timedelta(hours=1))))
    early = ledger.open(intent(model="cloud", started=stamp(START)))
    assert ledger.open_intents() == [early, late]
    assert ledger.open_intents("edge") == [late]
    ledger.close(early.id, "no gate let it pass", "abandoned")
    assert ledger.open_intents() == [late]


def test_closing_twice_is_fine_but_not_the_other_way(url):
    ledger = Ledger(url)
    noted = ledger.open(intent())
    ledger.close(noted.id, "its process is gone", "abandoned")
    ledger.close(noted.id, "indeed", "abandoned")
    words = (noted.id, "abandoned", "its process is gone")
    with refused(ConflictError, *words):
        ledger.close(noted.id, "the alias points to it")
    with refused(ConflictError, *words):
        ledger.append(noted.id, content=CONTENT, record=RECORD)


def test_an_intent_has_to_be_noted_once(url):
    ledger = Ledger(url)
    noted = ledger.open(intent())
    with refused(LedgerError, noted.id, "noted already"):
        ledger.open(noted)
    for act in (
        lambda: ledger.close("f" * 32, ""),
        lambda: ledger.append("f" * 32, content=CONTENT, record=RECORD),
    ):
        with refused(LedgerError, "no intent ffff", "open one first"):
            act()


# Requests


def test_a_request_waits_for_a_verdict(url):
    ledger = Ledger(url, now=lambda: START)
    early = ledger.ask(request(asked=stamp(START), head=OTHER, expected=2))
    late = ledger.ask(request(asked=stamp(START + timedelta(hours=1)), version=8))
    assert ledger.requests() == ledger.requests("edge", "open") == [early, late]
    settled = ledger.settle(early.id, "approved", "bob", "it is smaller")
    assert (settled.state, settled.settled_by, settled.settled) == ("approved", "bob", stamp(START))
    assert settled.content == CONTENT
    assert ledger.request(early.id) == settled
    assert ledger.requests(state="open") == [late]
    assert ledger.requests("cloud") == []


def test_of_two_approvers_one_settles(url):
    ledger = Ledger(url)
    asked = ledger.ask(request())
    ledger.settle(asked.id, "rejected", "bob", "too slow")
    with refused(ConflictError, asked.id, "rejected by bob", "too slow"):
        Ledger(url).settle(asked.id, "approved", "eve", "fine")
    assert ledger.request(asked.id).settled_by == "bob"


def test_approvers_at_the_same_moment(url):
    asked = Ledger(url).ask(request())
    start, said = threading.Barrier(6), []

    def settle(name):
        ledger = Ledger(url)
        start.wait()
        try:
            said.append(ledger.settle(asked.id, "approved", name, "").settled_by)
        except ConflictError as error:
            said.append(error)

    threads = [threading.Thread(target=settle, args=(f"person {at}",)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [name for name in said if isinstance(name, str)]
    assert all(f"approved by {winner}" in str(error) for error in said if error is not winner)
    assert len(said) == 6


def test_a_request_has_to_be_filed_once(url):
    ledger = Ledger(url)
    asked = ledger.ask(request())
    with refused(LedgerError, asked.id, "filed already"):
        ledger.ask(asked)
    with refused(LedgerError, "no request nope-nope"):
        ledger.settle("nope-nope", "approved", "bob", "")
    with refused(LedgerError, "this request cannot be written: settled_by"):
        ledger.settle(asked.id, "approved", "", "")


def test_a_request_is_easily_typed():
    names = {request().id for _ in range(200)}
    assert len(names) == 200
    assert all(len(name) == 9 and not set(name) & set("01ilo") for name in names)


# Where the database stands in the way


def test_no_password_is_shown(postgres):
    wrong = "hunter2"
    for url in (postgres.url(password=wrong), f"{postgres.url()}&password={wrong}"):
        with refused(LedgerError, "password authentication failed", "run again") as caught:
            Ledger(url)
        assert wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", ["no database address"]),
        ("mysql://ann:hunter2@localhost/x", ["not in mysql"]),
        ("sqlite://", ["names no file"]),
        ("postgresql://ann:hunter2@127.0.0.1:1/x", ["127.0.0.1:1/x", "refused", "run again"]),
    ],
)
def test_an_address_of_no_use(url, words):
    with refused(LedgerError, *words) as caught:
        Ledger(url)
    assert "hunter2" not in str(caught.value)


def test_a_database_that_does_not_exist(postgres):
    with refused(LedgerError, "nowhere", "create it"):
        Ledger(postgres.url("nowhere"))


def test_a_plain_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("here")
    with refused(LedgerError, tmp_path / "file", "cannot make"):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
    with refused(LedgerError, tmp_path, "unable to open"):
        Ledger(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database(tmp_path):
    place = tmp_path / "ledger.db"
    place.write_bytes(b"not a database, but long enough to look at" * 40)
    before = place.read_bytes()
    with refused(LedgerError, place, "not a database", "copy"):
        Ledger(f"sqlite:///{place}")
    assert place.read_bytes() == before


def test_a_ledger_that_was_damaged_on_disk(tmp_path):
    place = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{place}")
    append(ledger)
    raw = bytearray(place.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    place.write_bytes(raw)
    for act in (lambda: ledger.head("edge", "champion"), ledger.entries, ledger.check):
        with refused(LedgerError, place, "malformed", "copy"):
            act()


def test_a_locked_file_is_waited_for_and_then_named(tmp_path):
    place = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{place}", patience=0.2)
    noted = ledger.open(intent())
    holder = sqlite3.connect(place, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with refused(LedgerError, place, "locked", "0.2 s", "run again"):
        ledger.append(noted.id, content=CONTENT, record=RECORD)
    assert ledger.entries() == []  # reading goes on
    holder.execute("ROLLBACK")
    holder.close()
    assert ledger.append(noted.id, content=CONTENT, record=RECORD).sequence == 1


def test_a_held_lock_is_waited_for_and_then_named(postgres_url):
    ledger = Ledger(postgres_url, patience=0.2)
    noted = ledger.open(intent())
    second = Ledger(postgres_url, patience=0.2)
    with ledger._database.writing(), refused(LedgerError, "lock timeout", "0.2 s", "run again"):
        second.append(noted.id, content=CONTENT, record=RECORD)
    assert ledger.append(noted.id, content=CONTENT, record=RECORD).sequence == 1


def test_a_connection_that_died_is_made_anew(postgres_url):
    ledger = Ledger(postgres_url)
    entry = append(ledger)
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        others = "FROM pg_stat_activity WHERE datname = current_database()"
        mine = "AND pid <> pg_backend_pid()"
        ended = connection.execute(text(f"SELECT pg_terminate_backend(pid) {others} {mine}"))
        assert ended.all() == [(True,)]
    engine.dispose()
    assert ledger.head("edge", "champion") == entry


FORK = """
import os, sys
from tasks.ledger import Ledger

ledger = Ledger(sys.argv[1])
child = os.fork()
for _ in range(60):
    assert ledger.head("edge", "champion").sequence == 1
    assert ledger.head("edge", "canary") is None
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_process_talks_over_its_own_connection(url, python):
    append(Ledger(url))
    done = python("-c", FORK, url)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with refused(LedgerError, "needs psycopg2", "pip install psycopg2-binary"):
        Ledger("postgresql://ann@localhost/x")


def test_a_row_that_is_no_entry_is_named(url):
    ledger = Ledger(url)
    append(ledger)
    with forging(url) as connection:
        connection.execute(text("UPDATE stillmark_ledger SET action = 'moved'"))
    for act in (ledger.entries, lambda: ledger.head("edge", "champion")):
        with refused(LedgerError, "edge@champion", "action"):
            act()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE stillmark_ledger SET version = 9",
        "DELETE FROM stillmark_ledger",
        "TRUNCATE stillmark_ledger",
        "INSERT OR REPLACE INTO stillmark_ledger SELECT * FROM stillmark_ledger",
    ],
)
def test_the_database_itself_refuses_changes(url, statement):
    ledger = Ledger(url)
    append(ledger)
    before = ledger.entries()
    engine = create_engine(url)
    foreign = {"sqlite": "TRUNCATE", "postgresql": "INSERT OR"}[engine.dialect.name]
    words = "syntax error" if statement.startswith(foreign) else "the ledger is append-only"
    with pytest.raises(DBAPIError, match=words), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert ledger.entries() == before


def test_neither_the_heavy_parts_nor_the_owners_are_imported(python):
    heavy = {"torch", "mlflow", "prefect", "dvc", "numpy"}
    done = python("-c", f"import sys, tasks.ledger; print({heavy!r} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


# Tampering

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["champion", "canary"]),
        st.integers(1, 2**31 - 1),
        st.sampled_from(["promoted", "rolled_back"]),
        WORDS,
    ),
    max_size=5,
)
TURNS = iter(range(10**6))


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES)
def test_any_history_checks_clean(shared, moves):
    model = f"model-{next(TURNS)}"
    written = [
        append(shared, model=model, alias=alias, version=version, action=action, reason=reason)
        for alias, version, action, reason in moves
    ]
    entries = shared.entries(model)
    assert sorted(written, key=lambda entry: (entry.alias, entry.sequence)) == entries
    assert shared.check(model, [entry.witness for entry in written]) == []


class History:
    """A ledger of three chains that is changed by hand and put back as it was."""

    def __init__(self, url):
        self.ledger = Ledger(url, now=lambda: START)
        for _ in range(5):
            append(self.ledger, evidence=OTHER, run="run-1")
        for _ in range(2):
            append(self.ledger, alias="canary")
        append(self.ledger, model="cloud")
        self.rows = [entry.model_dump() for entry in self.ledger.entries()]
        self.witnesses = [entry.witness for entry in self.ledger.entries()]
        self.engine = create_engine(url)
        with forging(url):
            pass

    def put(self, rows):
        """Makes the table hold exactly these rows."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM stillmark_ledger"))
            connection.execute(insert(ENTRIES), rows)

    def check(self, rows, *, seen=False):
        self.put(rows)
        return self.ledger.check(witnesses=self.witnesses if seen else ())


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def history(request, tmp_path_factory):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('history') / 'ledger.db'}"
    else:
        url = request.getfixturevalue("postgres").database()
    made = History(url)
    yield made
    made.engine.dispose()


def place(row):
    return row["model"], row["alias"], row["sequence"]


def sealed(row, **changes):
    """A row whose changes were covered up by a new digest."""
    fresh = row | changes
    return fresh | {"digest": digest_of_row(fresh)}


def relinked(rows):
    """A chain that was sealed again from its first row on."""
    made = []
    for row in rows:
        made.append(sealed(row, previous=made[-1]["digest"] if made else None))
    return made


CHANGED = {
    "format": st.just("stillmark-ledger/2"),
    "model": st.sampled_from(["cloud", "edge", "x"]),
    "alias": st.sampled_from(["champion", "canary", "x"]),
    "sequence": st.integers(9, 2**31 - 1),
    "action": st.sampled_from(["rolled_back", "moved"]),
    "version": st.integers(2, 2**31 - 1),
    "previous_version": st.integers(2, 2**31 - 1),
    **dict.fromkeys(["content", "record", "evidence", "previous", "digest"], st.just("f" * 64)),
    **dict.fromkeys(["actor", "reason", "time", "evidence_run"], WORDS),
    "intent": st.text("0123456789abcdef", min_size=32, max_size=32),
}


def test_every_column_is_tampered_with():
    assert CHANGED.keys() == Entry.model_fields.keys()


@settings(max_examples=120)
@given(draw=st.data())
def test_a_changed_row_is_named_and_only_it(history, draw):
    at = draw.draw(st.integers(0, len(history.rows) - 1), label="row")
    column = draw.draw(st.sampled_from(sorted(CHANGED)), label="column")
    value = draw.draw(CHANGED[column], label="value")
    row = history.rows[at]
    changed = row | {column: value}
    taken = [place(other) for other in history.rows]
    if value == row[column] or (column in ("model", "alias") and place(changed) in taken):
        return
    found = history.check([*history.rows[:at], changed, *history.rows[at + 1 :]])
    names = {place(row)}
    if row["model"] == "cloud" and column in ("model", "alias"):
        names = {place(changed)}  # its chain is gone with it: nothing says where it was
    assert accused(found) == names
    assert all(
        finding.sentence.startswith(f"{finding.model}@{finding.alias} row {finding.sequence} ")
        for finding in found
    )


@pytest.mark.parametrize("column", sorted(CHANGED))
def test_every_column_of_a_row_in_the_middle(history, column):
    value = {"model": "x", "alias": "x", "sequence": 0, "version": 77, "previous_version": None}
    rows = [dict(row) for row in history.rows]
    target = next(row for row in rows if place(row) == ("edge", "champion", 3))
    target[column] = value.get(column, "f" * 64)
    assert accused(history.check(rows)) == {("edge", "champion", 3)}
    assert accused(history.check(rows, seen=True)) == {("edge", "champion", 3)}


@pytest.mark.parametrize("at", range(8))
def test_a_removed_row_is_named(history, at):
    gone = history.rows[at]
    rest = [row for row in history.rows if row is not gone]
    # Only a witness can tell that the last row of a chain was ever there.
    is_last = not any(place(row) == (*place(gone)[:2], gone["sequence"] + 1) for row in rest)
    assert accused(history.check(rest)) == (set() if is_last else {place(gone)})
    assert accused(history.check(rest, seen=True)) == {place(gone)}


@settings(max_examples=30)
@given(pair=st.sets(st.integers(0, 7), min_size=2, max_size=2))
def test_swapped_rows_are_both_named(history, pair):
    one, other = (history.rows[at] for at in sorted(pair))
    places = ("model", "alias", "sequence")
    swap = [one | {name: other[name] for name in places}]
    swap += [other | {name: one[name] for name in places}]
    rest = [row for row in history.rows if row not in (one, other)]
    found = history.check([*rest, *swap])
    assert accused(found) == {place(one), place(other)}
    assert all("was moved" in finding.sentence for finding in found)


def champion(history):
    return [dict(row) for row in history.rows if place(row)[:2] == ("edge", "champion")]


def others(history):
    return [row for row in history.rows if place(row)[:2] != ("edge", "champion")]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_row_that_was_rewritten_and_sealed_again_is_named(history, number):
    rows = champion(history)
    rows[number - 1] = sealed(rows[number - 1], version=66)
    found = history.check([*others(history), *rows])
    assert accused(found) == {("edge", "champion", number)}
    assert "rewritten" in found[0].sentence


def test_a_link_that_was_rewritten_and_sealed_again_is_named(history):
    rows = champion(history)
    rows[2] = sealed(rows[2], previous="f" * 64)
    assert accused(history.check([*others(history), *rows])) == {("edge", "champion", 3)}


def test_of_the_last_two_rows_a_witness_says_which_was_rewritten(history):
    rows = champion(history)
    rows[4] = sealed(rows[4], previous="f" * 64)
    (found,) = history.check([*others(history), *rows])
    assert found.sequence == 4
    assert "unless" in found.sentence
    assert accused(history.check([*others(history), *rows], seen=True)) == {("edge", "champion", 5)}
    (found,) = judge(rows, history.witnesses[3:7])  # that of row 5 is missing
    assert found.sequence == 5


def test_a_history_rewritten_from_one_row_on_needs_a_witness(history):
    rows = champion(history)
    rows[2] |= {"version": 66}
    rows = relinked(rows)
    assert history.check([*others(history), *rows]) == []
    names = {("edge", "champion", number) for number in (3, 4, 5)}
    assert accused(history.check([*others(history), *rows], seen=True)) == names


def test_a_row_pushed_in_is_named_with_those_it_pushed_on(history):
    rows = champion(history)
    pushed = [row | {"sequence": row["sequence"] + 1} for row in rows[2:]]
    stranger = sealed(rows[2], intent="0" * 32, version=66)
    found = history.check([*others(history), *rows[:2], stranger, *pushed])
    assert accused(found) == {("edge", "champion", number) for number in (3, 4, 5)}
    assert "not the one sealed as such" in found[0].sentence


def test_a_row_put_past_the_end_leaves_a_gap(history):
    stranger = sealed(champion(history)[4], sequence=1000, intent="0" * 32)
    (found,) = history.check([*history.rows, stranger])
    assert (found.sequence, "to row 999 are missing" in found.sentence) == (6, True)


def test_a_copy_of_a_row_is_named(history):
    rows = champion(history)
    rows[3] = rows[1] | {"sequence": 4}
    found = judge(rows)
    assert accused(found) == {("edge", "champion", 4)}
    assert "copy of row 2" in found[0].sentence


def test_a_second_row_with_the_same_number_is_named(history):
    rows = champion(history)
    assert accused(judge([*rows, sealed(rows[1], version=66)])) == {("edge", "champion", 2)}


def test_a_sealed_row_that_is_no_entry_is_named(history):
    rows = champion(history)
    rows[4] = sealed(rows[4], action="moved")
    (found,) = history.check([*others(history), *rows])
    assert (found.sequence, "no entry: action" in found.sentence) == (5, True)


def test_a_first_row_has_none_before_it(history):
    rows = [sealed(champion(history)[0], previous="f" * 64)]
    (found,) = judge(rows)
    assert "is the first" in found.sentence


def test_values_that_no_json_has_count_as_changed(history):
    rows = champion(history)
    rows[1] = rows[1] | {"reason": b"\xff"}
    assert accused(judge(rows)) == {("edge", "champion", 2)}


def test_a_witness_of_another_model_is_not_heard(history):
    history.put(history.rows)
    stranger = Witness("cloud", "champion", 9, OTHER)
    assert history.ledger.check("edge", [stranger]) == []
    assert accused(history.ledger.check("cloud", [stranger])) == {("cloud", "champion", 9)}


def test_witnesses_who_contradict_one_another_are_reported(history):
    history.put(history.rows)
    forged = Witness("edge", "champion", 3, OTHER)
    for heard in ([forged, *history.witnesses], [*history.witnesses, forged]):
        assert accused(history.ledger.check(witnesses=heard)) == {("edge", "champion", 3)}


def test_many_changed_rows_are_all_named():
    first = {"model": "edge", "alias": "champion", "action": "promoted", "version": 1}
    first |= {"content": CONTENT, "record": RECORD, "previous_version": None, "actor": "ann"}
    first |= {"reason": "", "time": stamp(START), "evidence": None, "evidence_run": None}
    first |= {"format": "stillmark-ledger/1", "previous": None}
    rows = relinked([first | {"sequence": at, "intent": f"{at:032x}"} for at in range(1, 301)])
    assert judge(rows) == []
    found = judge([row | {"actor": "eve"} for row in rows])
    assert [finding.sequence for finding in found] == list(range(1, 301))
