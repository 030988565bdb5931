from dataclasses import replace

import numpy as np
import pytest

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
