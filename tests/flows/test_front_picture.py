import numpy as np
import pytest
from PIL import Image

from flows import front_picture
from flows.front_picture import draw_front
from tasks.measure import Cost
from tasks.statistics import Gain, Share
from tasks.weigh import Found, Limits, Weighed


def weighed(name, accuracy, size, latency, low=None, high=None):
    cost = Cost(
        size_bytes=size,
        parameters=1,
        macs=1,
        latency_p50_ms=latency,
        latency_p95_ms=latency,
        throughput_rows_per_second=1.0,
        peak_memory_kib=500.0,
        latency_low_ms=low,
        latency_high_ms=high,
    )
    share = Share(accuracy, accuracy - 0.05, accuracy + 0.02, 100)
    return Weighed(name=name, cost=cost, accuracy=share, drop=Gain(0, 0, 0), agreement=None)


FOUND = Found(
    rows=100,
    host="here",
    reference=weighed("reference", 0.96, 40_960, 2.5),
    candidates=(
        weighed("small", 0.8, 2048, 1.0, 0.9, 1.2),
        weighed("large", 0.95, 20_480, 2.0, 1.5, 2.1),
    ),
)
LIMITS = Limits(size_kb=8.0, latency_ms=1.5, max_accuracy_drop=0.05)


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """The picture's file, and the two parts of it."""
    kept = []

    def watched(*arguments):
        manager = front_picture_trade_off(*arguments)

        class Watched:
            def __enter__(self):
                kept.append(manager.__enter__())
                return kept[0]

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Watched()

    front_picture_trade_off = front_picture.trade_off
    monkeypatch.setattr(front_picture, "trade_off", watched)
    draw_front(FOUND, LIMITS, "small", tmp_path / "front.png")
    left, _colours, right = kept[0].figure.axes
    return tmp_path / "front.png", left, right


def test_both_parts_can_be_read(panels):
    with Image.open(panels[0]) as picture:
        pixels = np.asarray(picture.convert("L"))
    height, width = pixels.shape
    assert height > 400
    assert width > 2 * height
    for half in (pixels[:, : width // 2], pixels[:, width // 2 :]):
        assert (half < 200).mean() > 0.005


def test_latencies_have_their_intervals_where_these_are_known(panels):
    _, left, right = panels
    spans = {}
    for text, bars in zip(right.texts, right.containers, strict=True):
        across, along = (lines.get_segments()[0] for lines in bars.lines[2])
        spans[text.get_text()] = (*across[:, 0], *along[:, 1])
    assert spans == {
        "reference": pytest.approx((2.5, 2.5, 0.91, 0.98)),
        "small": pytest.approx((0.9, 1.2, 0.75, 0.82)),
        "large": pytest.approx((1.5, 2.1, 0.9, 0.97)),
    }
    assert right.get_ylim() == left.get_ylim()
    assert "latency" in right.get_xlabel()


def test_limits_are_lines(panels):
    _, left, right = panels
    dashed = [
        {tuple(np.unique(line.get_xdata())) for line in axes.lines if line.get_linestyle() == "--"}
        for axes in (left, right)
    ]
    assert (8.0,) in dashed[0]
    assert (1.5,) in dashed[1]
    heights = [
        [line.get_ydata()[0] for line in axes.lines if tuple(line.get_xdata()) == (0, 1)]
        for axes in (left, right)
    ]
    assert heights == [[pytest.approx(0.91)]] * 2
