import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tasks.membership import FEWEST_ROWS, membership
from tasks.rows import HIDDEN, Rows


@pytest.fixture(scope="module")
def parts(bench_template):
    rows = Rows(bench_template / "prepared")
    return rows.train, rows.open_test()


def test_a_model_that_remembers_its_rows_gives_them_away(parts):
    train, held_out = parts
    labels = dict(zip(train.names, np.maximum(train.labels, 0), strict=True))

    def ask(part):
        return np.asarray(
            [
                np.eye(3)[labels[name]] if name in labels else np.full(3, 1 / 3)
                for name in part.names
            ],
            np.float32,
        )

    found = membership(ask, train, held_out, 1000)
    assert found.labelled.auc == found.pool.auc == 1.0
    assert found.labelled.members == (train.labels != HIDDEN).sum()
    assert found.pool.members == (train.labels == HIDDEN).sum()
    assert found.labelled.held_out == len(held_out)
    assert found.strongest.low == 1.0


def test_guessing_gives_nothing_away(parts):
    train, held_out = parts
    found = membership(lambda part: np.full((len(part), 3), 1 / 3, np.float32), train, held_out, 99)
    assert (found.labelled.auc, found.pool.auc) == (0.5, 0.5)
    assert found.pool.members == min(99, (train.labels == HIDDEN).sum())


def test_the_first_attack_is_by_the_loss_and_the_second_by_the_largest_probability(parts):
    train, held_out = parts
    generator = np.random.default_rng(0)
    said = {name: generator.dirichlet([1, 1, 1]) for name in [*train.names, *held_out.names]}

    def ask(part):
        return np.asarray([said[name] for name in part.names], np.float32)

    found = membership(ask, train, held_out, 10_000)
    shown = train.take(np.flatnonzero(train.labels != HIDDEN))
    named = [(name, label) for part in (shown, held_out) for name, label in labelled(part)]
    scores = [said[name][label] for name, label in named]
    kinds = [1] * len(shown) + [0] * len(held_out)
    assert found.labelled.auc == pytest.approx(roc_auc_score(kinds, scores), abs=1e-9)
    pool = train.names[train.labels == HIDDEN]
    tops = [said[name].max() for name in [*pool, *held_out.names]]
    kinds = [1] * len(pool) + [0] * len(held_out)
    assert found.pool.auc == pytest.approx(roc_auc_score(kinds, tops), abs=1e-6)


def labelled(part):
    return zip(part.names, part.labels, strict=True)


def test_too_few_rows_are_not_judged(parts):
    train, held_out = parts
    few = np.flatnonzero(train.labels != HIDDEN)[: FEWEST_ROWS - 1]
    found = membership(
        lambda part: np.full((len(part), 3), 1 / 3, np.float32), train.take(few), held_out, 1000
    )
    assert found.labelled is found.pool is found.strongest is None
