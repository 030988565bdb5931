"""The marks of `throughput`, from a short run."""

import pytest

from tests.benchmarks import throughput

pytestmark = pytest.mark.benchmark

SHORT = throughput.Options(rounds=5, patience=60.0)


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
