"""What the estimators share: reading, features, graphs, storing."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import skops.io
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from tasks import estimators
from tasks.errors import ArtifactError, ParamsError
from tasks.estimators import Fitted
from tasks.estimators.class_names import ClassNames
from tasks.estimators.label_spreading import LabelSpreading
from tasks.estimators.linear_svc import LinearSvc
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.estimators.svm import Svm

EVERY = [LogisticRegression(), LinearSvc(spreading=True, rounds=1), LabelSpreading(), Svm()]
ON_TEXTS = [*EVERY, ClassNames()]


def named(methods):
    return {"argvalues": methods, "ids": [method.name for method in methods]}


# Rows


def test_texts_are_read_as_such(said, texts):
    assert list(estimators.readable(said)) == texts[0]


def test_pictures_are_flat_numbers_up_to_1(part):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1))
    found = estimators.readable(part(pixels, [0, 1, -1]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pixels.reshape(3, 16) / 255, rtol=1e-6)


def test_numbers_stay_as_they_are(tabled):
    np.testing.assert_array_equal(estimators.readable(tabled([[300, -2.5]], [0], 2)), [[300, -2.5]])


def test_logits_are_put_among_all_classes(tabled):
    part = tabled(np.zeros((2, 1)), [0, 3], 4)
    found = estimators.spread(np.array([[-1.0, -0.5], [-0.1, -3.0]]), np.array([0, 3]), part)
    impossible = np.log(1e-6)
    expected = [[-1, impossible, impossible, -0.5], [-0.1, impossible, impossible, -3]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_seeds_fit_scikit_learn():
    assert estimators.short(5) == 5
    assert estimators.short(2**53 - 1) < 2**32


# Features


def test_words_of_one_letter_count(write):
    part = write(["i do", "a do"], [0, 1])
    found = estimators.features(part).fit_transform(estimators.readable(part))
    assert not np.allclose(found.toarray()[0], found.toarray()[1])


def test_texts_features_are_words_pairs_and_character_ngrams(write):
    rows = ["red car", "cars stop"]
    part = write(rows, [0, 1])
    found = estimators.features(part).fit(rows).get_feature_names_out()
    ends = {name.rpartition("__")[2] for name in found}
    assert {"red", "car", "cars", "red car", "cars stop", "ca", " sto", "ars "} <= ends


def test_numbers_have_mean_0_and_variance_1(digits):
    rows = estimators.readable(digits[0])
    found = estimators.features(digits[0]).fit_transform(rows)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0)[rows.std(0) > 0], 1, atol=1e-4)


def test_numbers_are_condensed_to_principal_components(digits):
    part, _ = digits
    front, points = estimators.condensed(part, 5, 0)
    rows = estimators.readable(part).astype(np.float64)
    spans = rows.std(0)
    expected = PCA(5).fit_transform((rows - rows.mean(0)) / np.where(spans > 0, spans, 1))
    np.testing.assert_allclose(abs(points), abs(expected), rtol=5e-2, atol=5e-2)
    np.testing.assert_allclose(front.transform(estimators.readable(part)), points, atol=1e-4)


def test_texts_are_condensed_to_length_1_and_like_ones_lie_together(said, texts):
    _, points = estimators.condensed(said, 20, 0)
    assert points.shape == (240, 20)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-5)
    cosines = points @ points.T
    same = texts[1][:, None] == texts[1]
    assert cosines[same].mean() > cosines[~same].mean() + 0.1


@pytest.mark.parametrize("wanted", [1, 3, 10_000])
def test_components_are_as_many_as_the_rows_allow(digits, said, wanted):
    for part, most in ((digits[0], 64), (said, 240)):
        assert estimators.condensed(part, wanted, 0)[1].shape[1] == min(wanted, most)


# Graph and spreading


@given(st.integers(0, 50), st.integers(2, 30), st.integers(1, 40))
def test_the_graph_joins_nearest_neighbours_either_way(seed, rows, count):
    points = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    apart = pairwise_distances(points)
    np.fill_diagonal(apart, np.inf)
    near = apart.argsort(axis=1)[:, : min(count, rows - 1)]
    expected = np.zeros((rows, rows))
    np.put_along_axis(expected, near, 1, axis=1)
    found = estimators.neighbour_graph(points, count)
    np.testing.assert_array_equal(found.toarray(), np.maximum(expected, expected.T))


def test_a_single_row_has_no_neighbour():
    assert estimators.neighbour_graph(np.zeros((1, 2), np.float32), 10).nnz == 0


def test_spreading_rests_where_the_papers_formula_does():
    random = np.random.default_rng(0)
    points = random.normal(size=(40, 4)).astype(np.float32)
    labels = np.where(np.arange(40) < 9, np.arange(40) % 3, -1)
    model = estimators.spreading(points, labels, neighbours=5, reach=0.8)
    near = estimators.neighbour_graph(points, 5).toarray()
    degrees = np.diag(near.sum(1) ** -0.5)
    start = np.eye(3)[labels] * (labels >= 0)[:, None]
    resting = np.linalg.solve(np.eye(40) - 0.8 * degrees @ near @ degrees, 0.2 * start)
    resting /= resting.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.label_distributions_, resting, atol=2e-3)


def test_rows_that_no_label_reaches_are_undecided():
    points = np.array([[0.0], [0.1], [50.0], [50.1], [99.0], [99.1]], np.float32)
    model = estimators.spreading(points, np.array([0, -1, 1, -1, -1, -1]), 1, 0.9)
    np.testing.assert_allclose(model.label_distributions_[4:], 0.5)
    np.testing.assert_allclose(model.predict_proba(points[4:]), 0.5)
    assert model.predict(points[:4]).tolist() == [0, 0, 1, 1]


# Confidence


def test_each_classs_surest_guesses_are_kept_and_labels_stay():
    sureness = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.51])
    guesses = np.array([0, 0, 0, 0, 1, 0, 1])
    said = np.where(np.eye(2, dtype=bool)[guesses], sureness[:, None], 1 - sureness[:, None])
    labels = np.array([-1, -1, -1, -1, -1, 1, -1])
    found = estimators.confident(said, labels, 0.5)
    assert found.tolist() == [0, 0, -1, -1, 1, 1, -1]
    assert labels.tolist() == [-1, -1, -1, -1, -1, 1, -1]


@given(st.integers(0, 100), st.floats(0.05, 1.0))
def test_every_guessed_class_keeps_its_share(seed, share):
    random = np.random.default_rng(seed)
    said = random.dirichlet(np.ones(4), 60)
    labels = np.where(random.random(60) < 0.2, random.integers(0, 4, 60), -1)
    found = estimators.confident(said, labels, share)
    known = labels >= 0
    assert np.array_equal(found[known], labels[known])
    for number in np.unique(said.argmax(1)[~known]):
        rows = ~known & (said.argmax(1) == number)
        kept = (found[rows] == number).sum()
        assert (found[rows] >= 0).sum() == kept
        assert max(1, share * rows.sum() - 1) <= kept <= share * rows.sum() + 1


# Whatever the estimator


@pytest.mark.parametrize("method", **named(EVERY))
def test_one_class_is_too_few(method, write, tabled):
    for part in (write(["a b", "c d", "e f"], [0, 0, -1]), tabled(np.eye(3), [1, 1, -1], 3)):
        with pytest.raises(ParamsError, match="1 class of the training rows has labels"):
            method.fit(part, 0)


@pytest.mark.parametrize("method", **named(EVERY))
def test_answers_are_log_probabilities_of_all_classes(method, digits):
    part, truth = digits
    kept = replace(part, labels=np.where(part.labels == 4, -1, part.labels))
    found = method.fit(kept, 2**53 - 1).answers
    assert found.dtype == np.float32
    assert found.shape == (400, 10)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-4)
    assert np.exp(found[:, 4]).max() < 1e-5
    assert (found.argmax(1) == truth)[truth != 4].mean() > 0.7


@pytest.mark.parametrize("method", **named(ON_TEXTS))
def test_a_row_never_seen_is_answered(method, said, write):
    found = method.logits(method.fit(said, 0).model, write(["radio singer album tune"], [-1]))
    assert found.shape == (1, 6)
    assert found.argmax() == 0


@pytest.mark.parametrize("method", **named(ON_TEXTS))
def test_the_same_seed_gives_the_same_bytes(method, said, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        estimators.save(tmp_path / name, method, method.fit(said, 3))
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


# Storing


@pytest.mark.parametrize("method", **named(ON_TEXTS))
def test_a_stored_model_answers_the_same(method, said, texts, write, tmp_path):
    fitted = method.fit(said, 0)
    unseen = write([f"{text} snow" for text in texts[0]], np.full(240, -1))
    before = method.logits(fitted.model, unseen)
    estimators.save(tmp_path, method, fitted)
    assert estimators.is_stored(tmp_path)
    found, model = estimators.load(tmp_path)
    assert found == method
    np.testing.assert_array_equal(found.logits(model, unseen), before)
    np.testing.assert_array_equal(estimators.answers(tmp_path), fitted.answers)


@pytest.mark.parametrize("method", **named(EVERY))
def test_a_stored_model_of_numbers_too(method, digits, tmp_path):
    part, _ = digits
    fitted = method.fit(part, 0)
    before = method.logits(fitted.model, part)
    estimators.save(tmp_path, method, fitted)
    np.testing.assert_array_equal(method.logits(estimators.load(tmp_path)[1], part), before)


def test_nothing_is_stored_in_an_empty_folder(tmp_path):
    assert not estimators.is_stored(tmp_path)
    with pytest.raises(ArtifactError, match="holds no whole estimator"):
        estimators.load(tmp_path)


SAVE = """
import sys
from pathlib import Path
import numpy as np
from tasks import estimators
from tasks.estimators import Fitted, features
from tasks.modalities import Encoding
from tasks.modalities.text import Text
from tasks.rows import Part
from tasks.estimators.linear_svc import LinearSvc
contents = np.array([b"red car", b"blue sky", b"a red bus", b"the sea is blue"], object)
labels = np.array([0, 1, 0, 1])
encoding = Encoding(Text(), {"shape": [1], "classes": ["red", "blue"]})
part = Part(labels.astype(str), np.zeros((4, 1), np.uint8), labels, encoding, contents)
estimators.save(Path(sys.argv[1]), LinearSvc(), LinearSvc().fit(part, 0))
"""


def test_another_process_stores_the_same_bytes(python, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    done = python("-c", SAVE, there)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("sys.argv", ["-c", str(here)])
    exec(SAVE, {})  # noqa: S102
    for path in here.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


def test_loaded_and_stored_again_it_has_the_same_bytes(said, tmp_path):
    method = LogisticRegression()
    fitted = method.fit(said, 0)
    estimators.save(tmp_path, method, fitted)
    first = (tmp_path / estimators.ESTIMATOR_FILE).read_bytes()
    estimators.save(tmp_path, method, Fitted(estimators.load(tmp_path)[1], fitted.answers))
    assert (tmp_path / estimators.ESTIMATOR_FILE).read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_words_named_like_parts_of_the_file_do_no_harm(write, tmp_path):
    rows = ["__id__ file schema content", "__class__ __loader__ type json"] * 3
    part = write(rows, np.arange(6) % 2)
    method = LinearSvc()
    fitted = method.fit(part, 0)
    estimators.save(tmp_path, method, fitted)
    _, model = estimators.load(tmp_path)
    np.testing.assert_array_equal(method.logits(model, part), method.logits(fitted.model, part))


def test_a_large_vocabulary_is_no_file_per_word(said, tmp_path):
    method = LinearSvc()
    estimators.save(tmp_path, method, method.fit(said, 0))
    with zipfile.ZipFile(tmp_path / estimators.ESTIMATOR_FILE) as archive:
        assert len(archive.namelist()) < 20


@pytest.fixture
def stored(digits, tmp_path):
    """A stored estimator, and its schema to be changed."""
    method = LogisticRegression()
    estimators.save(tmp_path, method, method.fit(digits[0], 0))
    path = tmp_path / estimators.ESTIMATOR_FILE
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}

    def change(schema):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (files | {"schema.json": json.dumps(schema).encode()}).items():
                archive.writestr(name, content)
        return tmp_path

    return json.loads(files["schema.json"]), change


@pytest.mark.parametrize(
    "name", ["os.system", "numpy.testing._private.utils.runstring", "sklearn.utils.os.system"]
)
def test_a_file_that_names_another_type_is_refused_and_nothing_is_called(stored, name, tmp_path):
    schema, change = stored
    module, _, called = name.rpartition(".")
    ran = tmp_path / "ran"
    argument = json.dumps(f"touch {ran}" if called == "system" else f"open({str(ran)!r}, 'w')")
    plain = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode"}
    inner = [{**plain, "content": argument, "is_json": True}]
    schema["content"]["content"]["verbose"] = {
        "__class__": called,
        "__module__": module,
        "__loader__": "ConstructorFromReduceNode",
        "content": {
            "__class__": "tuple",
            "__module__": "builtins",
            "__loader__": "TupleNode",
            "content": inner,
        },
    }
    with pytest.raises(ArtifactError, match=rf"not trusted: {name}"):
        estimators.load(change(schema))
    assert not ran.exists()


def test_a_file_without_a_part_is_refused(stored):
    schema, change = stored
    del schema["content"]["content"]["steps"]["content"]
    with pytest.raises(ArtifactError, match="holds no whole estimator"):
        estimators.load(change(schema))


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_a_file_that_was_cut_off_is_refused(digits, length, tmp_path):
    method = LogisticRegression()
    estimators.save(tmp_path, method, method.fit(digits[0], 0))
    path = tmp_path / estimators.ESTIMATOR_FILE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="holds no whole estimator"):
        estimators.load(tmp_path)


def test_sparse_numbers_may_be_stored(said, tmp_path):
    fitted = Svm().fit(said, 0)
    assert scipy.sparse.issparse(fitted.model[-1].support_vectors_)
    estimators.save(tmp_path, Svm(), fitted)
    types = skops.io.get_untrusted_types(file=tmp_path / estimators.ESTIMATOR_FILE)
    assert types == ["scipy.sparse._csr.csr_matrix"]
