import numpy as np
import pytest
from scipy.special import softmax

from tasks import statistics
from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.calibration import Calibration, calibration_error, gaps, tempered


def naive(confidence, right, bins):
    """The same by a loop: rows in order of confidence, dealt to bins by the rank of their value."""
    ordered = sorted(confidence.tolist())
    members = {}
    for value, hit in zip(confidence.tolist(), right.tolist(), strict=True):
        members.setdefault(ordered.index(value) * bins // len(ordered), []).append((value, hit))
    error = 0.0
    for found in members.values():
        sure = sum(value for value, _ in found) / len(found)
        accuracy = sum(hit for _, hit in found) / len(found)
        error += len(found) / len(ordered) * abs(accuracy - sure)
    return error


def error_of(confidence, right, bins):
    found = gaps(np.asarray(confidence, np.float32), np.asarray(right), bins)
    return calibration_error(found.sum(axis=0), len(right))


@pytest.fixture
def judged(side, collect):
    """Judges versions given as (confidence, right); labels are all 'a'."""

    def judge(challenger, champion=None, **settings):
        sides = [_answers(side, *one) for one in (challenger, champion) if one is not None]
        return Calibration(**settings).judge(collect(*sides))

    return judge


def _answers(side, confidence, right):
    confidence = np.asarray(confidence, np.float32)
    right = np.asarray(right, bool)
    ours = np.where(right, confidence, 1 - confidence)
    probabilities = np.stack([ours, 1 - ours], axis=1).astype(np.float32)
    return side(np.where(right, "a", "b"), probabilities=probabilities)


def drawn(random, count, *, excess=0.0):
    """Confidences, and answers right with so much less than that chance."""
    confidence = random.uniform(0.6, 0.95, count)
    return confidence, random.random(count) < confidence - excess


# The error itself


@pytest.mark.parametrize("bins", [1, 2, 7, 15, 200])
@pytest.mark.parametrize("count", [1, 10, 97, 150])
def test_the_error_is_that_of_a_loop(bins, count):
    random = np.random.default_rng(count)
    confidence = random.uniform(0.3, 1, count).astype(np.float32)
    right = random.random(count) < confidence
    assert error_of(confidence, right, bins) == pytest.approx(
        naive(confidence, right, bins), abs=1e-8
    )


def test_bins_hold_equally_many_rows():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 150).astype(np.float32)
    right = random.random(150) < 0.7
    order = np.argsort(confidence)
    parts = np.split(order, 15)
    expected = np.mean([abs(right[part].mean() - confidence[part].mean()) for part in parts])
    assert error_of(confidence, right, 15) == pytest.approx(expected, abs=1e-7)


def test_a_small_table_by_hand():
    # Two bins: (0.5, 0.75) with one right, |0.5 - 0.625|; (1, 1) with one right, |0.5 - 1|.
    found = error_of([0.5, 1.0, 0.75, 1.0], [True, True, False, False], 2)
    assert found == (0.125 + 0.5) / 2


def test_the_order_of_rows_means_nothing_even_where_confidences_are_equal():
    random = np.random.default_rng(1)
    confidence = random.choice([0.5, 0.75, 0.875, 1.0], 101).astype(np.float32)
    right = random.random(101) < 0.7
    shuffled = random.permutation(101)
    found = error_of(confidence, right, 15)
    assert found == error_of(confidence[shuffled], right[shuffled], 15)
    assert found == pytest.approx(naive(confidence, right, 15), abs=1e-8)


# The gate


def test_worse_calibration_is_shown_and_fails(judged):
    random = np.random.default_rng(0)
    verdict = judged(drawn(random, 600, excess=0.2), drawn(random, 600))
    assert not verdict.passed
    assert verdict.figures["ece_challenger"] == pytest.approx(0.2, abs=0.05)
    assert verdict.figures["low"] > 0.02
    assert "shown to grow by more than 0.0200" in verdict.sentence
    back = judged(drawn(random, 600), drawn(random, 600, excess=0.2))
    assert back.passed
    assert "not shown to grow" in back.sentence


def test_what_few_rows_cannot_show_does_not_fail(judged):
    random = np.random.default_rng(0)
    verdict = judged(drawn(random, 20, excess=0.1), drawn(random, 20), bins=5)
    assert verdict.figures["low"] < 0.02
    assert verdict.passed


def test_the_whole_interval_has_to_lie_above_the_margin(judged):
    random = np.random.default_rng(3)
    pair = drawn(random, 300, excess=0.2), drawn(random, 300)
    low = judged(*pair).figures["low"]
    assert not judged(*pair, margin=low - 1e-6).passed
    assert judged(*pair, margin=low).passed


def test_largest_is_a_limit_of_what_was_measured(judged):
    one = ([0.75] * 8, [True] * 4 + [False] * 4)
    assert judged(one, largest=0.25).passed
    verdict = judged(one, largest=0.2499)
    assert not verdict.passed
    assert verdict.figures == {"ece_challenger": 0.25}
    assert "calibration error 0.2500 (asked for: at most 0.2499)" in verdict.sentence
    assert "first version" in verdict.sentence
    assert not judged(one, one, largest=0.2).passed
    assert judged(one, one, largest=0.3).passed


def test_an_answer_with_equal_probabilities_is_right_only_where_it_was_given(side, collect):
    """What counts is what the version answered, not which of two equals comes first."""
    probabilities = np.full((4, 2), 0.5, np.float32)
    found = Calibration(bins=1).judge(collect(side("bbbb", probabilities=probabilities)))
    assert found.figures["ece_challenger"] == 0.5


def test_probabilities_that_are_no_numbers(side, collect):
    probabilities = np.asarray([[np.nan, 0.0], [0.9, 0.1], [np.inf, 0.0]], np.float32)
    broken, whole = side("aaa", probabilities=probabilities), side("aaa")
    verdict = Calibration().judge(collect(broken, whole))
    assert not verdict.passed
    assert "probabilities of 2 test rows are not finite" in verdict.sentence
    later = Calibration().judge(collect(whole, broken))
    assert later.passed
    assert "its probabilities are broken" in later.sentence


def test_the_interval_of_two_errors_holds_the_truth_as_often_as_it_says(judged, monkeypatch):
    """Where both are off in every bin: 120 worlds; 0.87 lies 4 standard errors below 0.95."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    held = 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        pair = drawn(random, 300, excess=0.3), drawn(random, 300, excess=0.2)
        found = judged(*pair, bins=5).figures
        held += found["low"] <= 0.1 <= found["high"]
    assert held / 120 >= 0.87


@pytest.mark.parametrize("excess", [0.0, 0.02, 0.2])
def test_equal_calibration_is_seldom_failed(judged, monkeypatch, excess):
    """In 2.5% of worlds at most, and the 80 here allow for chance; also where the error is nil."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    failed = 0
    for seed in range(80):
        random = np.random.default_rng(seed)
        pair = drawn(random, 300, excess=excess), drawn(random, 300, excess=excess)
        failed += not judged(*pair, margin=0.0).passed
    assert failed <= 7


def test_params_yaml_asks_for_it_by_name():
    assert GATES.parse({"name": "calibration", "largest": 0.05}) == Calibration(largest=0.05)
    for wrong in ({"bins": 0}, {"largest": 1.5}, {"margin": -0.1}):
        with pytest.raises(ParamsError, match=next(iter(wrong))):
            GATES.parse({"name": "calibration"} | wrong)


# After temperature scaling


def too_sure(count, temperature, seed=0):
    """Probabilities that are too sure by a factor, and labels as likely as they should say."""
    source = np.random.default_rng(seed)
    logits = source.normal(0, 1.5, (count, 4))
    true = softmax(logits, axis=1)
    labels = (true.cumsum(axis=1) > source.random((count, 1))).argmax(axis=1)
    return softmax(temperature * logits, axis=1).astype(np.float32), true, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature):
    sure, true, labels = too_sure(8000, temperature)
    found = tempered(sure, labels)
    assert found.sum(axis=1) == pytest.approx(1)
    assert np.abs(found - true).mean() < 0.02
    assert (found.argmax(1) == sure.argmax(1)).all()


def test_no_row_chooses_its_own_temperature():
    sure, _, labels = too_sure(400, 3.0)
    wrong = labels.copy()
    wrong[::2] = (wrong[::2] + 1) % 4
    before, after = tempered(sure, labels), tempered(sure, wrong)
    assert (before[::2] == after[::2]).all()
    assert np.abs(before[1::2] - after[1::2]).max() > 0.1


def test_what_is_too_sure_passes_once_it_is_scaled(side, collect):
    sure, _, labels = too_sure(2000, 4.0)
    names = np.asarray(["a", "b", "c", "d"])
    evidence = collect(
        side(labels=names[sure.argmax(1)], probabilities=sure),
        labels=names[labels],
        classes=("a", "b", "c", "d"),
    )
    assert not Calibration(largest=0.05).judge(evidence).passed
    verdict = Calibration(largest=0.05, temperature_scaling=True).judge(evidence)
    assert verdict.passed
    assert "calibration error after temperature scaling" in verdict.sentence
