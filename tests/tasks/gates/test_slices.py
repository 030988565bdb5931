import re

import numpy as np
import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.slices import Slices
from tasks.statistics import Paired


@pytest.fixture
def by_class(side, collect):
    """Evidence by counts of rows per class: (both, challenger alone, champion alone, neither)."""

    def make(columns=None, **counts):
        classes = (*counts, "wrong")
        truth = np.repeat(list(counts), [sum(found) for found in counts.values()])
        ours = np.concatenate([np.repeat([1, 1, 0, 0], found) for found in counts.values()])
        theirs = np.concatenate([np.repeat([1, 0, 1, 0], found) for found in counts.values()])
        answers = [side(np.where(one, truth, "wrong"), classes) for one in (ours, theirs)]
        return collect(*answers, truth, classes, columns=columns or {})

    return make


def test_a_better_mean_hides_no_class_that_got_worse(by_class):
    evidence = by_class(cat=(100, 80, 0, 20), dog=(60, 0, 40, 0))
    verdict = Slices().judge(evidence)
    assert not verdict.passed
    assert verdict.figures["failing"] == 1
    assert verdict.figures["worst_drop"] == pytest.approx(0.4)
    start = "1 of 2 slices shown to fall by more than 5.00%"
    assert verdict.sentence.startswith(start)
    worst = "worst is class 'dog': 60.00% of 100 rows right, the champion 100.00% (-40.00%)"
    assert worst in verdict.sentence
    assert "too small to judge: class 'wrong' (0)" in verdict.sentence


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({"margin": 0.0}, False),
        ({"margin": 0.1999}, True),  # larger than the margin, and perhaps by chance
        ({"margin": 0.2}, True),
        ({"margin": 0.21}, True),
    ],
)
def test_a_drop_has_to_be_larger_and_shown(by_class, settings, passed):
    verdict = Slices(**settings).judge(by_class(cat=(40, 0, 10, 0)))
    assert verdict.passed is passed
    assert verdict.figures["worst_drop"] == pytest.approx(0.2)


def test_the_drop_itself_has_to_exceed_the_margin_at_any_alpha(by_class):
    """Of many rows even so little more is shown, but 10% is not more than 10%."""
    evidence = by_class(cat=(18000, 0, 2000, 0))
    assert Slices(margin=0.1, alpha=0.49).judge(evidence).passed
    assert not Slices(margin=0.098, alpha=0.49).judge(evidence).passed


def test_p_at_alpha_fails_and_above_it_passes(by_class):
    evidence = by_class(cat=(88, 2, 10, 0))
    p_value = Paired(2, 10, 100).worse_by_more(0.0)
    found = Slices(margin=0.0, alpha=p_value + 1e-9).judge(evidence)
    assert not found.passed
    assert found.figures["worst_p_value"] == pytest.approx(p_value)
    assert Slices(margin=0.0, alpha=p_value - 1e-9).judge(evidence).passed


def test_many_slices_are_many_tests(by_class):
    """The same drop that fails alone is expected by chance among twenty."""
    one = (40, 0, 6, 4)
    assert not Slices(margin=0.0).judge(by_class(cat=one)).passed
    rest = {f"c{at}": (45, 0, 0, 5) for at in range(19)}
    among = Slices(margin=0.0).judge(by_class(cat=one, **rest))
    assert among.passed
    assert among.figures["slices"] == 20
    alone = Slices(margin=0.0).judge(by_class(cat=one)).figures["worst_p_value"]
    assert among.figures["worst_p_value"] == pytest.approx(20 * alone)


def test_small_slices_are_named_and_not_judged(by_class):
    verdict = Slices(fewest_rows=21).judge(by_class(cat=(5, 0, 15, 0), dog=(90, 0, 0, 10)))
    assert verdict.passed
    assert verdict.figures["too_small"] == 2
    assert "too small to judge: class 'cat' (20), class 'wrong' (0)" in verdict.sentence
    assert "worst is class 'dog'" in verdict.sentence


def test_a_slice_of_exactly_the_fewest_rows_is_judged(by_class):
    evidence = by_class(cat=(5, 0, 15, 0), dog=(100, 0, 0, 0))
    assert not Slices(fewest_rows=20).judge(evidence).passed
    assert Slices(fewest_rows=21).judge(evidence).passed


def test_where_every_slice_is_too_small_nothing_is_shown(by_class):
    verdict = Slices(fewest_rows=50).judge(by_class(cat=(30, 0, 0, 0)))
    assert not verdict.passed
    assert "no slice has the 50 rows" in verdict.sentence
    assert "class 'cat' (30)" in verdict.sentence


def test_of_many_small_slices_ten_are_named(by_class):
    counts = {f"c{at:02}": (3, 0, 0, 0) for at in range(25)}
    verdict = Slices().judge(by_class(cat=(30, 0, 0, 0), **counts))
    assert len(re.findall(r"class 'c\d\d' \(3\)", verdict.sentence)) == 10
    assert verdict.sentence.endswith("and 16 more")  # and `wrong`, of no row


def test_further_columns_are_sliced_too(by_class):
    """Both classes lose a little; one source loses all of it."""
    counts = {"cat": (90, 0, 10, 0), "dog": (90, 0, 10, 0)}
    source = np.where(np.tile(np.arange(100) >= 80, 2), "phone", "studio")
    evidence = by_class(columns={"source": source, "split": source}, **counts)
    assert Slices(margin=0.15).judge(evidence).passed
    verdict = Slices(margin=0.15, columns=("source",)).judge(evidence)
    assert not verdict.passed
    assert "source 'phone': 50.00% of 40 rows right, the champion 100.00%" in verdict.sentence
    assert verdict.figures["slices"] == 4


@pytest.mark.parametrize("first_version", [False, True])
def test_an_unknown_column_is_answered_with_the_nearest(by_class, side, collect, first_version):
    evidence = by_class(columns={"source": np.full(30, "x")}, cat=(30, 0, 0, 0))
    if first_version:
        evidence = collect(side("a" * 30), columns={"source": np.full(30, "x")}, labels="a" * 30)
    with pytest.raises(ParamsError, match=r"'sorce'; did you mean 'source'\? \(known: source\)"):
        Slices(columns=("sorce",)).judge(evidence)


def test_without_further_columns_it_says_so(by_class):
    with pytest.raises(ParamsError, match="'source'; it has no further columns"):
        Slices(columns=("source",)).judge(by_class(cat=(30, 0, 0, 0)))


def test_a_first_version_is_told_its_worst_class(side, collect):
    evidence = collect(side("a" * 30 + "b" * 10 + "a" * 20), labels="a" * 30 + "b" * 30)
    verdict = Slices().judge(evidence)
    assert verdict.passed
    assert verdict.sentence.startswith("first version: there is no champion to compare")
    assert "worst is class 'b': 33.33% of 30 rows right" in verdict.sentence
    assert verdict.figures["worst_accuracy"] == pytest.approx(1 / 3)
    small = Slices(fewest_rows=100).judge(evidence)
    assert small.figures["worst_accuracy"] == pytest.approx(1 / 3)
    assert "too small to judge: class 'a' (30), class 'b' (30)" in small.sentence


@pytest.mark.parametrize("shares", [(0.8, 0.05, 0.1, 0.05), (0.9, 0.0, 0.05, 0.05)])
def test_a_challenger_within_the_margin_is_seldom_failed(by_class, shares):
    """Ten classes truly fall by the margin: in 10% of worlds at most, and 200 allow for chance."""
    random, failed = np.random.default_rng(0), 0
    for _ in range(200):
        counts = {f"c{at}": tuple(random.multinomial(200, shares)) for at in range(10)}
        failed += not Slices(margin=0.05, alpha=0.1).judge(by_class(**counts)).passed
    assert failed / 200 <= 0.15


def test_params_yaml_asks_for_it_by_name():
    assert GATES.parse({"name": "slices", "columns": ["source"]}) == Slices(columns=("source",))
    with pytest.raises(ParamsError, match="fewest_rows"):
        GATES.parse({"name": "slices", "fewest_rows": 0})
