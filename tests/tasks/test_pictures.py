import numpy as np
import pytest
from PIL import Image

from tasks.pictures import DOTS_PER_INCH, Dot, picture, trade_off

DOTS = [Dot("control", 60.0, 0.9, 0.88, 0.92, 0.1), Dot("edge", 7.0, 0.95, 0.93, 0.97, 0.2)]


def test_a_picture_has_the_size_that_was_asked_for(tmp_path):
    with picture(tmp_path / "a.png", width=4, height=2) as axes:
        axes.plot([0, 1], [0, 1])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4 * DOTS_PER_INCH, 2 * DOTS_PER_INCH)
        assert np.asarray(image).std() > 0


def test_equal_drawings_are_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        with trade_off(tmp_path / name, DOTS, "500 test rows"):
            pass
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_trade_off_shows_every_model_where_it_is(tmp_path):
    with trade_off(tmp_path / "a.png", DOTS, "500 test rows") as axes:
        assert {text.get_text(): text.xy for text in axes.texts} == {
            "control": (60.0, 0.9),
            "edge": (7.0, 0.95),
        }
        (bars,) = axes.containers
        ends = bars.lines[2][0].get_segments()
        assert [segment[:, 1] for segment in ends] == [
            pytest.approx([0.88, 0.92]),
            pytest.approx([0.93, 0.97]),
        ]
        assert "500 test rows" in axes.get_ylabel()
