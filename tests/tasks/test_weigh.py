import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError, ParamsError
from tasks.sections import parse
from tasks.tracking import payload_of
from tasks.weigh import (
    BudgetParams,
    Found,
    Limits,
    WeighParams,
    choose,
    front,
    labelled_validation,
    weigh,
)
from tests.weighed import weighed

QUICK = WeighParams(latency_calls=3, host="this one")


# What was measured


def test_candidates_are_held_against_the_reference_on_the_same_rows(bench, toy):
    good, lazy = toy.make(bench), toy.make(bench, "lazy")
    ref = weigh._run(bench.run, QUICK, reference=good, same=toy.make(bench, salt=1), lazy=lazy)
    found = Found.read(payload_of(bench.tracking.fetch(ref).folder))
    assert [one.name for one in found.candidates] == ["same", "lazy"]
    same, worse = found.candidates
    assert (same.drop.value, same.agreement) == (0.0, 1.0)
    assert same.accuracy == found.reference.accuracy
    lost = found.reference.accuracy.value - worse.accuracy.value
    assert worse.drop.value == pytest.approx(lost)
    assert lost > 0.3
    assert worse.agreement < 0.7
    for one in (found.reference, *found.candidates):
        assert one.cost.latency_low_ms <= one.cost.latency_p50_ms <= one.cost.latency_high_ms
    assert found.reference.cost.latency_ratio == 1
    quotient = worse.cost.latency_p50_ms / found.reference.cost.latency_p50_ms
    assert worse.cost.latency_ratio == pytest.approx(quotient)
    file = payload_of(bench.files(good)) / "model.onnx"
    assert found.reference.cost.size_bytes == file.stat().st_size


OLD = {
    "rows": 20,
    "host": "a processor",
    "reference": {
        "name": "reference",
        "cost": {
            "size_bytes": 2048,
            "parameters": 7,
            "macs": 70,
            "latency_p50_ms": 0.2,
            "latency_p95_ms": 0.3,
            "throughput_rows_per_second": 9000.0,
            "peak_memory_kib": 64.0,
        },
        "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95, "rows": 20},
        "drop": {"value": 0.0, "low": 0.0, "high": 0.0},
        "agreement": 1.0,
    },
    "candidates": [],
}


def test_a_report_from_before_latencies_had_intervals_is_read(tmp_path):
    (tmp_path / "weighed.json").write_text(json.dumps(OLD))
    cost = Found.read(tmp_path).reference.cost
    assert (cost.latency_p50_ms, cost.latency_low_ms, cost.latency_ratio) == (0.2, None, None)


def test_without_validation_labels_nothing_is_chosen():
    rows = SimpleNamespace(validation=())
    with pytest.raises(DataError, match=r"raise prepare\.validation_labels_per_class"):
        labelled_validation(rows)


# What a budget is


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {},
            "a budget needs a limit: set one of size_kb, latency_ms, memory_kb, max_accuracy_drop",
        ),
        ({"size_kb": 0}, "'budget.size_kb' is 0"),
        ({"size_kb": 8, "sise": 1}, "unknown parameter 'budget.sise'"),
        (
            {"size_kb": 8, "space": {"widths": [1, 1.0], "precisions": [{"name": "float32"}]}},
            "widths holds a choice twice",
        ),
        ({"size_kb": 8, "space": {"widths": [0.5], "precisions": [{"name": "int3"}]}}, "int3"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(tree, message):
    with pytest.raises(ParamsError, match=message):
        parse(BudgetParams, tree, "budget")


def test_shares_of_the_limits_that_are_set():
    one = weighed("a", size_bytes=2048, latency_ms=3.0, memory_kib=100.0, drop=0.01)
    assert one.spent(Limits(size_kb=4.0, max_accuracy_drop=0.02)) == {
        "size_kb": 0.5,
        "max_accuracy_drop": 0.5,
    }
    assert one.spent(Limits(latency_ms=1.5, memory_kb=200.0)) == {
        "latency_ms": 2.0,
        "memory_kb": 0.5,
    }
    assert one.spent(Limits(max_accuracy_drop=0.0)) == {"max_accuracy_drop": math.inf}
    better = weighed("b", drop=-0.1)
    assert better.spent(Limits(max_accuracy_drop=0.0)) == {"max_accuracy_drop": 0.0}
    edge = weighed("c", drop=1 - 0.95)  # 0.05000000000000004
    assert edge.spent(Limits(max_accuracy_drop=0.05)) == {"max_accuracy_drop": 1.0}


# The front, and the choice

FIGURES = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(FIGURES, min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(figures):
    models = [
        weighed(str(at), accuracy=(accuracy / 4,) * 3, size_bytes=size, latency_ms=float(latency))
        for at, (accuracy, size, latency) in enumerate(figures)
    ]
    kept = {one.name for one in front(models)}
    for at, (accuracy, size, latency) in enumerate(figures):
        beaten = any(
            (a, s, t) != (accuracy, size, latency) and a >= accuracy and s <= size and t <= latency
            for a, s, t in figures
        )
        assert (str(at) in kept) == (not beaten)
    sizes = [one.cost.size_bytes for one in front(models)]
    assert sizes == sorted(sizes)


def test_the_cheapest_inside_is_chosen_and_the_closest_limit_named():
    models = [
        weighed("tiny", size_bytes=1024, drop=0.2),
        weighed("small", size_bytes=4096, drop=0.01),
        weighed("also small", size_bytes=4096, latency_ms=0.5),
        weighed("large", size_bytes=9000),
    ]
    found = choose(models, Limits(size_kb=8.0, max_accuracy_drop=0.02))
    assert found.chosen.name == "also small"
    assert (found.binding, found.used) == ("size_kb", 0.5)


def test_where_nothing_fits_the_nearest_miss_and_its_limit_are_named():
    models = [
        weighed("slow", latency_ms=3.0, size_bytes=1024),
        weighed("large", latency_ms=1.0, size_bytes=5120),
    ]
    found = choose(models, Limits(size_kb=2.0, latency_ms=2.0))
    assert found.chosen is None
    assert (found.nearest.name, found.binding, found.used) == ("slow", "latency_ms", 1.5)
