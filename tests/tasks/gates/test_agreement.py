import numpy as np
import pytest
from scipy.stats import binomtest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.agreement import Agreement


@pytest.fixture
def pooled(side, collect):
    """Two versions that agree on so many of 20 unlabelled rows."""
    return lambda same: collect(
        side("a", pool="a" * 20), side("a", pool="a" * same + "b" * (20 - same))
    )


@pytest.mark.parametrize(("same", "passed"), [(20, True), (18, True), (17, False), (0, False)])
def test_the_share_as_measured_decides(pooled, same, passed):
    verdict = Agreement(at_least=0.9).judge(pooled(same))
    assert verdict.passed is passed
    interval = binomtest(same, 20).proportion_ci(0.95, method="wilson")
    assert verdict.figures == pytest.approx(
        {"agreement": same / 20, "low": interval.low, "high": interval.high, "rows": 20}
    )
    assert f"on {same / 20:.2%} of 20 unlabelled rows" in verdict.sentence
    assert "at least 90.00%" in verdict.sentence


def test_where_nothing_can_be_said_it_passes_and_says_so(side, collect):
    first = Agreement(at_least=1.0).judge(collect(side("a", pool="ab")))
    assert first.passed
    assert "first version" in first.sentence
    empty = Agreement(at_least=1.0).judge(collect(side("a"), side("a")))
    assert empty.passed
    assert "nothing can be said: there is no unlabelled row" in empty.sentence


def test_the_teacher_may_take_the_champions_place(side, collect):
    teacher = np.asarray(list("aaab"))
    found = collect(side("a", pool="aaaa"), side("a", pool="bbbb"), teacher=teacher)
    gate = Agreement(at_least=0.75, against="teacher")
    assert gate.asks_teacher
    verdict = gate.judge(found)
    assert verdict.passed
    assert verdict.figures["agreement"] == 0.75
    assert "same answer as the teacher on 75.00% of 4 unlabelled rows" in verdict.sentence
    assert not Agreement(at_least=0.76, against="teacher").judge(found).passed
    assert not Agreement(at_least=0.75).judge(found).passed


def test_a_first_version_has_a_teacher_to_agree_with(side, collect):
    found = collect(side("a", pool="ab"), teacher=np.asarray(["b", "a"]))
    assert not Agreement(at_least=0.5, against="teacher").judge(found).passed


def test_where_no_teacher_was_asked_it_does_not_pass(side, collect):
    verdict = Agreement(at_least=0.5, against="teacher").judge(collect(side("a", pool="a")))
    assert not verdict.passed
    assert "its teacher was not asked" in verdict.sentence


def test_params_yaml_says_how_much():
    assert GATES.parse({"name": "agreement", "at_least": 0.9}) == Agreement(at_least=0.9)
    assert not Agreement(at_least=0.9).asks_teacher
    with pytest.raises(ParamsError, match="at_least' is missing"):
        GATES.parse({"name": "agreement"})
    for wrong in (0.0, 1.1):
        with pytest.raises(ParamsError, match="at_least"):
            GATES.parse({"name": "agreement", "at_least": wrong})
