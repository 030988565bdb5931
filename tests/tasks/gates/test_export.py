import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.export import Export


@pytest.mark.parametrize(
    ("difference", "passed"), [(0.0, True), (1e-3, True), (1.1e-3, False), (5.0, False)]
)
def test_the_largest_difference_decides(side, collect, difference, passed):
    found = collect(side("a", metrics={"export_difference": difference}), side("a"))
    verdict = Export(tolerance=1e-3).judge(found)
    assert verdict.passed is passed
    assert verdict.figures == {"export_difference": difference}
    assert f"by at most {difference:.3g} (asked for: at most 0.001)" in verdict.sentence


def test_a_version_without_the_figure_does_not_pass(side, collect):
    verdict = Export().judge(collect(side("a"), side("a", metrics={"export_difference": 0.0})))
    assert not verdict.passed
    assert "no comparison of the exported with the eager model is on record" in verdict.sentence


def test_params_yaml_says_how_much():
    assert GATES.parse({"name": "export"}) == Export(tolerance=1e-3)
    with pytest.raises(ParamsError, match="tolerance"):
        GATES.parse({"name": "export", "tolerance": 0.0})
