import pytest

from tasks.errors import ParamsError
from tasks.triggers import TRIGGERS
from tasks.triggers.data import Data

OLD, NEW = "1" * 32 + ".dir", "2" * 32 + ".dir"


def test_another_version_than_the_last_retrainings_is_a_reason(told, before):
    found = Data().look(told(data=NEW, before=before(data=OLD)))
    assert (found.reason.trigger, found.reason.about) == ("data", NEW)
    assert "it was 111111111111, it is 222222222222" in found.sentence
    rests = Data().look(told(data=OLD, before=before(data=OLD)))
    assert rests.reason is None
    assert "what the last retraining used" in rests.sentence


def test_data_that_nothing_was_trained_on_is_a_reason(told):
    assert Data().look(told(data=NEW, before=None)).reason.about == NEW


def test_so_many_rows_that_wait_are_a_reason_where_asked_for(told, before, arrived):
    same = {"data": OLD, "before": before(data=OLD)}
    signals = told(**same, arrived=arrived(100))
    assert Data().look(signals).reason is None
    assert "arrived" not in signals.asked
    assert Data(arrived=101).look(signals).reason is None
    found = Data(arrived=100).look(signals).reason
    assert (found.trigger, found.about) == ("data", "arrived:rows")
    assert found.figures == {"incoming_rows": 100.0}


def test_a_count_below_one_is_refused():
    with pytest.raises(ParamsError, match=r"triggers\[1\]\.arrived"):
        TRIGGERS.parse({"name": "data", "arrived": 0}, "schedule.triggers[1]")
