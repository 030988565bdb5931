import pytest

from tasks.errors import ParamsError
from tasks.triggers import TRIGGERS
from tasks.triggers.cron import Cron


def test_a_file_is_a_trigger_and_by_hand_is_none():
    assert list(TRIGGERS.methods) == ["code", "cron", "data", "drift", "performance"]
    with pytest.raises(ParamsError, match="unknown name 'hand'"):
        TRIGGERS.parse({"name": "hand"})


def test_an_answer_gives_a_reason_or_none():
    cron = Cron(expression="0 3 * * *")
    assert cron.rests("not yet").reason is None
    found = cron.fires("it is three", "cron:3", hours=3)
    assert found.trigger == "cron"
    assert found.reason.model_dump() == {
        "trigger": "cron",
        "sentence": "it is three",
        "figures": {"hours": 3.0},
        "about": "cron:3",
    }
