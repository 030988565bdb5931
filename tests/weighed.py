"""Models as `weigh` finds them, with costs that a test makes up."""

from tasks.measure import Cost
from tasks.statistics import Gain, Share
from tasks.weigh import Weighed

SHARE = (0.95, 0.85, 0.982)


def weighed(
    name,
    size_bytes=2048,
    latency_ms=1.0,
    interval=(None, None),
    *,
    accuracy=SHARE,
    memory_kib=500.0,
    drop=0.0,
):
    """A model of that size, latency (its interval may be unknown) and accuracy with interval.

    `drop` is what it loses against the reference.
    """
    cost = Cost(
        size_bytes=size_bytes,
        parameters=1,
        macs=1,
        latency_p50_ms=latency_ms,
        latency_p95_ms=latency_ms,
        throughput_rows_per_second=1.0,
        peak_memory_kib=memory_kib,
        latency_low_ms=interval[0],
        latency_high_ms=interval[1],
    )
    return Weighed(
        name=name,
        cost=cost,
        accuracy=Share(*accuracy, 100),
        drop=Gain(drop, drop, drop),
        agreement=None,
    )
