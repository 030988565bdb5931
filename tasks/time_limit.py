"""A limit on the time that a stage may take, which really stops it."""

import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.errors import TimeLimitError

GRACE_SECONDS = 60.0


@contextmanager
def limited(minutes: float | None, what: str) -> Iterator[None]:
    """Stops what runs in the block once its time is up.

    At the limit an error is raised; a training loop first finishes its step and saves its
    checkpoint. A process that is still in the block `GRACE_SECONDS` later, for example in one long
    call of a C library, is ended by a thread that needs nothing of Python (`faulthandler`), which
    first writes where it was; the next start finds what it left.

    Args:
        minutes: The limit; None sets none.
        what: What is limited, for people.

    Raises:
        TimeLimitError: The time is up. Raised on the main thread alone; others are ended as above.
    """
    if minutes is None:
        yield
        return
    seconds = 60 * minutes
    stream = sys.__stderr__ or sys.stderr
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=stream)
    try:
        with _alarm(seconds, what):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _alarm(seconds: float, what: str) -> Iterator[None]:
    """The kernel's timer, which setting the clock does not move; another's goes on afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeLimitError(
            f"{what} took longer than compute.time_limit_minutes = {seconds / 60:g}; raise the "
            "limit and run again: training goes on from its last checkpoint"
        )

    handler = signal.signal(signal.SIGALRM, stop)
    began, (left, _) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            spent = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - spent))
