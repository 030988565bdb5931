import math

import numpy as np
import pytest

from tasks.errors import ParamsError
from tasks.gates import GATES, Evidence
from tasks.gates.quality import Quality


def evidence(both, only_challenger, only_champion, neither):
    """Labels are all 'a'; 'b' is a mistake."""
    counts = (both, only_challenger, only_champion, neither)
    return Evidence(
        labels=np.full(sum(counts), "a"),
        challenger=np.repeat(["a", "a", "b", "b"], counts),
        champion=np.repeat(["a", "b", "a", "b"], counts),
    )


def first(labels, predicted):
    return Evidence(np.asarray(list(labels)), np.asarray(list(predicted)), None)


def test_the_figures_are_the_hand_counted_ones():
    verdict = Quality().judge(evidence(80, 9, 1, 10))
    assert verdict.passed
    assert verdict.gate == "quality"
    assert verdict.figures == pytest.approx(
        {
            "gain": 0.08,
            "only_challenger": 9,
            "only_champion": 1,
            "p_value": (math.comb(10, 9) + math.comb(10, 10)) / 2**10,
        }
    )
    for figure in ("+8.00%", "100 test rows", "9 rows", "1 the other way", "0.0107"):
        assert figure in verdict.sentence


@pytest.mark.parametrize(
    ("counts", "settings", "passed"),
    [
        ((80, 5, 0, 15), {}, True),  # p = 1/32
        ((80, 4, 0, 16), {}, False),  # p = 1/16: by chance, perhaps
        ((80, 4, 0, 16), {"alpha": 0.0625}, True),  # the limit itself passes
        ((80, 0, 5, 15), {"alpha": 0.99}, False),  # worse
        ((80, 0, 0, 20), {"alpha": 0.99}, False),  # equal
        ((80, 7, 7, 6), {"alpha": 0.99}, False),  # equal in sum
        ((80, 9, 1, 10), {"margin": 0.08}, True),
        ((80, 9, 1, 10), {"margin": 0.09}, False),  # significant, and too little
    ],
)
def test_better_by_a_margin_and_not_by_chance(counts, settings, passed):
    verdict = Quality(**settings).judge(evidence(*counts))
    assert verdict.passed is passed
    assert verdict.sentence.startswith("better" if passed else "not shown to be better")


def test_a_first_version_beats_the_most_frequent_class():
    good = Quality().judge(first("aab" * 20, "aab" * 20))
    assert good.passed
    assert good.figures["floor"] == pytest.approx(2 / 3)
    assert good.figures["accuracy"] == 1.0
    assert "above the floor 66.67%" in good.sentence


def test_a_first_version_that_names_one_class_is_turned_down():
    lazy = Quality().judge(first("aab" * 20, "aaa" * 20))
    assert not lazy.passed
    assert "not clearly above the floor" in lazy.sentence


def test_above_the_floor_means_the_whole_interval():
    # 7 of 10 right against a floor of 5 of 10: the interval starts at 0.397.
    verdict = Quality().judge(first("aaaaabbbbb", "aaaaabbaaa"))
    assert not verdict.passed
    assert verdict.figures["low"] == pytest.approx(0.3968, abs=1e-4)


def test_params_yaml_asks_for_it_by_name():
    assert GATES.parse({"name": "quality", "alpha": 0.1}) == Quality(alpha=0.1)
    with pytest.raises(ParamsError, match="did you mean 'quality'"):
        GATES.parse({"name": "qualty"})
    with pytest.raises(ParamsError, match="alpha"):
        GATES.parse({"name": "quality", "alpha": 0.0})
