"""Things that are sent in the background, in order: a server that is away holds nobody up."""

import contextvars
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

from tasks.full_disk import is_full
from tasks.transience import is_transient

Thing = TypeVar("Thing")

LAST_SECONDS = 2.0
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)

log = logging.getLogger("stillmark")


class Outbox(Generic[Thing]):
    """Sends one thing after another on a thread of its own.

    What fails in passing is sent again, with longer and longer waits; anything else is raised by
    the next `put` or by `close`. As a context it closes at the end of its block, and does not wait
    long where that ends in an error.

    Args:
        send: Sends one; called on the other thread, in this one's context.
        waits: Seconds before each further try.
    """

    def __init__(
        self, send: Callable[[Thing], object], waits: tuple[float, ...] = WAITS_SECONDS
    ) -> None:
        self._send, self._waits = send, waits
        self._things: SimpleQueue[tuple[Thing] | None] = SimpleQueue()
        self._given_up = threading.Event()
        self._error: Exception | None = None
        work = contextvars.copy_context().run
        self._thread = threading.Thread(target=work, args=(self._work,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._finish(LAST_SECONDS)

    def put(self, thing: Thing) -> None:
        """Hands a thing over, and returns at once.

        Raises:
            Exception: What sending an earlier one came to.
        """
        self._refuse()
        self._things.put((thing,))

    def close(self, wait_seconds: float | None = None) -> bool:
        """Waits until all is sent.

        Args:
            wait_seconds: After so long, what is left is given up; None waits for all.

        Returns:
            Whether all was sent.

        Raises:
            Exception: What sending came to.
        """
        done = self._finish(wait_seconds)
        self._refuse()
        return done

    def _finish(self, wait_seconds: float | None) -> bool:
        self._things.put(None)
        self._thread.join(wait_seconds)
        done = not self._thread.is_alive()
        self._given_up.set()
        return done

    def _refuse(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while self._error is None and (thing := self._things.get()) is not None:
            if self._given_up.is_set():
                return
            try:
                self._deliver(thing[0])
            except Exception as error:  # noqa: BLE001 - raised on the other thread
                self._error = error

    def _deliver(self, thing: Thing) -> None:
        for wait in self._waits:
            try:
                self._send(thing)
            except Exception as error:
                if not (is_transient(error) or is_full(error)):
                    raise
                log.debug("cannot be sent yet, again in %g s: %s", wait, error)
            else:
                return
            if self._given_up.wait(wait):
                return
        self._send(thing)
