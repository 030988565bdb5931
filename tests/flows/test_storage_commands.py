"""What the commands about storage say to people."""

import pytest

from flows.backfill import Backfilled, Filled
from flows.storage_commands import filled_lines, lines, said
from tasks.collect import Collected, Item


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (5_600_000, "5.6 MB"),
        (7e12, "7e+03 GB"),
    ],
)
def test_sizes_are_short(size, text):
    assert said(size) == text


def found(**more):
    items = [Item(kind="model", name=f"m-{at}", size_bytes=1000) for at in range(25)]
    items.append(Item(kind="data", name="0a.dir", size_bytes=500))
    return Collected(dry_run=True, items=tuple(items), **more)


def test_bytes_are_said_by_kind_and_the_first_names_of_each():
    text = list(lines(found(left=("a cache: shared",), problems=("m-1: denied",))))
    assert text[0].split() == ["25", "kB", "25", "stored", "models"]
    assert sum("m-" in line for line in text[:-1]) == 20
    assert "and 5 more, which --json names" in "\n".join(text)
    assert any("0a.dir" in line for line in text)
    assert text[-3:] == [
        "25.5 kB would be freed",
        "left: a cache: shared",
        "not deleted: m-1: denied",
    ]
    assert found().freed == {"model": (25, 25_000), "data": (1, 500)}


def test_nothing_is_said_to_be_nothing():
    assert list(lines(Collected(dry_run=False, items=()))) == ["nothing to collect"]


def test_a_backfill_is_a_line_for_each_data_version():
    facts = {"commit": "c" * 40, "date": "2026-01-10T12:00:00+00:00"}
    made = Filled(
        data="a" * 32 + ".dir",
        rows=270,
        test_rows=36,
        versions={"edge": 4},
        accuracy=(0.9, 0.8, 0.95),
        trained=7,
        outcome="registered",
        sentence="7 stages trained",
        **facts,
    )
    lost = Filled(data="b" * 32 + ".dir", outcome="failed", sentence="no label", **facts)
    head, first, second, last = filled_lines(Backfilled(code="d" * 64, filled=(made, lost)))
    assert first.split()[:5] == ["2026-01-10", "a" * 12, "270", "36", "4"]
    assert "90.00% (80.0%–95.0%)" in first
    assert first.endswith("registered: 7 stages trained")
    assert second.endswith("failed: no label")
    assert len(head.split("outcome")) == 2
    assert "d" * 12 in last
    assert (made.failed, lost.failed) == (False, True)
