"""Pictures of figures, without a display and without matplotlib's global state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 120
NEAR_POINTS = (4, 4)


@dataclass(frozen=True)
class Dot:
    """A model in a picture of the trade-off.

    Attributes:
        name: Written beside it.
        size_kib: Of its file, in units of 1,024 bytes.
        accuracy: Between 0 and 1.
        low: Lower end of the accuracy's 95% interval.
        high: Upper end of it.
        latency_ms: Median call at batch 1 on one thread.
    """

    name: str
    size_kib: float
    accuracy: float
    low: float
    high: float
    latency_ms: float


@contextmanager
def picture(path: Path, width: float = 8.0, height: float = 5.0) -> "Iterator[Axes]":
    """Axes to draw on, which become a PNG file at the end; equal drawings are equal bytes.

    Args:
        path: File to write.
        width: In inches.
        height: In inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots()
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


@contextmanager
def trade_off(path: Path, dots: Sequence[Dot], rows: str) -> "Iterator[Axes]":
    """Accuracy against bytes with intervals, latency as colour; more may be drawn into it.

    Args:
        path: PNG file to write.
        dots: The models.
        rows: Which rows the accuracies are of, for example `500 test rows`.
    """
    sizes, accuracies = [dot.size_kib for dot in dots], [dot.accuracy for dot in dots]
    reach = [[dot.accuracy - dot.low for dot in dots], [dot.high - dot.accuracy for dot in dots]]
    with picture(path) as axes:
        axes.errorbar(sizes, accuracies, yerr=reach, fmt="none", ecolor="0.8", zorder=1)
        latencies = [dot.latency_ms for dot in dots]
        drawn = axes.scatter(sizes, accuracies, c=latencies, cmap="viridis", zorder=2)
        axes.figure.colorbar(drawn, label="median latency in ms, batch 1, one thread")
        for dot in dots:
            place = (dot.size_kib, dot.accuracy)
            axes.annotate(dot.name, place, NEAR_POINTS, textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        axes.margins(x=0.15)  # room for the last name
        axes.set_xlabel("model file in KiB")
        axes.set_ylabel(f"accuracy on {rows}, 95% intervals")
        yield axes
