import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.freshness import Freshness


@pytest.mark.parametrize(
    ("age", "passed"), [(0.0, True), (29.9, True), (30.0, True), (30.01, False), (-0.01, False)]
)
def test_data_is_at_most_so_old_and_not_of_the_future(side, collect, age, passed):
    verdict = Freshness(days=30.0).judge(collect(side("a"), data_age_days=age))
    assert verdict.passed is passed
    assert verdict.figures == {"data_age_days": age}


def test_the_sentence_gives_both_figures(side, collect):
    def sentence(age):
        return Freshness(days=30.0).judge(collect(side("a"), data_age_days=age)).sentence

    assert sentence(30.01) == "its data is 30.01 days old (asked for: at most 30)"
    assert sentence(-0.0) == sentence(0.0)
    assert sentence(-2.0) == "its data is dated 2.00 days in the future: set the clock right"


def test_params_yaml_says_how_many_days():
    assert GATES.parse({"name": "freshness", "days": 30}) == Freshness(days=30.0)
    with pytest.raises(ParamsError, match="days' is missing"):
        GATES.parse({"name": "freshness"})
    with pytest.raises(ParamsError, match="days"):
        GATES.parse({"name": "freshness", "days": 0.0})
