import numpy as np
import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.budget import Budget


@pytest.fixture
def measured(side, collect):
    """Ours: 20 KiB and a median of 2 ms; theirs: 10 KiB, and call by call 1.25 times as fast."""
    times = np.asarray([2.0, 1.0, 9.0])
    ours = side("aa", size_bytes=20 * 1024, latency_ms=times)
    theirs = side("aa", size_bytes=10 * 1024, latency_ms=times / np.asarray([1.25, 1.0, 3.0]))
    return {"first": collect(ours), "later": collect(ours, theirs)}


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("size_kib", 20.0, "size (KiB)"),
        ("size_ratio", 2.0, "size ratio"),
        ("latency_ms", 2.0, "latency ms"),
        ("latency_ratio", 1.25, "latency ratio"),
    ],
)
def test_a_limit_holds_up_to_itself(measured, limit, value, words):
    within = Budget(**{limit: value}).judge(measured["later"])
    assert within.passed
    assert within.figures[limit] == value
    assert within.sentence == (
        f"within budget: closest to its limit is {words} {value:g} of at most {value:g} (100% used)"
    )
    over = Budget(**{limit: value * 0.999}).judge(measured["later"])
    assert not over.passed
    assert over.sentence == f"over budget: {words} {value:g} of at most {value * 0.999:g}"


def test_the_limit_that_binds_is_named(measured):
    verdict = Budget(size_kib=100.0, latency_ms=2.5, latency_ratio=2.0).judge(measured["later"])
    assert "closest to its limit is latency ms 2 of at most 2.5 (80% used)" in verdict.sentence


def test_every_limit_that_is_broken_is_named_the_furthest_first(measured):
    verdict = Budget(size_kib=19.0, latency_ms=1.0, size_ratio=3.0).judge(measured["later"])
    assert verdict.sentence == (
        "over budget: latency ms 2 of at most 1, size (KiB) 20 of at most 19"
    )


def test_the_ratio_is_that_of_calls_that_took_turns(side, collect):
    """A host that slowed down for both alike changes no ratio."""
    times = np.asarray([1.0, 1.0, 50.0, 60.0, 70.0])
    ours = side("a", latency_ms=times * 0.9)
    evidence = collect(ours, side("a", latency_ms=times))
    assert Budget(latency_ratio=1.0).judge(evidence).figures["latency_ratio"] == 0.9


def test_a_first_version_has_no_ratio(measured):
    verdict = Budget(latency_ratio=0.1, size_kib=20.0).judge(measured["first"])
    assert verdict.passed
    assert "latency_ratio: first version, there is no champion" in verdict.sentence
    assert not Budget(latency_ratio=0.1, size_kib=19.0).judge(measured["first"]).passed
    alone = Budget(size_ratio=0.1).judge(measured["first"])
    assert alone.passed
    assert alone.sentence.startswith("size_ratio: first version")


def test_what_was_not_measured_does_not_pass(side, collect):
    none = np.zeros(0)
    evidence = collect(side("a", latency_ms=none), side("a", latency_ms=none))
    for limit in ("latency_ms", "latency_ratio"):
        verdict = Budget(**{limit: 1.0}).judge(evidence)
        assert not verdict.passed
        assert f"{limit} was not measured" in verdict.sentence
    assert Budget(size_kib=10.0).judge(evidence).passed


def test_a_budget_without_a_limit_is_refused():
    with pytest.raises(ParamsError, match="needs a limit: set one of size_kib, size_ratio"):
        GATES.parse({"name": "budget"})
    with pytest.raises(ParamsError, match="size_kib"):
        GATES.parse({"name": "budget", "size_kib": 0.0})
    with pytest.raises(ParamsError, match="did you mean 'size_kib'"):
        GATES.parse({"name": "budget", "size_kb": 10.0})
    assert GATES.parse({"name": "budget", "latency_ms": 5}) == Budget(latency_ms=5.0)
