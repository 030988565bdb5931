import contextvars
import errno
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.outbox import Outbox

NO_WAIT = (0.0,) * 5


@given(things=st.lists(st.integers()), failures=st.sets(st.integers(0, 60)))
def test_whatever_fails_in_passing_all_arrives_once_and_in_order(things, failures):
    arrived, tries = [], iter(range(10**6))

    def send(thing):
        if next(tries) in failures:
            raise ConnectionResetError
        arrived.append(thing)

    with Outbox(send, (0.0,) * 100) as box:
        for thing in things:
            box.put(thing)
    assert arrived == things


def test_nobody_waits_for_a_server_that_is_away():
    back = threading.Event()
    arrived = []

    def send(thing):
        assert back.wait(30)
        arrived.append(thing)

    box = Outbox(send)
    began = time.monotonic()
    for thing in range(100):
        box.put(thing)
    assert time.monotonic() - began < 1
    assert arrived == []
    back.set()
    assert box.close() is True
    assert arrived == list(range(100))


def test_a_full_disk_may_be_cleared():
    answers = iter([OSError(errno.ENOSPC, "No space left on device"), None])
    arrived = []

    def send(thing):
        if (error := next(answers)) is not None:
            raise error
        arrived.append(thing)

    with Outbox(send, NO_WAIT) as box:
        box.put(1)
    assert arrived == [1]


@pytest.mark.parametrize(
    ("error", "tries"), [(ValueError("refused"), 1), (ConnectionResetError("away"), 6)]
)
def test_what_does_not_pass_is_raised_here(error, tries):
    seen = []

    def send(thing):
        seen.append(thing)
        raise error

    box = Outbox(send, NO_WAIT)
    box.put(1)
    with pytest.raises(type(error)):
        box.close()
    assert seen == [1] * tries
    with pytest.raises(type(error)):
        box.put(2)


def test_an_error_in_the_block_is_the_one_that_counts():
    def send(_thing):
        raise ValueError("of sending")

    box = Outbox(send, NO_WAIT)

    def work():
        with box:
            box.put(1)
            raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        work()


def test_who_cannot_wait_gives_up():
    def send(_thing):
        raise ConnectionResetError

    box = Outbox(send, (600.0,))
    box.put(1)
    began = time.monotonic()
    assert box.close(0.2) is False
    box._thread.join(10)  # the wait between two tries is cut short
    assert not box._thread.is_alive()
    assert time.monotonic() - began < 10


def test_it_sends_in_the_context_of_who_made_it():
    """Prefect finds its run there."""
    run, seen = contextvars.ContextVar("run"), []
    run.set("mine")
    with Outbox(lambda _: seen.append(run.get())) as box:
        box.put(1)
    assert seen == ["mine"]
