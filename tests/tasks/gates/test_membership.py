import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.membership import Membership


@pytest.mark.parametrize(("auc", "passed"), [(0.5, True), (0.6, True), (0.61, False), (1.0, False)])
def test_the_area_as_measured_decides(side, collect, auc, passed):
    found = collect(side("a", membership=(auc, auc - 0.25, 1.0)), side("a"))
    verdict = Membership(largest=0.6).judge(found)
    assert verdict.passed is passed
    assert verdict.figures == {"auc": auc, "low": auc - 0.25, "high": 1.0}
    assert f"with an AUC of {auc:.3f} (95% interval {auc - 0.25:.3f} to 1.000" in verdict.sentence
    assert "at most 0.600" in verdict.sentence


def test_a_version_that_was_never_attacked_does_not_pass(side, collect):
    verdict = Membership().judge(collect(side("a"), side("a", membership=(0.5, 0.4, 0.6))))
    assert not verdict.passed
    assert "no membership-inference attack on this version" in verdict.sentence


def test_params_yaml_says_how_much():
    assert GATES.parse({"name": "membership"}) == Membership(largest=0.6)
    with pytest.raises(ParamsError, match="largest"):
        GATES.parse({"name": "membership", "largest": 0.4})
