import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.fusion import Fusion


@pytest.mark.parametrize(
    ("share", "passed"), [(1.0, True), (0.99, True), (0.98, False), (0.0, False)]
)
def test_the_share_as_measured_decides(side, collect, share, passed):
    metrics = {"fused_agreement": share, "fused_difference": 0.0123}
    # The champion's own figures play no part.
    champion = side("a", metrics={"fused_agreement": 1.0 - share})
    verdict = Fusion(at_least=0.99).judge(collect(side("a", metrics=metrics), champion))
    assert verdict.passed is passed
    assert verdict.figures == metrics
    assert f"on {share:.2%} of the rows" in verdict.sentence
    assert "at least 99.00%" in verdict.sentence
    assert "by at most 0.0123 of the largest" in verdict.sentence


def test_a_difference_that_was_not_measured_is_not_told(side, collect):
    verdict = Fusion().judge(collect(side("a", metrics={"fused_agreement": 1.0})))
    assert verdict.passed
    assert "differ" not in verdict.sentence


def test_a_version_without_the_figure_does_not_pass(side, collect):
    verdict = Fusion().judge(collect(side("a", metrics={"size_ratio": 0.1}), side("a")))
    assert not verdict.passed
    assert verdict.figures == {}
    assert "no comparison of fused with un-fused int8 outputs is on record" in verdict.sentence
    assert "`stillmark retrain`" in verdict.sentence


def test_params_yaml_says_how_much():
    assert GATES.parse({"name": "fusion"}) == Fusion(at_least=0.99)
    for wrong in (0.0, 1.1):
        with pytest.raises(ParamsError, match="at_least"):
            GATES.parse({"name": "fusion", "at_least": wrong})
