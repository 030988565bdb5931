import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from torch import nn

from tasks.components import leading
from tasks.networks import Classifier
from tasks.rows import HIDDEN, Part
from tasks.teachers.propagation import Propagation, spread, surest
from tasks.teachers.supervised import Supervised
from tasks.views import Views


@pytest.fixture(scope="module")
def few(digits, linear, setting_of):
    """A setting of 400 digits with 5 labels each, and the true classes."""
    pool, truth = digits()
    return setting_of(linear(10), pool), truth.labels


# Spreading


def closed_form(rows, labels, neighbours, alpha):
    """(1 - alpha) (I - alpha S)⁻¹ Y, rows normalised, by loops over the neighbours."""
    count, classes = len(rows), labels.max() + 1
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    edges = np.zeros((count, count))
    for at in range(count):
        edges[at, np.argsort(distances[at])[:neighbours]] = 1
    chosen_by = np.maximum(edges.sum(axis=0), 1)
    graph = edges / np.sqrt(chosen_by[:, None] * chosen_by[None])
    known = np.array([[float(label == number) for number in range(classes)] for label in labels])
    return np.linalg.solve(np.eye(count) - alpha * graph, (1 - alpha) * known)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    neighbours=st.integers(1, 6),
    alpha=st.sampled_from([0.1, 0.5, 0.9, 0.99]),
)
def test_spreading_reaches_the_closed_form(seed, neighbours, alpha):
    random = np.random.default_rng(seed)
    rows, labels = random.normal(size=(40, 3)), np.where(np.arange(40) < 6, np.arange(40) % 3, -1)
    found = spread(rows, labels, neighbours, alpha)
    expected = closed_form(rows, labels, neighbours, alpha)
    reached = expected.sum(axis=1) > 1e-5
    expected /= np.maximum(expected.sum(axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found[reached], expected[reached], atol=1e-3)
    assert reached.sum() > 6


def test_spreading_follows_a_shape_that_distance_would_miss():
    # Two half moons, one label each at the tip.
    angle = np.linspace(0, np.pi, 60)
    upper = np.column_stack([np.cos(angle), np.sin(angle)])
    lower = np.column_stack([1 - np.cos(angle), 0.4 - np.sin(angle)])
    labels = np.full(120, HIDDEN)
    labels[[0, 119]] = 0, 1
    found = spread(np.concatenate([upper, lower]), labels, neighbours=2, alpha=0.99)
    assert (found.argmax(axis=1) == np.repeat([0, 1], 60)).all()


def test_a_class_without_a_label_is_never_guessed(few):
    setting, _ = few
    rows = leading(setting.pool, 16, 0)
    labels = np.where(setting.pool.labels.numpy() == 3, HIDDEN, setting.pool.labels.numpy())
    found = spread(rows, labels, 7, 0.9)
    assert found.shape == (400, 10)
    assert not found[:, 3].any()


def test_rows_that_no_label_reaches_have_no_guess():
    rows = np.array([[0.0], [0.1], [0.2], [90.0], [90.1], [90.2]])
    found = spread(rows, np.array([0, -1, -1, -1, -1, -1]), neighbours=2, alpha=0.9)
    assert not found[3:].any()
    assert (surest(found, np.array([0, -1, -1, -1, -1, -1]), 1.0) == [-1, 0, 0, -1, -1, -1]).all()


def test_more_neighbours_than_rows_are_all_of_them():
    rows, labels = np.array([[0.0], [1.0], [5.0]]), np.array([0, -1, 1])
    np.testing.assert_allclose(spread(rows, labels, 50, 0.5), spread(rows, labels, 2, 0.5))


# What is kept


@settings(max_examples=50)
@given(seed=st.integers(0, 999), share=st.floats(0.01, 1), classes=st.integers(1, 4))
def test_the_surest_share_of_each_class_is_kept(seed, share, classes):
    random = np.random.default_rng(seed)
    found = random.dirichlet(np.full(classes + 1, 0.5), 30)[:, :classes]
    labels = np.where(random.random(30) < 0.3, random.integers(0, classes, 30), HIDDEN)
    kept = surest(found, labels, share)
    for number in range(classes):
        guessed = [
            row for row in range(30) if labels[row] == HIDDEN and found[row].argmax() == number
        ]
        guessed.sort(key=lambda row: -found[row].max())
        expected = set(guessed[: int(np.ceil(share * len(guessed)))])
        assert set(np.flatnonzero(kept == number)) == expected
    assert (kept[labels != HIDDEN] == HIDDEN).all()


def test_equally_sure_rows_are_kept_from_the_first():
    found = np.full((6, 2), [0.6, 0.4])
    assert surest(found, np.full(6, HIDDEN), 0.5).tolist() == [0, 0, 0, -1, -1, -1]


# Where rows lie


def test_pictures_lie_among_their_principal_components(few):
    pool = few[0].pool
    pixels = np.asarray(pool.part.inputs).reshape(400, 64) / 255.0
    centred = pixels - pixels.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    expected = centred @ vectors[:, np.argsort(-values)[:8]]
    found = leading(pool, 8, 0)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_no_more_components_than_there_are(pictures):
    assert leading(pictures([0, 1, -1]).pool, 32, 0).shape == (3, 3)


def test_tokens_lie_near_rows_with_the_same_rare_words(tokens, compute, setting_of, bag):
    pool, truth = tokens
    found = leading(setting_of(bag(), pool).pool, 8, 0)
    rows = found / np.linalg.norm(found, axis=1, keepdims=True)
    likeness = rows @ rows.T - 2 * np.eye(len(rows))
    assert (truth.labels[likeness.argmax(axis=1)] == truth.labels).mean() > 0.9


@pytest.mark.parametrize("change", ["order", "repetition"])
def test_of_tokens_it_only_matters_which_occur(tokens, compute, setting_of, bag, change):
    pool = tokens[0]
    views = setting_of(bag(), pool).pool
    again = pool.inputs[:, [0] * 5]
    other = {"order": pool.inputs[:, ::-1], "repetition": np.hstack([pool.inputs, again])}[change]
    changed = Part(pool.names, np.ascontiguousarray(other), pool.labels, pool.encoding)
    found = leading(Views(changed, views.augmentation, compute), 8, 0)
    np.testing.assert_allclose(found, leading(views, 8, 0), atol=1e-6)


# The lesson


def test_kept_guesses_are_mostly_right_and_balanced(few):
    setting, truth = few
    guesses = Propagation(keep_share=0.5).lesson(setting).guesses.numpy()
    kept = guesses != HIDDEN
    assert (guesses[kept] == truth[kept]).mean() > 0.93
    assert kept.sum() == pytest.approx(175, abs=6)  # half of 350 hidden rows
    assert not kept[setting.pool.labels.numpy() != HIDDEN].any()
    everything = Propagation(keep_share=1.0).lesson(setting).guesses.numpy()
    right = everything[everything != HIDDEN] == truth[everything != HIDDEN]
    assert right.mean() < (guesses[kept] == truth[kept]).mean()


def test_the_loss_is_the_sum_of_two_cross_entropies(few, recorded, one_step):
    setting, _ = few
    method = Propagation(labelled_batch=6, pool_batch=9, pool_weight=2.5)
    found, slopes = one_step(method, setting)
    alone, without = one_step(Supervised(labelled_batch=6), setting)
    seen = recorded(setting.network)
    one_step(method, setting)
    inputs, logits = seen[1]
    rows = setting.pool.clean(torch.arange(400)).flatten(1)
    at = torch.cdist(inputs.flatten(1), rows).argmin(dim=1)
    guesses = method.lesson(setting).guesses[at].numpy()
    assert (guesses != HIDDEN).all()
    says = log_softmax(logits.double().numpy(), axis=1)
    assert float(found - alone) == pytest.approx(
        -2.5 * says[np.arange(9), guesses].mean(), rel=1e-4
    )
    expected = (np.exp(says) - np.eye(10)[guesses]).T @ inputs.flatten(1).double().numpy() / 9
    difference = (slopes["head.weight"] - without["head.weight"]).numpy()
    np.testing.assert_allclose(difference, 2.5 * expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def test_every_kept_row_is_drawn_as_often(few):
    setting, _ = few
    lesson = Propagation(pool_batch=4000, keep_share=0.3).lesson(setting)
    drawn = []
    augmented = setting.pool.augmented
    setting.pool.augmented = lambda index, generator: (
        drawn.append(index) or augmented(index, generator)
    )
    lesson(0.0, torch.Generator().manual_seed(0))
    del setting.pool.augmented
    kept = np.flatnonzero(lesson.guesses.numpy() != HIDDEN)
    counts = np.bincount(drawn[0], minlength=400)
    assert set(np.flatnonzero(counts)) == set(kept)
    assert counts[kept].std() < 3 * np.sqrt(4000 / len(kept))


def test_without_weight_or_hidden_rows_the_labels_alone_teach(few, pictures, one_step):
    setting, _ = few
    alone = one_step(Supervised(), setting)
    for method, place in (
        (Propagation(pool_weight=0.0), setting),
        (Propagation(), pictures([0, 1, 2, 3] * 5)),
    ):
        alone = one_step(Supervised(), place)
        found = one_step(method, place)
        assert torch.equal(found[0], alone[0])
        assert all(torch.equal(found[1][name], alone[1][name]) for name in alone[1])


def test_the_structure_is_the_same_every_time(few):
    setting, _ = few
    first, second = (Propagation().lesson(setting).guesses for _ in range(2))
    assert torch.equal(first, second)


def test_guesses_are_saved_with_the_lesson(few):
    lesson = Propagation().lesson(few[0])
    assert list(lesson.state_dict()) == ["guesses"]


# The encoder's features


@pytest.fixture
def encoding_network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))
    network = Classifier(body, 12, 10)
    network(torch.rand(200, 1, 8, 8))
    return network


@pytest.mark.parametrize("training", [True, False])
def test_features_are_the_bodys_in_evaluation_mode(digits, setting_of, encoding_network, training):
    setting = setting_of(encoding_network, digits()[0])
    encoding_network.eval()
    with torch.no_grad():
        features = encoding_network.body(setting.pool.clean(torch.arange(400))).numpy()
    rows = PCA(5, svd_solver="full").fit_transform(features)
    labels = setting.pool.labels.numpy()
    expected = surest(spread(rows, labels, 7, 0.9), labels, 0.7)
    encoding_network.train(training)
    before = copy.deepcopy(encoding_network.state_dict())
    guesses = Propagation(features="encoder", components=5).lesson(setting).guesses.numpy()
    np.testing.assert_array_equal(guesses, expected)
    assert encoding_network.training == training
    for name, tensor in encoding_network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert (Propagation(components=5).lesson(setting).guesses.numpy() != guesses).any()
