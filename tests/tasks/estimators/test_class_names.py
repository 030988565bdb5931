from collections import Counter
from dataclasses import replace
from math import log

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer

from tasks import estimators
from tasks.errors import ParamsError
from tasks.estimators import ESTIMATORS, class_names
from tasks.estimators.class_names import ClassNames
from tasks.estimators.linear_svc import LinearSvc

UNSEEN = (2, 4)


@pytest.fixture(scope="module")
def zero_shot(said):
    """Two of the six classes have no label."""
    return replace(said, labels=np.where(np.isin(said.labels, UNSEEN), -1, said.labels))


@pytest.fixture(scope="module")
def fitted(zero_shot):
    return ClassNames().fit(zero_shot, 0)


def accuracies(logits, truth, hidden):
    """On hidden rows of seen and of unseen classes."""
    right, unseen = logits.argmax(axis=1) == truth, np.isin(truth, UNSEEN)
    return right[hidden & ~unseen].mean(), right[hidden & unseen].mean()


# What it can do


def test_it_finds_classes_that_nobody_labelled(zero_shot, texts, fitted):
    seen, unseen = accuracies(fitted.answers, texts[1], zero_shot.labels < 0)
    assert unseen > 0.8
    assert seen > 0.8


def test_without_names_these_classes_are_impossible(zero_shot, texts):
    found = LinearSvc().fit(zero_shot, 0).answers
    assert accuracies(found, texts[1], zero_shot.labels < 0)[1] == 0


def test_the_stored_model_stands_alone(zero_shot, texts, fitted, write):
    fresh = np.random.default_rng(9)
    rows = [" ".join(fresh.permutation(text.split())) + " now" for text in texts[0]]
    found = ClassNames().logits(fitted.model, write(rows, np.full(len(rows), -1)))
    seen, unseen = accuracies(found, texts[1], np.full(len(rows), True))
    assert min(seen, unseen) > 0.75
    assert set(dict(fitted.model.named_steps)) == {"featureunion", "linearsvc"}


def test_many_of_these_texts_do_not_hold_their_classs_name(zero_shot, texts):
    """Else the test above would show nothing but the search for a word."""
    named = [
        bool(set(zero_shot.encoding.classes[at].split("_")) & set(text.split()))
        for text, at in zip(*texts, strict=True)
    ]
    assert np.mean(named) < 0.6


def test_hidden_labels_of_unseen_classes_play_no_part(zero_shot, fitted):
    """The answers follow from what the part shows; nothing else can be read."""
    again = ClassNames().fit(replace(zero_shot, labels=zero_shot.labels.copy()), 0)
    np.testing.assert_array_equal(again.answers, fitted.answers)


def test_shown_labels_are_answered_with_certainty_at_first(zero_shot):
    method = ClassNames(temperature=1e3)  # the SVC's half of the answers is even
    found = np.exp(method.fit(zero_shot, 0).answers)
    known = zero_shot.labels >= 0
    np.testing.assert_allclose(found[known, zero_shot.labels[known]], 0.5 + 0.5 / 6, atol=0.01)


def test_no_label_at_all(texts, write):
    part = write(texts[0], np.full(240, -1))
    assert (ClassNames().fit(part, 0).answers.argmax(axis=1) == texts[1]).mean() > 0.7


def test_one_class_with_labels(texts, write):
    part = write(texts[0], np.where((texts[1] == 0) & (np.arange(240) < 40), 0, -1))
    found = ClassNames().fit(part, 0).answers.argmax(axis=1)
    assert (found == texts[1])[part.labels < 0].mean() > 0.7


def test_every_class_with_labels(said, texts, right):
    assert right(ClassNames().fit(said, 0).answers, said, texts[1]) > 0.85


def test_two_classes_in_all(texts, write):
    chosen = texts[1] < 2
    rows = [text for text, kept in zip(texts[0], chosen, strict=True) if kept]
    labels = np.where((texts[1][chosen] == 0) & (np.arange(80) < 12), 0, -1)
    method = ClassNames()
    fitted = method.fit(write(rows, labels, ("play_music", "book_flight")), 0)
    truth = texts[1][chosen]
    assert (fitted.answers.argmax(1) == truth).mean() > 0.85
    assert ((method.logits(fitted.model, write(rows, labels)) * 1).argmax(1) == truth).mean() > 0.8


# Names and descriptions


def test_descriptions_take_the_place_of_names(texts, write, zero_shot):
    classes = ("play_music", "book_flight", "b17", "cook_dinner", "b18", "call_doctor")
    part = write(texts[0], zero_shot.labels, classes)
    money, sky = "to pay a bill: money owed", "rain, snow and wind: the weather"
    third = texts[1] == 2
    for said_of, right in ({"b17": money, "b18": sky}, 2), ({"b17": sky, "b18": money}, 4):
        found = ClassNames(descriptions=said_of).fit(part, 0).answers.argmax(axis=1)
        assert (found == right)[third].mean() > 0.8


def test_underscores_part_words(texts, write, fitted, zero_shot):
    plain = tuple(name.replace("_", " ") for name in zero_shot.encoding.classes)
    found = ClassNames().fit(write(texts[0], zero_shot.labels, plain), 0)
    np.testing.assert_array_equal(found.answers, fitted.answers)


def test_a_description_of_no_class_is_refused(zero_shot):
    with pytest.raises(
        ParamsError, match=r"'pay_bil', which is no class .*did you mean 'pay_bill'"
    ):
        ClassNames(descriptions={"pay_bil": "money"}).fit(zero_shot, 0)


def test_a_name_that_has_nothing_to_do_with_any_text_is_refused(texts, write):
    classes = ("play_music", "book_flight", "日本", "cook_dinner", "weather_report", "call_doctor")
    part = write(texts[0], np.where(np.isin(texts[1], UNSEEN), -1, texts[1]), classes)
    with pytest.raises(ParamsError, match=r"class '日本' has no label, .*descriptions"):
        ClassNames().fit(part, 0)
    seen = replace(part, labels=np.where(texts[1] == 4, -1, texts[1]))
    assert ClassNames().fit(seen, 0).answers.shape == (240, 6)


# Its parts, against formulas


def test_words_are_factorised_pointwise_mutual_information():
    rows = ["a b c", "b c d a", "c c e", "e"]
    reader = TfidfVectorizer(analyzer=str.split).fit(rows)
    window = 2
    pairs = Counter()
    for row in (row.split() for row in rows):
        for at, word in enumerate(row):
            for other in range(max(0, at - window), min(len(row), at + window + 1)):
                if other != at:
                    pairs[word, row[other]] += 1
    totals = Counter()
    for (word, _), count in pairs.items():
        totals[word] += count
    smooth = {word: count**0.75 for word, count in totals.items()}
    share = {word: count / sum(smooth.values()) for word, count in smooth.items()}
    words = list(reader.get_feature_names_out())
    expected = np.zeros((5, 5))
    for (word, other), count in pairs.items():
        value = log(count / (totals[word] * share[other]))
        expected[words.index(word), words.index(other)] = max(0.0, value)
    found = class_names._word_vectors(rows, reader, window, 5, 0)
    # U √Σ (U √Σ)ᵀ is the symmetric square root of M Mᵀ.
    spectrum, basis = np.linalg.eigh(expected @ expected.T)
    root = basis @ np.diag(np.sqrt(spectrum.clip(0))) @ basis.T
    np.testing.assert_allclose(found @ found.T, root, atol=1e-6)


def test_company_is_the_cosine_of_centred_means_of_words_vectors():
    rows, names = ["red car", "blue car car", "sea and sky", "sky"], ["red", "blue sky", "unheard"]
    found = class_names._company(rows, names, 5, 3, 0)
    reader = TfidfVectorizer(sublinear_tf=True).fit(rows)
    vectors = class_names._word_vectors(rows, reader, 5, 3, 0)

    def means(texts):
        sums = reader.transform(texts).toarray() @ vectors
        return [row / max(np.linalg.norm(row), 1e-12) for row in sums]

    middle = np.mean(means(rows), axis=0)
    for row, text in enumerate(means(rows)):
        for column, name in enumerate(means(names)[:2]):
            one, other = text - middle, name - middle
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert found[row, column] == pytest.approx(cosine, abs=1e-9)
    np.testing.assert_array_equal(found[:, 2], 0)


def test_words_of_different_texts_never_stand_together():
    rows = ["a b", "c d"]
    reader = TfidfVectorizer(analyzer=str.split).fit(rows)
    found = class_names._counted_together(rows, reader, 10).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def trial():
    random = np.random.default_rng(0)
    unseen = np.array([False, True, False, True])
    distances = np.where(unseen, 0, random.normal(size=(30, 4)))
    similarity = random.normal(size=(30, 4, 3))
    evidence = class_names._evidence(distances, similarity, unseen)
    labels = random.choice([0, 1, 3], 30)
    return class_names._Trial(evidence, labels, unseen, np.array([True, True, False, True]))


def test_evidence_is_weighted_as_stated():
    distances = np.array([[0.5, 0.0]])
    similarity = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    found = class_names._evidence(distances, similarity, np.array([False, True]))
    expected = [[[0.5, 1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 4, 5, 6, 1]]]
    np.testing.assert_array_equal(found, expected)


def test_the_loss_is_cross_entropy_with_classes_counting_alike(trial):
    weights = np.random.default_rng(1).normal(size=8)
    scores = np.asarray(trial.evidence, float) @ weights
    expected = 0.0
    for row, label in enumerate(trial.labels):
        chances = softmax(scores[row, [0, 1, 3]])[[0, 1, 3].index(label)]
        expected -= log(chances) / (trial.labels == label).sum()
    assert trial.loss(weights)[0] == pytest.approx(expected, rel=1e-6)


def test_its_gradient_is_right(trial):
    weights = np.random.default_rng(2).normal(size=8)
    error = check_grad(lambda w: trial.loss(w)[0], lambda w: trial.loss(w)[1], weights)
    assert error < 1e-4
    assert np.abs(trial.loss(weights)[1]).max() > 0.1


def test_the_penalty_is_the_best_of_those_tried(trial):
    weights = np.array([3.0, 0, 0, 0, 1.0, 0.5, 0, -2.0])

    def mean(by):
        scores = np.where(trial.possible, trial.evidence @ (weights + by * np.eye(8)[-1]), -np.inf)
        right = scores.argmax(1) == trial.labels
        held_out = np.isin(trial.labels, [1, 3])
        seen, unseen = right[~held_out].mean(), right[held_out].mean()
        return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0

    grid = class_names.PENALTIES
    level = [np.sum([mean(by) for by in grid[max(0, at - 2) : at + 3]]) for at in range(len(grid))]
    found = class_names._penalty([trial], weights)
    assert found == pytest.approx(grid[int(np.argmax(level))])
    assert mean(found) > mean(-2.0)


def scene(labels, classes, learnt):
    """Distances are 1 for classes that were learnt; the first similarity names the row."""

    def distances(rows, asked):
        learnt.append(rows)
        found = np.zeros((len(asked), classes))
        found[:, np.unique(labels[rows])] = 1
        return found

    similarity = np.zeros((len(labels), classes, 3), np.float32)
    similarity[:, :, 0] = np.arange(len(labels))[:, None]
    return class_names._Scene(distances, similarity, labels)


def test_trials_hide_seen_classes_and_hold_out_rows():
    labels = np.arange(480) % 12
    labels[np.isin(labels, [3, 7, 11]) | (np.arange(480) >= 240)] = -1
    learnt = []
    trials = list(scene(labels, 12, learnt)._trials(0))
    assert len(trials) == class_names.FOLDS
    for trial, rows in zip(trials, learnt, strict=True):
        asked = trial.evidence[:, :, [1, 4]].sum(axis=2)[:, 0].astype(int)
        assert np.array_equal(trial.labels, labels[asked])
        assert not set(asked) & set(rows)
        hidden = np.flatnonzero(trial.unseen)
        assert len(hidden) == 2  # as large a share of the nine as three is of the twelve
        assert not set(hidden) & {3, 7, 11}
        assert not set(hidden) & set(labels[rows])
        assert set(hidden) <= set(trial.labels)
        assert not trial.possible[[3, 7, 11]].any()
        assert (trial.evidence[:, hidden, 0] == 0).all()
        assert (trial.evidence[:, hidden, 7] == 1).all()
    assert len({tuple(np.flatnonzero(trial.unseen)) for trial in trials}) == class_names.FOLDS


def test_without_seen_classes_to_spare_the_weights_are_the_stated_ones():
    labels = np.where(np.arange(40) < 10, np.arange(40) % 2, -1)
    np.testing.assert_array_equal(scene(labels, 4, []).weights(0), class_names.PRIOR)


def test_weights_are_learnt_from_seen_classes():
    """Where the second similarity alone tells classes apart, it comes to count."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % 10
    truth = labels.copy()
    labels[np.isin(labels, [8, 9]) | (np.arange(600) >= 400)] = -1
    similarity = random.normal(size=(600, 10, 3)).astype(np.float32)
    similarity[np.arange(600), truth, 1] += 5

    def distances(rows, asked):
        found = random.normal(size=(len(asked), 10))
        return np.where(np.isin(np.arange(10), labels[rows]), found, 0)

    found = class_names._Scene(distances, similarity, labels).weights(0)
    assert found[5] > 3 * abs(found[[4, 6]]).max()
    assert found[2] > 3 * abs(found[[1, 3]]).max()
    assert abs(found[0]) < 1


def test_the_penalty_on_seen_classes_joins_the_last_weight(monkeypatch):
    labels = np.arange(480) % 12
    labels[np.isin(labels, [3, 7, 11]) | (np.arange(480) >= 240)] = -1
    found = []
    for by in (0.0, 7.0):
        monkeypatch.setattr(class_names, "PENALTIES", np.array([by]))
        found.append(scene(labels, 12, []).weights(0))
    np.testing.assert_allclose(found[1] - found[0], [0, 0, 0, 0, 0, 0, 0, 7])


def test_balancing_evens_out_within_seen_and_unseen():
    random = np.random.default_rng(0)
    guess = random.dirichlet([8, 4, 1, 1, 0.3], 500).astype(np.float32)
    unseen = np.array([False, False, False, True, True])
    whole = class_names._balanced(guess, unseen, 1.0)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)
    for group in (unseen, ~unseen):
        before, after = guess.mean(0)[group], whole.mean(0)[group]
        np.testing.assert_allclose(after, after.mean(), rtol=0.02)
        assert np.ptp(before) > 0.04
    np.testing.assert_allclose(class_names._balanced(guess, unseen, 0.0), guess, rtol=1e-5)
    half = class_names._balanced(guess, unseen, 0.5).mean(0)
    assert np.ptp(whole.mean(0)[:3]) < np.ptp(half[:3]) < np.ptp(guess.mean(0)[:3])


def test_smoothing_rests_where_the_formula_does():
    random = np.random.default_rng(0)
    graph = estimators.neighbour_graph(random.normal(size=(30, 3)).astype(np.float32), 4)
    guess = random.dirichlet([1, 1, 1], 30).astype(np.float32)
    degrees = np.diag(np.asarray(graph.sum(1)).ravel() ** -0.5)
    flow = degrees @ graph.toarray() @ degrees
    expected = np.linalg.solve(np.eye(30) - 0.6 * flow, 0.4 * guess)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(class_names._smoothed(guess, graph, 0.6), expected, atol=1e-4)
    np.testing.assert_allclose(class_names._smoothed(guess, graph, 0.0), guess, rtol=1e-5)


def test_similarities_have_mean_0_and_variance_1_and_unknown_names_are_0():
    found = class_names._standardised(np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]]))
    np.testing.assert_allclose(found[:, 0], [-(1.5**0.5), 0, 1.5**0.5])
    np.testing.assert_array_equal(found[:, 1], 0)


# Its parameters


@pytest.mark.parametrize(
    "other",
    [
        {"window": 1},
        {"dimensions": 5},
        {"neighbours": 2},
        {"smoothing": 0.0},
        {"balance": 0.0},
        {"keep_share": 0.2},
        {"strength": 0.1},
        {"temperature": 0.5},
    ],
    ids=str,
)
def test_every_parameter_counts(zero_shot, fitted, other):
    found = ClassNames(**other).fit(zero_shot, 0).answers
    assert abs(np.exp(found) - np.exp(fitted.answers)).max() > 1e-3


def test_it_is_made_for_texts():
    assert ClassNames.takes == "text"


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"smoothing": 1.0},
        {"balance": 1.5},
        {"descriptions": {"a": 1}},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        ESTIMATORS.parse({"name": "class_names", **wrong})


def test_descriptions_are_kept_with_the_model(zero_shot, fitted, tmp_path):
    method = ClassNames(descriptions={"pay_bill": "to pay money"})
    estimators.save(tmp_path, method, fitted)
    assert estimators.load(tmp_path)[0] == method
