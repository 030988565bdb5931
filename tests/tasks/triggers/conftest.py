"""Signals as plain values."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from tasks.triggers import Arrived, Before, Compared, Late, Sample

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass
class Told:
    """What a test says; whatever it does not say must not be asked for."""

    now: datetime = NOW
    watched_since: datetime = NOW
    facts: dict = None
    asked: list = None

    def _fact(self, name):
        self.asked.append(name)
        return self.facts[name]

    def before(self):
        return self._fact("before")

    def data(self):
        return self._fact("data")

    def code(self):
        return self._fact("code")

    def sections(self):
        return self._fact("sections")

    def champion(self):
        return self._fact("champion")

    def arrived(self):
        return self._fact("arrived")

    def late(self):
        return self._fact("late")

    def compared(self, most, seed):
        found = self._fact("compared")
        return found(most, seed) if callable(found) else found


@pytest.fixture(scope="session")
def told():
    def tell(now=NOW, watched_since=None, **facts):
        return Told(now, watched_since or now, facts, [])

    return tell


@pytest.fixture(scope="session")
def before():
    def make(started=NOW, data="1" * 32 + ".dir", code="c" * 64, sections=None):
        return Before(started, data, code, sections or {"teach": "t", "distill": "d"})

    return make


@pytest.fixture(scope="session")
def late():
    def make(right, rows, low=0.9, accuracy=0.93):
        return Late(right=right, rows=rows, about="late", accuracy=accuracy, low=low)

    return make


@pytest.fixture(scope="session")
def arrived():
    def make(rows, about="rows"):
        return Arrived(rows, about)

    return make


@pytest.fixture(scope="session")
def compare():
    """Two samples and the champion's answers about rows like them."""

    def make(training, new, held_out=None, answers=None):
        none = np.zeros((0, 2), np.float32)
        held_out, answers = (none if one is None else one for one in (held_out, answers))
        return Compared(_sample(training), _sample(new), held_out, answers, ("a", "b"))

    return make


def _sample(rows):
    if isinstance(rows, dict):
        count = len(next(iter(rows.values())))
        return Sample(np.zeros((count, 1), np.float32), columns=rows)
    if isinstance(rows, list):
        return Sample(np.zeros((len(rows), 1), np.int32), texts=rows)
    return Sample(rows)
