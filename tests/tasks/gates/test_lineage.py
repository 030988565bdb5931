import pytest

from tasks.gates import GATES
from tasks.gates.lineage import Lineage


@pytest.fixture
def traced(side, collect):
    return lambda *faults, clean=True: collect(side("a", lineage=faults, clean=clean))


def test_a_lineage_without_fault_passes(traced):
    verdict = Lineage().judge(traced())
    assert verdict.passed
    assert (
        verdict.sentence == "every record and file of its lineage verified, made by committed code"
    )
    assert verdict.figures == {"faults": 0.0, "clean": 1.0}


def test_one_fault_fails(traced):
    verdict = Lineage().judge(traced("model.onnx\nis missing"))
    assert not verdict.passed
    assert verdict.sentence == "its lineage has 1 fault: model.onnx is missing"


def test_of_many_the_first_is_named_and_all_are_counted(traced):
    verdict = Lineage(clean_tree=False).judge(traced("one is missing", "another", "a third"))
    assert not verdict.passed
    assert verdict.sentence == "its lineage has 3 faults, the first: one is missing"
    assert verdict.figures["faults"] == 3


def test_code_that_was_not_committed_fails_unless_it_is_allowed(traced):
    verdict = Lineage().judge(traced(clean=False))
    assert not verdict.passed
    assert "code that was not committed made it" in verdict.sentence
    allowed = Lineage(clean_tree=False).judge(traced(clean=False))
    assert allowed.passed
    assert "not committed, as is allowed" in allowed.sentence


def test_both_reasons_are_told(traced):
    sentence = Lineage().judge(traced("a fault", clean=False)).sentence
    assert sentence.startswith("its lineage has 1 fault: a fault; code that was not committed")


def test_only_the_challengers_counts(side, collect):
    champion = side("a", lineage=("old",), clean=False)
    assert Lineage().judge(collect(side("a"), champion)).passed


def test_params_yaml_asks_for_it_by_name():
    assert GATES.parse({"name": "lineage", "clean_tree": False}) == Lineage(clean_tree=False)
