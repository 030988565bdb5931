import signal
from dataclasses import replace

import pytest
from prefect.exceptions import TerminationSignal

from tasks.errors import BusyError, DataError
from tasks.journal import Facts, Journal, sections_of
from tasks.reasons import BY_HAND, Reason
from tasks.refs import DataRef

DRIFT = Reason(trigger="drift", sentence="rows differ", figures={"p": 0.01}, about="ab" * 32)
DATA = DataRef(raw="1.dir", prepared="2.dir", manifest="3", content="4")


def facts(reason=BY_HAND):
    return Facts(reason=reason, code="c", sections={"distill": "d"}, flow_run="f")


@pytest.fixture
def journal(bench):
    return Journal(bench.tracking, bench.run.project)


def test_an_entry_tells_its_reason_and_its_end(journal):
    with journal.write(facts(DRIFT)) as page:
        assert journal.newest(1)[0].outcome == "running"
        assert journal.newest(1)[0].ended is None
        page.data, page.outcome, page.sentence = DATA, "rejected", "not better"
    (entry,) = journal.newest(5)
    assert (entry.reason, entry.code, entry.sections, entry.flow_run) == (
        DRIFT,
        "c",
        {"distill": "d"},
        "f",
    )
    assert (entry.outcome, entry.sentence) == ("rejected", "not better")
    assert (entry.raw, entry.content, entry.sequence) == ("1.dir", "4", 1)
    assert entry.ended >= entry.started
    assert entry == journal.entry(entry.run_id)


def test_what_was_trained_for_it_is_counted(journal, bench, toy):
    toy.make(bench, salt=7)
    with journal.write(facts()) as page:
        mine = replace(bench, run=replace(bench.run, journal=page.run_id))
        toy.make(mine, salt=7)  # reused: made before this entry
        toy.make(mine, salt=8)
        page.outcome = "promoted"
    (entry,) = journal.newest(5)
    assert entry.trained == 1
    (run,) = [one for one in bench.runs(stage="guess") if one.data.tags.get("mlflow.parentRunId")]
    took = (run.info.end_time - run.info.start_time) / 1000
    assert entry.training_seconds == pytest.approx(took)


@pytest.mark.parametrize(
    ("error", "outcome", "said", "status"),
    [
        (DataError("data/ is empty"), "failed", "DataError: data/ is empty", "FAILED"),
        (BusyError("another run"), "gave_way", "BusyError: another run", "FINISHED"),
        (SystemExit(143), "killed", "ended by SIGTERM", "KILLED"),
        (KeyboardInterrupt(), "killed", "ended by SIGINT", "KILLED"),
        (TerminationSignal(signal.SIGTERM), "killed", "ended by SIGTERM", "KILLED"),
    ],
)
def test_an_entry_ends_with_what_stopped_it(journal, bench, error, outcome, said, status):
    with pytest.raises(type(error)), journal.write(facts()):
        raise error
    (entry,) = journal.newest(5)
    assert (entry.outcome, entry.sentence) == (outcome, said)
    assert bench.tracking.client.get_run(entry.run_id).info.status == status


def test_later_ones_have_higher_numbers(journal):
    with journal.write(facts()) as page:
        page.outcome, page.sentence = "unchanged", "nothing new"
    with pytest.raises(DataError), journal.write(facts()):
        raise DataError("no")
    assert [one.sequence for one in journal.newest(9)] == [2, 1]


def test_another_project_has_another_journal(journal, bench):
    with journal.write(facts()) as page:
        page.outcome = "promoted"
    assert Journal(bench.tracking, "other").newest(9) == []


def test_sections_that_train_nothing_are_no_part_of_it():
    tree = {"distill": {"steps": 1}, "schedule": {"every_minutes": 5}, "budget": None}
    assert sections_of(tree).keys() == {"distill"}
    assert sections_of(tree) != sections_of({"distill": {"steps": 2}})
    assert sections_of(tree) == sections_of(tree | {"schedule": None})
