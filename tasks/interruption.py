"""SIGTERM and Ctrl-C: held back while a training step runs, and never longer than a few seconds.

A signal's handler raises wherever the program happens to be, which tears a step apart. So the loop
holds signals back, finishes its step, saves its checkpoint and only then lets the signal do what it
would have done. A second guard ends the process for real if unwinding hangs, for example on a
server that is away.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

UNWIND_SECONDS = 8.0
ENDING = (signal.SIGTERM, signal.SIGINT)
HELD = (*ENDING, signal.SIGALRM)  # the last is a time limit's

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

LAST_WORD_SECONDS = 1.0  # after which the kernel ends what Python cannot any more


class _Countdown:
    """From a signal to the end of the process, unless it is called off."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.over = seconds, threading.Event()
        self.came: float | None = None  # when the signal did

    def left(self) -> float:
        """Seconds until the kernel has the last word."""
        spent = 0.0 if self.came is None else time.monotonic() - self.came
        return max(0.1, self.seconds + LAST_WORD_SECONDS - spent)


_countdowns: list[_Countdown] = []


class Held:
    """Signals that are held back.

    Attributes:
        pending: The first that came, or None.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Handler] = {}

    def hold(self) -> None:
        """From here on, signals wait."""
        for number in HELD:
            before = signal.getsignal(number)
            waits = before not in {None, signal.SIG_IGN}
            if waits and (number != signal.SIGALRM or before != signal.SIG_DFL):
                self._before[number] = signal.signal(number, self._note)

    def deliver(self) -> None:
        """Lets the one that came do what it would have done; goes on holding where that returns."""
        self.release()
        self.hold()

    def release(self) -> None:
        """No more waiting; one that came is delivered."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        number, self.pending = self.pending, None
        if number is not None:
            signal.raise_signal(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending = self.pending or number


@contextmanager
def held_back() -> Iterator[Held]:
    """Holds SIGTERM, Ctrl-C and a time limit back; ask `pending` between two steps.

    However the block is left, what came is delivered then. Off the main thread nothing is held, as
    no handler runs there.
    """
    held = Held()
    if threading.current_thread() is threading.main_thread():
        held.hold()
    try:
        yield held
    finally:
        held.release()


def name_of(error: BaseException) -> str | None:
    """`SIGTERM` or `SIGINT` where an error is how that signal ends a process, else None.

    Knows Ctrl-C, an exit code of 128 + the signal's number, and Prefect's `TerminationSignal`.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT.name
    code = error.code if isinstance(error, SystemExit) else None
    for number in ENDING:
        if code == 128 + number or getattr(error, "signal", None) == number:
            return number.name
    return None


@contextmanager
def ends_in_time(seconds: float = UNWIND_SECONDS) -> Iterator[None]:
    """A signal that comes in this block ends the process within some seconds, whatever hangs.

    Where the block is left because of the signal, the countdown goes on behind it, and the kernel
    has the last word: Python takes seconds to take itself apart. Off the main thread, and inside
    another such block, nothing is added.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or any(not one.over.is_set() for one in _countdowns):
        yield
        return
    countdown = _Countdown(seconds)
    _countdowns.append(countdown)
    reader, writer = socket.socketpair()
    writer.settimeout(0)  # a signal's handler must not wait
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader, countdown), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        if name_of(error) is None:
            countdown.over.set()
        elif _alarm_is_free():
            signal.setitimer(signal.ITIMER_REAL, countdown.left())
        raise
    else:
        countdown.over.set()
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        if countdown.over.is_set():
            _countdowns[:] = [one for one in _countdowns if one is not countdown]


def call_off() -> None:
    """Stops countdowns that a signal began: for a process that lives on after all."""
    counting = any(not one.over.is_set() for one in _countdowns)
    if counting and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for one in _countdowns:
        one.over.set()
    _countdowns.clear()


def _alarm_is_free() -> bool:
    """Whether SIGALRM would end this process, and nobody else has set one."""
    mine = signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    return mine and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def _watch(reader: socket.socket, countdown: _Countdown) -> None:
    """Python writes the number of each signal here, whatever handler has it (set_wakeup_fd)."""
    with reader:
        while numbers := reader.recv(64):
            ending = [number for number in numbers if number in ENDING]
            if ending:
                countdown.came = time.monotonic()
                if not countdown.over.wait(countdown.seconds):
                    _end(ending[0], countdown.seconds)
                return


def _end(number: int, seconds: float) -> None:
    name = signal.Signals(number).name
    text = f"stillmark: not unwound {seconds:g} s after {name}, ended; the next start tidies up\n"
    with suppress(OSError):
        os.write(2, text.encode())
    os._exit(128 + number)
