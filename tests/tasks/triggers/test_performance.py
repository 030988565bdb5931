from math import comb

import numpy as np
import pytest

from tasks.triggers.performance import Performance


def tail(right, rows, low):
    """The exact chance of at most so many right, term by term."""
    return sum(comb(rows, at) * low**at * (1 - low) ** (rows - at) for at in range(right + 1))


@pytest.mark.parametrize(("right", "rows"), [(70, 100), (85, 100), (83, 100), (81, 100), (45, 60)])
def test_below_the_recorded_interval_by_the_exact_binomial_test(told, late, right, rows):
    found = Performance(alpha=0.01).look(told(champion=1, late=late(right, rows)))
    p_value = tail(right, rows, 0.9)
    assert (found.reason is not None) is (p_value <= 0.01)
    if found.reason:
        assert found.reason.about == "arrived:late"
        assert found.reason.figures["p_value"] == pytest.approx(p_value, rel=1e-9)
        assert found.reason.figures["accuracy"] == right / rows
    assert f"{right / rows:.2%} of {rows} late labels" in found.sentence


def test_few_labels_or_no_champion_say_nothing(told, late):
    performance = Performance(fewest_labels=50)
    assert "49 labels arrived late" in performance.look(told(champion=1, late=late(0, 49))).sentence
    nobody = told(champion=None)
    assert performance.look(nobody).reason is None
    assert nobody.asked == ["champion"]


def test_false_alarms_are_as_rare_as_alpha_where_the_accuracy_is_the_lower_end(told, late):
    random, performance = np.random.default_rng(0), Performance(alpha=0.05)
    counts = random.binomial(120, 0.9, 2000).tolist()
    alarms = sum(
        performance.look(told(champion=1, late=late(right, 120))).reason is not None
        for right in counts
    )
    # Three deviations above what alpha allows.
    assert 0 < alarms / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
