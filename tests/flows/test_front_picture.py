import numpy as np
import pytest
from PIL import Image

from flows import front_picture
from flows.front_picture import draw_front
from tasks.weigh import Found, Limits
from tests.weighed import weighed

FOUND = Found(
    rows=100,
    host="here",
    reference=weighed("reference", 40_960, 2.5, accuracy=(0.96, 0.91, 0.98)),
    candidates=(
        weighed("small", 2048, 1.0, (0.9, 1.2), accuracy=(0.8, 0.75, 0.82)),
        weighed("large", 20_480, 2.0, (1.5, 2.1), accuracy=(0.95, 0.9, 0.97)),
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
