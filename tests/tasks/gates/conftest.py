"""Made-up evidence, right and wrong where a test says so."""

import numpy as np
import pytest

from tasks.gates import Evidence, Side


def digests(count, start=0):
    return np.asarray([f"{start + at:064x}" for at in range(count)], dtype=np.str_)


@pytest.fixture(scope="session")
def side():
    """Makes a version that answers so, sure of each answer unless `probabilities` are given."""

    def make(labels, classes=("a", "b"), pool=(), **facts):
        labels = np.asarray(list(labels), dtype=np.str_)
        sure = (labels[:, None] == np.asarray(classes)).astype(np.float32)
        plain = {
            "version": 1,
            "content": "0" * 64,
            "probabilities": sure,
            "size_bytes": 10240,
            "latency_ms": np.asarray([1.0, 1.0, 1.0]),
            "lineage": (),
            "clean": True,
        }
        pool_labels = np.asarray(list(pool), dtype=np.str_)
        return Side(labels=labels, pool_labels=pool_labels, **(plain | facts))

    return make


@pytest.fixture(scope="session")
def collect():
    """Puts sides together; labels are all 'a' unless given."""

    def make(challenger, champion=None, labels=None, classes=("a", "b"), **parts):
        count = len(challenger.labels)
        plain = {
            "rows": digests(count),
            "columns": {},
            "pool": digests(len(challenger.pool_labels), 10**6),
            "control": None,
            "data_age_days": 0.0,
        }
        if parts.get("control") is not None:
            parts["control"] = np.asarray(list(parts["control"]), dtype=np.str_)
        labels = np.asarray(list("a" * count if labels is None else labels), dtype=np.str_)
        return Evidence(
            labels=labels,
            classes=tuple(classes),
            challenger=challenger,
            champion=champion,
            **(plain | parts),
        )

    return make


@pytest.fixture(scope="session")
def counted(side, collect):
    """Evidence by counts of rows: (both right, challenger alone, champion alone, neither)."""

    def make(*counts):
        return collect(
            side(np.repeat(["a", "a", "b", "b"], counts)),
            side(np.repeat(["a", "b", "a", "b"], counts)),
        )

    return make
