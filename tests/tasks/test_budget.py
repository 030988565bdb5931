import re
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from tasks.budget import LabelBudget, Redraw, Row, fraction, show_labels
from tasks.errors import DataError


def showing(**changes):
    """All labels are shown unless a test says otherwise."""
    return LabelBudget(**{"labels_per_class": None, "validation_labels_per_class": None} | changes)


def labelled_rows(counts):
    """Rows (class, split) → how many."""
    return [
        Row(sha256(f"{name} {split} {at}".encode()).hexdigest(), name, split, f"{name}/{split}{at}")
        for (name, split), count in counts.items()
        for at in range(count)
    ]


def test_found_is_less_than_asked_where_labels_are_too_few():
    counts = {("a", "test"): 2, ("a", "train"): 3, ("a", "validation"): 9, ("b", "train"): 20}
    chosen = showing(labels_per_class=10, validation_labels_per_class=2)
    with pytest.raises(DataError, match="class 'a'") as caught:
        show_labels(labelled_rows(counts), chosen)
    found = int(re.search(r"has (\d+) ", str(caught.value)).group(1))
    assert found < 10


def test_no_test_row_is_refused():
    counts = {("a", "train"): 5, ("b", "train"): 5}
    with pytest.raises(DataError, match="test split"):
        show_labels(labelled_rows(counts), showing())


def test_a_class_without_a_training_row_is_refused():
    counts = {("a", "train"): 5, ("a", "test"): 5, ("b", "test"): 5}
    with pytest.raises(DataError, match="class 'b' has no labelled training row"):
        show_labels(labelled_rows(counts), showing())


@st.composite
def budgets(draw):
    rows = []
    for name in ("a", "b", None):
        for split in ("train", "validation", "test"):
            count = draw(st.integers(1, 12))
            salt = draw(st.integers(0, 9))
            for at in range(count):
                digest = sha256(f"{name} {split} {at} {salt}".encode()).hexdigest()
                rows.append(Row(digest, name, split, digest[:9]))
    return rows, draw(st.integers(1, 14)), draw(st.none() | st.integers(0, 4))


def shown(rows, chosen):
    return {row.digest for row in show_labels(rows, chosen) if row.shown}


@given(case=budgets(), draw=st.integers(0, 5))
def test_a_budget_is_met_and_never_passed_and_no_test_label_is_shown(case, draw):
    rows, budget, validation = case
    chosen = showing(labels_per_class=budget, validation_labels_per_class=validation, draw=draw)
    try:
        found = show_labels(rows, chosen)
    except DataError:
        usable = [row.label for row in rows if row.label and row.split == "train"]
        assert min(Counter(usable).values()) < budget
        return
    visible = [row for row in found if row.shown]
    assert Counter(row.label for row in visible) == {"a": budget, "b": budget}
    assert {row.split for row in visible} <= {"train", "validation"}
    for name in "ab":
        of_class = Counter(row.split for row in visible if row.label == name)
        assert of_class["train"] >= 1
        assert validation is None or of_class["validation"] <= validation
    assert [row.digest for row in found] == [row.digest for row in rows]


@given(case=budgets())
def test_a_bigger_budget_shows_a_superset(case):
    rows, budget, validation = case
    chosen = {"validation_labels_per_class": validation}
    try:
        larger = shown(rows, showing(labels_per_class=budget + 1, **chosen))
    except DataError:
        larger = shown(rows, showing(labels_per_class=None, **chosen))
    try:
        smaller = shown(rows, showing(labels_per_class=budget, **chosen))
    except DataError:
        return
    assert smaller < larger or smaller == larger


@given(case=budgets())
def test_without_a_budget_every_training_label_is_shown(case):
    rows, _, validation = case
    found = shown(rows, showing(validation_labels_per_class=validation))
    assert {row.digest for row in rows if row.label and row.split == "train"} <= found
    assert not {row.digest for row in rows if row.split == "test" or not row.label} & found


def test_another_draw_shows_other_labels_of_the_same_rows():
    rows = labelled_rows({("a", "train"): 40, ("b", "train"): 40, ("a", "test"): 3})
    first, second = (shown(rows, showing(labels_per_class=5, draw=draw)) for draw in (0, 1))
    assert first != second
    assert len(first) == len(second) == 10
    assert shown(rows, showing(labels_per_class=5, draw=0)) == first


def test_a_draw_follows_from_the_rows_alone():
    rows = labelled_rows({("a", "train"): 40, ("b", "train"): 40, ("a", "test"): 3})
    turned = [replace(row, source="moved/" + row.source) for row in reversed(rows)]
    assert shown(turned, showing(labels_per_class=5)) == shown(rows, showing(labels_per_class=5))


def test_what_was_shown_before_plays_no_part():
    rows = labelled_rows({("a", "train"): 9, ("b", "train"): 9, ("a", "test"): 3})
    chosen = showing(labels_per_class=2)
    before = [replace(row, shown=True) for row in rows]
    assert shown(before, chosen) == shown(rows, chosen)
    assert len(shown(before, chosen)) == 4


def test_one_label_alone_is_a_training_label():
    counts = {(name, split): 5 for name in "ab" for split in ("train", "validation", "test")}
    rows = labelled_rows(counts)
    found = [row for row in show_labels(rows, showing(labels_per_class=1)) if row.shown]
    assert sorted((row.label, row.split) for row in found) == [("a", "train"), ("b", "train")]


# Unseen classes

THREE = {(name, split): 6 for name in "abc" for split in ("train", "validation", "test")}


@pytest.mark.parametrize("count", [None, 4])
def test_of_an_unseen_class_no_label_is_shown_and_the_others_stay(count):
    rows = labelled_rows(THREE)
    every = shown(rows, showing(labels_per_class=count))
    found = shown(rows, showing(labels_per_class=count, unseen_classes=("b",)))
    assert found == {row.digest for row in rows if row.digest in every and row.label != "b"}


def test_an_unseen_class_needs_no_labels():
    counts = THREE | {("b", "train"): 0, ("b", "validation"): 0}
    rows = labelled_rows(counts)
    with pytest.raises(DataError, match="class 'b'"):
        show_labels(rows, showing(labels_per_class=4))
    assert len(shown(rows, showing(labels_per_class=4, unseen_classes=("b",)))) == 8


def test_an_unknown_unseen_class_is_named_with_a_guess():
    with pytest.raises(
        DataError, match=r"unseen_classes names 'cc', .*did you mean 'c'\?"
    ) as caught:
        show_labels(labelled_rows(THREE), showing(unseen_classes=("cc",)))
    assert "\n" not in str(caught.value)
    assert "(known: a, b, c)" in str(caught.value)


@pytest.mark.parametrize(("unseen", "left"), [("ab", "1 class ('c')"), ("abc", "0 classes (none)")])
def test_fewer_than_two_classes_to_learn_from_are_refused(unseen, left):
    with pytest.raises(DataError) as caught:
        show_labels(labelled_rows(THREE), showing(unseen_classes=tuple(unseen)))
    assert f"prepare.unseen_classes leaves {left} with labels" in str(caught.value)


# Numbers from texts


def test_fractions_follow_from_their_texts_and_are_spread_evenly():
    found = [fraction("draw", str(at)) for at in range(4000)]
    assert found == [fraction("draw", str(at)) for at in range(4000)]
    assert fraction("a", "b") != fraction("ab")
    assert 0 <= min(found) <= max(found) < 1
    assert kstest(found, "uniform").pvalue > 0.01


def test_a_redraw_is_a_budget_that_can_be_shuffled():
    own = showing(labels_per_class=3, draw=2)
    found = Redraw(**own.model_dump())
    assert not found.shuffled
    rows = labelled_rows(THREE)
    assert shown(rows, found) == shown(rows, own)
