"""The picture of a search for a budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.pictures import NEAR_POINTS, Dot, trade_off
from tasks.weigh import KIB, Found, Limits, Weighed, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWO_PANELS_INCHES = 14.0


def draw_front(found: Found, limits: Limits, chosen: str | None, path: Path) -> None:
    """The trade-off of all that was weighed, the best of it as a line, limits as lines.

    On the left accuracy against bytes, on the right against latency, with 95% intervals.
    """
    dots = [_dot(one, chosen) for one in (found.reference, *found.candidates)]
    with trade_off(path, dots, f"{found.rows} validation rows") as axes:
        best = [_dot(one, None) for one in front(found.candidates)]
        axes.plot([dot.size_kib for dot in best], [dot.accuracy for dot in best], ":")
        if limits.size_kb is not None:
            axes.axvline(limits.size_kb, color="C3", linestyle="--")
        right = _beside(axes)
        draw_latencies(right, [found.reference, *found.candidates])
        if limits.latency_ms is not None:
            right.axvline(limits.latency_ms, color="C3", linestyle="--")
        if limits.max_accuracy_drop is not None:
            floor = found.reference.accuracy.value - limits.max_accuracy_drop
            for panel in (axes, right):
                panel.axhline(floor, color="C3", linestyle="--")


def _beside(axes: "Axes") -> "Axes":
    """Axes to the right of others, of the same accuracies, in a picture that becomes wider."""
    figure = cast("Figure", axes.figure)  # `trade_off` draws on no part of another
    grid = figure.add_gridspec(1, 2)
    axes.set_subplotspec(grid[0])
    figure.set_size_inches(TWO_PANELS_INCHES, figure.get_size_inches()[1])
    return figure.add_subplot(grid[1], sharey=axes)


def draw_latencies(axes: "Axes", weighed: Sequence[Weighed]) -> None:
    """Accuracy against median latency, both with their 95% intervals."""
    for one in weighed:
        cost, accuracy = one.cost, one.accuracy
        median, low, high = cost.latency_p50_ms, cost.latency_low_ms, cost.latency_high_ms
        sides = [[median - (median if low is None else low)]]
        sides += [[(median if high is None else high) - median]]
        reach = [[accuracy.value - accuracy.low], [accuracy.high - accuracy.value]]
        place = (median, accuracy.value)
        axes.errorbar(*place, yerr=reach, xerr=sides, fmt="o", color="C0", ecolor="0.8")
        axes.annotate(one.name, place, NEAR_POINTS, textcoords="offset points", fontsize=7)
    axes.margins(x=0.15)  # room for the last name
    axes.set_xlabel("median latency in ms, batch 1, one thread, 95% intervals")


def _dot(one: Weighed, chosen: str | None) -> Dot:
    name = f"{one.name} (chosen)" if one.name == chosen else one.name
    accuracy, cost = one.accuracy, one.cost
    size_kib, latency_ms = cost.size_bytes / KIB, cost.latency_p50_ms
    return Dot(name, size_kib, accuracy.value, accuracy.low, accuracy.high, latency_ms)
