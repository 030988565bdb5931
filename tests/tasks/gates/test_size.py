import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.size import Size


@pytest.mark.parametrize(
    ("ratio", "passed"), [(0.1, True), (0.3, True), (0.31, False), (1.2, False)]
)
def test_the_ratio_as_measured_decides(side, collect, ratio, passed):
    found = collect(side("a", metrics={"size_ratio": ratio}), side("a"))
    verdict = Size(largest_ratio=0.3).judge(found)
    assert verdict.passed is passed
    assert verdict.figures == {"size_ratio": ratio}
    assert f"{ratio:.2%} of the float model's" in verdict.sentence
    assert "at most 30.00%" in verdict.sentence


def test_a_version_without_the_figure_does_not_pass(side, collect):
    verdict = Size().judge(collect(side("a"), side("a", metrics={"size_ratio": 0.1})))
    assert not verdict.passed
    assert verdict.figures == {}
    assert "no size of the float model that it was quantized from is on record" in verdict.sentence


def test_params_yaml_says_how_much():
    assert GATES.parse({"name": "size"}) == Size(largest_ratio=0.5)
    for wrong in (0.0, 1.0):
        with pytest.raises(ParamsError, match="largest_ratio"):
            GATES.parse({"name": "size", "largest_ratio": wrong})
