import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.fit_budget import Fitted, sentence
from flows.front import candidates_table, fitted_as_json, show_fitted
from tasks.weigh import Found, Limits, choose
from tests.weighed import weighed


def fitted(limits, *candidates):
    reference = weighed("reference", 40_960, 0.5, (0.45, 0.55))
    return Fitted(
        limits=limits,
        found=Found(rows=100, host="here", reference=reference, candidates=candidates),
        choice=choose(candidates, limits),
        given_up={"w1 float32": "50.0% of the validation rows [where] others have more"},
        screened=candidates[:1],
        candidates={},
        sections={},
        versions={},
        evaluation=None,
        plot=Path("front.png"),
        flow_run_id="",
    )


SMALL = weighed("w0.5 k0.5 static_int8", 2048, 0.123, (0.1204, 0.1316))
OLD = weighed("w1 static_int8", 20_480, 0.3)


def printed(thing, width):
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    show_fitted(console, thing) if isinstance(thing, Fitted) else console.print(thing)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_every_median_has_its_interval_beside_it(width):
    lines = printed(candidates_table(fitted(Limits(size_kb=4.0), SMALL, OLD)), width).splitlines()
    (first,) = [line for line in lines if "0.123" in line]
    assert "0.120–0.132" in first
    assert "85.0–98.2%" in first
    assert "chosen *" in first
    (second,) = [line for line in lines if "0.300" in line]
    assert "–  over size" in second  # unknown of an old report


def test_people_are_told_what_was_given_up_and_whose_intervals_these_are():
    text = printed(fitted(Limits(size_kb=4.0), SMALL), 120)
    assert "w1 float32: 50.0% of the validation rows [where] others have more" in text
    assert "the interval is of this run of calls" in text


def test_machines_are_told_the_same():
    found = fitted_as_json(fitted(Limits(size_kb=4.0), SMALL, OLD))
    row = next(row for row in found["candidates"] if row["candidate"] == SMALL.name)
    assert (row["latency_low_ms"], row["latency_high_ms"]) == (0.1204, 0.1316)
    assert [row["candidate"] for row in found["screened"]] == [SMALL.name]
    assert found["screened"][0]["low"] == 0.85


@pytest.mark.parametrize(
    ("limit", "doubtful"), [(0.2, False), (0.125, True), (0.1205, True), (0.11, False)]
)
def test_a_limit_inside_the_interval_is_a_doubt(limit, doubtful):
    limits = Limits(latency_ms=limit)
    text = sentence(choose([SMALL], limits), limits)
    assert ("is the cheapest" in text) == (limit > 0.123)
    assert ("either side of the limit (0.120–0.132 ms)" in text) == doubtful
    assert "either side" not in sentence(choose([OLD], limits), limits)
