import json
import shutil
import sqlite3

import pytest

from flows.cli import main
from tasks.gates.budget import Budget
from tasks.promote import PromoteParams, promote, rollback
from tasks.settings import Settings
from tasks.succession import CHAMPION, Succession

NAME = "digits.edge"
ANY = PromoteParams(gates=(Budget(size_kib=1000.0),), latency_calls=10)
ASKED = PromoteParams(gates=(Budget(size_kib=1000.0),), latency_calls=10, approval=True)


@pytest.fixture
def challenge(bench, toy):
    """Registers a version that any gate lets pass, and lets it ask for the alias."""

    def ask(salt, params=ANY):
        version = bench.tracking.register(NAME, toy.make(bench, "good", salt), {})
        return promote.fn(bench.run, params, version)

    return ask


@pytest.fixture
def story(challenge):
    """Two promotions and a rollback, row by row."""
    challenge(1)
    challenge(2)
    rollback.fn(NAME, None, "it shouts at customers")
    return Succession.of(Settings()).ledger.entries(NAME)


@pytest.fixture
def history(capsys):
    """Runs the command; gives its exit code, what it said, and its lines on stderr."""

    def run(*options, name=NAME):
        code = main(["history", name, *options])
        caught = capsys.readouterr()
        return code, caught.out, caught.err.splitlines()

    return run


def files_of(bench, entry):
    """Where the evidence of a ledger row really lies, to damage it."""
    uri = bench.tracking.client.get_run(entry.evidence_run).info.artifact_uri
    return bench.tracking._download(uri)


def test_it_says_who_was_champion_when_by_whom_why_and_on_which_evidence(story, history):
    code, text, errors = history()
    assert (code, errors) == (0, [])
    lines = text.splitlines()
    heads, reasons = lines[::2], [line.strip() for line in lines[1::2]]
    assert reasons == [entry.reason for entry in story]
    assert reasons[2] == "it shouts at customers"
    done = [
        "promoted: version 1, by",
        "promoted: version 2, after version 1, by",
        "rolled back: version 1, after version 2, by",
    ]
    for head, entry, words in zip(heads, story, done, strict=True):
        evidence = entry.evidence[:12] if entry.evidence else "none"
        time = f"{entry.time[:19]}Z"
        start = f"{entry.sequence:>4}  {time}  {words} {entry.actor}, "
        assert head == f"{start}evidence {evidence}"


def test_machines_get_every_field_of_every_row(story, history):
    code, text, errors = history("--json")
    assert (code, errors) == (0, [])
    assert json.loads(text) == {
        "model": NAME,
        "entries": [entry.model_dump() for entry in story],
        "requests": [],
        "problems": [],
    }


def test_a_model_that_never_had_a_champion_and_what_waits_for_one(challenge, history):
    request = challenge(1, ASKED).request
    code, text, _ = history()
    assert code == 0
    first, waiting = text.splitlines()
    assert first == "digits.edge never had a champion"
    assert waiting.startswith("waiting: version 1, asked ")
    assert waiting.endswith(f"; `stillmark approve {request} --reason …`")


@pytest.mark.parametrize("options", [[], ["--check"], ["--recheck"], ["--json"]])
def test_an_unknown_model_is_one_line(story, history, options):
    code, text, errors = history(*options, name="digits.edg")
    assert (code, text) == (2, "")
    (line,) = errors
    assert line.startswith("stillmark: no model 'digits.edg'; did you mean 'digits.edge'?")


def test_before_the_first_run_it_says_what_to_run(bench, history):
    code, text, errors = history()
    assert (code, text) == (2, "")
    assert errors == ["stillmark: no model 'digits.edge'; run `stillmark retrain` first"]


def test_a_clean_ledger_is_verified(story, history):
    code, text, errors = history("--check", "--recheck")
    assert (code, errors) == (0, [])
    assert text.splitlines()[-1] == "verified: rows, links and alias, evidence"
    assert history("--check")[1].splitlines()[-1] == "verified: rows, links and alias"
    assert history("--recheck")[1].splitlines()[-1] == "verified: evidence"
    assert "verified" not in history()[1]


def test_an_alias_that_was_moved_by_hand_is_named(bench, story, history):
    bench.tracking.client.set_registered_model_alias(NAME, CHAMPION, "2")
    moved = (
        "the alias 'champion' of digits.edge was moved by hand: it is at version 2, the ledger "
        "says 1 (row 3); settle it with `stillmark rollback digits.edge --to 2 --reason …`"
    )
    assert history("--check") == (1, "", [f"stillmark: {moved}"])
    code, text, errors = history("--check", "--json")
    assert (code, errors) == (1, [])
    assert json.loads(text)["problems"] == [moved]
    assert history()[0] == 0


def test_a_row_that_was_changed_is_named(bench, story, history):
    with sqlite3.connect(bench.root / "ledger.db") as connection:
        connection.execute("DROP TRIGGER stillmark_no_update")
        connection.execute("UPDATE stillmark_ledger SET reason = 'well' WHERE sequence = 2")
    connection.close()
    code, text, errors = history("--check")
    assert (code, text) == (1, "")
    (line,) = errors
    assert line.startswith("stillmark: digits.edge@champion row 2 was changed: ")


def test_damaged_evidence_is_named(bench, story, history):
    path = files_of(bench, story[0]) / "facts.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    code, text, errors = history("--recheck")
    assert (code, text) == (1, "")
    (line,) = errors
    assert line.startswith("stillmark: row 1 of digits.edge@champion: the evidence has sha256 ")
    assert history("--check")[0] == 0


def test_a_verdict_that_was_written_by_hand_is_named(bench, story, history):
    path = files_of(bench, story[1]) / "judgement.json"
    path.write_bytes(path.read_bytes().replace(b"within budget", b"way below budget"))
    code, _, (changed, verdict) = history("--recheck")
    assert code == 1
    assert changed.startswith("stillmark: row 2 of digits.edge@champion: the evidence has sha256 ")
    assert "row 2 of digits.edge@champion: gate budget said: way below budget" in verdict


def test_evidence_that_is_gone_is_named(bench, story, history):
    shutil.rmtree(files_of(bench, story[1]))
    code, text, errors = history("--recheck")
    assert (code, text) == (1, "")
    (line,) = errors
    assert line.startswith("stillmark: row 2 of digits.edge@champion: ")
