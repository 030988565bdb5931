"""The marks of `throughput`, from a short run."""

import pytest

from tests.benchmarks import throughput

SHORT = throughput.Options(rounds=5, patience=60.0)


MADE = [make() for make in throughput.COMPARISONS]
SIDES = {side.what: side for one in MADE for side in (one.above, one.below)}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_every_side_runs_an_epoch(side):
    side.start(throughput.random_part(throughput.BATCH), 1)()


@pytest.mark.benchmark
@pytest.mark.parametrize(
    "comparison",
    [comparison for comparison in throughput.COMPARISONS if comparison().mark],
    ids=lambda comparison: comparison.__name__,
)
def test_the_mark_is_met(comparison):
    finding = throughput.measure(comparison(), SHORT)
    if not finding.quiet and not finding.met:
        pytest.skip(f"other processes disturb the machine: {finding.plain()}")
    assert finding.met, finding.plain()
