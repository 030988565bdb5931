import math
import re

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from tasks import statistics
from tasks.errors import ParamsError
from tasks.gates import GATES
from tasks.gates.quality import Quality, Resampled


@pytest.fixture
def first(side, collect):
    """Judges a first version: true labels, predictions, and the control's."""

    def judge(labels, predicted, control=None, **settings):
        evidence = collect(side(predicted), labels=labels, control=control)
        return Quality(**settings).judge(evidence)

    return judge


def test_the_figures_are_the_hand_counted_ones(counted):
    verdict = Quality().judge(counted(80, 9, 1, 10))
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
        ((80, 0, 5, 15), {"alpha": 0.49}, False),  # worse
        ((80, 0, 0, 20), {"alpha": 0.49}, False),  # equal
        ((80, 7, 7, 6), {"alpha": 0.49}, False),  # equal in sum
        ((80, 9, 1, 10), {"margin": 0.08}, True),
        ((80, 9, 1, 10), {"margin": 0.09}, False),  # significant, and too little
    ],
)
def test_better_by_a_margin_and_not_by_chance(counted, counts, settings, passed):
    verdict = Quality(**settings).judge(counted(*counts))
    assert verdict.passed is passed
    assert verdict.sentence.startswith("better" if passed else "not shown to be better")


# Non-inferiority


def as_good(margin, **settings):
    return Quality(test="non_inferiority", margin=margin, **settings)


@pytest.mark.parametrize("counts", [(80, 4, 6, 10), (190, 0, 0, 10), (30, 9, 1, 10), (90, 0, 3, 7)])
def test_as_good_means_that_the_bound_lies_above_the_margin(counted, counts):
    evidence = counted(*counts)
    low = as_good(0.5).judge(evidence).figures["low"]
    below, above = (max(0.0, -low - 1e-6), max(0.0, -low + 1e-6))
    assert as_good(above).judge(evidence).passed is (low < 0 or low > above)
    assert as_good(below).judge(evidence).passed is (low > 0)


@pytest.mark.parametrize(("rows", "passed"), [(267, False), (268, True)])
def test_equal_answers_on_few_rows_show_little(counted, rows, passed):
    """Without a row apart the bound is -z² / (n + z²): -1% takes 268 rows at 95%."""
    verdict = as_good(0.01).judge(counted(rows - 20, 0, 0, 20))
    assert verdict.passed is passed
    assert verdict.figures["low"] == pytest.approx(-(1.6448536**2) / (rows + 1.6448536**2))
    start = "shown" if passed else "not shown"
    assert verdict.sentence.startswith(f"{start} to be less than 1.00% worse than the champion")
    assert "at 95% confidence it is above -1.00%" in verdict.sentence


def test_a_margin_of_zero_passes_only_what_is_better(counted):
    assert not as_good(0.0).judge(counted(9000, 0, 0, 1000)).passed
    assert not as_good(0.0).judge(counted(900, 20, 20, 60)).passed
    assert as_good(0.0).judge(counted(900, 30, 5, 65)).passed


# Other metrics


@pytest.fixture(scope="module")
def imbalanced():
    """Three classes, 300 rows: labels and a function of accuracies by class to predictions."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.asarray(list("abc")), (200, 80, 20))

    def predict(*accuracies):
        right = random.random(300) < np.repeat(accuracies, (200, 80, 20))
        return np.where(right, labels, random.choice(list("abcd"), 300))

    return labels, predict


def test_the_metrics_are_scikit_learns(imbalanced):
    labels, predict = imbalanced
    ours, theirs = predict(0.9, 0.7, 0.3), predict(0.5, 0.9, 0.9)
    known = ["a", "b", "c"]
    f1 = Resampled.of("macro_f1", labels, ours, theirs)
    expected = [f1_score(labels, one, labels=known, average="macro") for one in (ours, theirs)]
    assert f1.values == pytest.approx(expected)
    recall = Resampled.of("balanced_accuracy", labels, ours, theirs)
    hits = [
        np.mean([(one == labels)[labels == name].mean() for name in known])
        for one in (ours, theirs)
    ]
    assert recall.values == pytest.approx(hits)
    inside = np.isin(ours, known)
    assert Resampled.of("balanced_accuracy", labels[inside], ours[inside]).values == pytest.approx(
        [balanced_accuracy_score(labels[inside], ours[inside])]
    )


def test_rows_drawn_again_are_measured_as_scikit_learn_would(imbalanced):
    """Every resample is a real one: its metric is one that a loop over drawn rows could give."""
    labels, predict = imbalanced
    ours, theirs = predict(0.9, 0.7, 0.3), predict(0.8, 0.8, 0.5)
    found = Resampled.of("macro_f1", labels, ours, theirs)
    random = np.random.default_rng(9)
    naive = []
    for _ in range(150):
        drawn = random.integers(0, 300, 300)
        present = np.unique(labels[drawn])
        naive.append(
            [
                f1_score(labels[drawn], one[drawn], labels=present, average="macro")
                for one in (ours, theirs)
            ]
        )
    gains = np.subtract(*np.asarray(naive).T)
    again = found.again[:, 0] - found.again[:, 1]
    assert again.mean() == pytest.approx(gains.mean(), abs=4 * gains.std() / 150**0.5)
    assert again.std() == pytest.approx(gains.std(), rel=0.25)


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
def test_a_rare_class_counts_as_much_as_a_frequent_one(side, collect, imbalanced, metric):
    labels, predict = imbalanced
    sides = [
        side(predict(*shares), classes=tuple("abcd"))
        for shares in [(0.85, 0.9, 0.95), (0.95, 0.5, 0.0)]
    ]
    evidence = collect(*sides, labels, tuple("abcd"))
    better = Quality(metric=metric).judge(evidence)
    assert better.passed
    assert re.match(
        r"better than the champion on the same 300 test rows: (macro F1|balanced ac)",
        better.sentence,
    )
    assert better.figures["gain"] == pytest.approx(
        better.figures["challenger"] - better.figures["champion"]
    )
    back = Quality(metric=metric).judge(collect(*sides[::-1], labels, tuple("abcd")))
    assert not back.passed
    gain, low = better.figures["gain"], better.figures["low"]
    assert Quality(metric=metric, margin=gain - 1e-9).judge(evidence).passed
    assert not Quality(metric=metric, margin=gain + 1e-9).judge(evidence).passed
    assert 0 < low < gain


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
def test_the_bootstrap_bound_decides_too(side, collect, imbalanced, metric):
    labels, predict = imbalanced
    sides = [side(predict(0.8, 0.8, 0.8), classes=tuple("abcd")) for _ in range(2)]
    evidence = collect(*sides, labels, tuple("abcd"))
    low = Quality(metric=metric).judge(evidence).figures["low"]
    assert low < 0
    assert not Quality(metric=metric).judge(evidence).passed
    for margin, passed in ((-low + 1e-9, True), (-low - 1e-9, False)):
        verdict = as_good(margin, metric=metric).judge(evidence)
        assert verdict.passed is passed
        assert verdict.sentence.startswith("shown" if passed else "not shown")


def test_the_bootstrap_bound_is_as_sure_as_it_says(monkeypatch):
    """Two equal models, 200 worlds: above zero in about 5% of them; 10% lies 3 deviations off."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    random, wrong = np.random.default_rng(1), 0
    labels = np.repeat(np.asarray(list("abc")), (60, 50, 40))
    for _ in range(200):
        right = random.random((2, 150)) < 0.8
        ours, theirs = np.where(right, labels, random.choice(list("abc"), (2, 150)))
        wrong += Resampled.of("macro_f1", labels, ours, theirs).bound(0.05) > 0
    assert 0.01 <= wrong / 200 <= 0.1


# The first version

ALL = ("accuracy", "balanced_accuracy", "macro_f1")


def test_a_first_version_beats_the_most_frequent_class(first):
    good = first("aab" * 20, "aab" * 20)
    assert good.passed
    assert good.figures["floor"] == pytest.approx(2 / 3)
    assert good.figures["accuracy"] == 1.0
    assert "above the floor 66.67%" in good.sentence
    assert "there is no labels-only control" in good.sentence


def test_a_first_version_that_names_one_class_is_turned_down(first):
    lazy = first("aab" * 20, "aaa" * 20)
    assert not lazy.passed
    assert "not clearly above the floor" in lazy.sentence


def test_above_the_floor_means_the_whole_interval(first):
    # 7 of 10 right against a floor of 5 of 10: the interval starts at 0.397.
    verdict = first("aaaaabbbbb", "aaaaabbaaa")
    assert not verdict.passed
    assert verdict.figures["low"] == pytest.approx(0.3968, abs=1e-4)


def predictions(right, rows=100):
    """Predictions of `ab` * 50 of which so many are right, from the first on."""
    return "".join("ab"[(at + (at >= right)) % 2] for at in range(rows))


WITHIN = {"test": "non_inferiority", "margin": 0.05}


@pytest.mark.parametrize(
    ("metric", "control", "settings", "passed"),
    [
        *((metric, 88, {}, True) for metric in ALL),
        *((metric, 90, {}, True) for metric in ALL),  # a floor, not a champion: as good will do
        *((metric, 92, {}, False) for metric in ALL),
        ("accuracy", 94, WITHIN, True),  # p = 1/16: by chance, perhaps
        ("accuracy", 94, WITHIN | {"margin": 0.03}, False),  # too far behind
        ("macro_f1", 92, WITHIN, True),
        ("balanced_accuracy", 92, WITHIN, True),
        *((metric, 99, WITHIN | {"margin": 0.2}, False) for metric in ALL),  # shown to be worse
    ],
)
def test_a_first_version_is_not_behind_the_control(first, metric, control, settings, passed):
    labels, predicted = "ab" * 50, predictions(90)
    verdict = first(labels, predicted, predictions(control), metric=metric, **settings)
    assert verdict.passed is passed
    assert f"; {'not behind' if passed else 'behind'} the labels-only control" in verdict.sentence
    assert verdict.figures["control_gain"] == pytest.approx((90 - control) / 100, abs=2e-3)
    assert verdict.figures["floor"] == {"macro_f1": pytest.approx(1 / 3)}.get(metric, 0.5)


def test_beating_the_control_is_no_excuse_for_the_floor(first):
    lazy = first("ab" * 50, "a" * 100, control=predictions(10))
    assert not lazy.passed
    assert "not clearly above" in lazy.sentence
    assert "not behind the labels-only control" in lazy.sentence


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_naming_one_class_is_the_floor_of_every_metric(first, metric):
    labels = "aaaaaaaaab" * 10
    lazy, good = first(labels, "a" * 100, metric=metric), first(labels, labels, metric=metric)
    assert not lazy.passed
    assert lazy.figures[metric] == lazy.figures["floor"]
    assert good.passed
    expected = f1_score(list(labels), ["a"] * 100, average="macro", zero_division=0)
    assert good.figures["floor"] == pytest.approx(expected if metric == "macro_f1" else 0.5)


def test_params_yaml_asks_for_it_by_name():
    assert GATES.parse({"name": "quality", "alpha": 0.1}) == Quality(alpha=0.1)
    with pytest.raises(ParamsError, match="did you mean 'quality'"):
        GATES.parse({"name": "qualty"})
    for wrong in ({"alpha": 0.0}, {"alpha": 0.5}, {"margin": -0.1}, {"metric": "f1"}):
        with pytest.raises(ParamsError, match=next(iter(wrong))):
            GATES.parse({"name": "quality"} | wrong)
