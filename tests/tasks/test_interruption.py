import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tasks
from tasks.interruption import call_off, ends_in_time, held_back, name_of


class Came(BaseException):
    pass


@pytest.fixture
def handler():
    """A handler of SIGTERM that raises, as Prefect's does; the old one is back afterwards."""

    def raises(_number, _frame):
        raise Came

    before = signal.signal(signal.SIGTERM, raises)
    yield raises
    signal.signal(signal.SIGTERM, before)
    call_off()


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_a_signal_waits_until_it_is_asked_for(handler):
    done = []

    def loop():
        with held_back() as held:
            send()
            done.append("step")
            assert held.pending == signal.SIGTERM
            done.append("saved")
            held.deliver()
            done.append("never")

    with pytest.raises(Came):
        loop()
    assert done == ["step", "saved"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_however_the_block_is_left_the_signal_comes(handler):
    with pytest.raises(Came), held_back():
        send()

    def stumble():
        send()
        raise ValueError("a bug, too")

    with pytest.raises(Came) as caught, held_back():
        stumble()
    assert isinstance(caught.value.__context__, ValueError)


def test_where_the_handler_returns_the_block_goes_on():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with held_back() as held:
            for _ in range(3):
                send()
                assert held.pending == signal.SIGTERM
                held.deliver()
                assert held.pending is None
        assert heard == [signal.SIGTERM] * 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_waits_too():
    done = []

    def step():
        send(signal.SIGINT)
        done.append("step")

    with pytest.raises(KeyboardInterrupt), held_back():
        step()
    assert done == ["step"]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held_back() as held:
            send()
            assert held.pending is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_off_the_main_thread_nothing_is_held(handler):
    inside = []

    def work():
        with held_back():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [handler]


class TerminationSignal(BaseException):
    def __init__(self, number):
        self.signal = number


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (KeyboardInterrupt(), "SIGINT"),
        (SystemExit(143), "SIGTERM"),
        (SystemExit(130), "SIGINT"),
        (TerminationSignal(15), "SIGTERM"),
        (SystemExit(2), None),
        (SystemExit("words"), None),
        (ValueError("15"), None),
    ],
)
def test_it_is_known_what_is_a_signal(error, name):
    assert name_of(error) == name


UNWINDS = """
import signal, sys, time
from tasks.interruption import ends_in_time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with ends_in_time(1.0):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep({unwinding})
        print("unwound", flush=True)
{after}
"""


def ended(unwinding, after=""):
    """How a process ends to which SIGTERM is sent, what it said, and how long that took."""
    program = UNWINDS.format(unwinding=unwinding, after=after)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(tasks.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.terminate()
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err, time.monotonic() - began


def test_what_unwinds_in_time_is_left_to_do_so():
    code, out, err, _ = ended(0.1)
    assert (code, out, err) == (143, "unwound\n", "")


def test_what_hangs_is_ended():
    code, out, err, seconds = ended(60)
    assert (code, out) == (143, "")
    assert err == "stillmark: not unwound 1 s after SIGTERM, ended; the next start tidies up\n"
    assert 0.9 < seconds < 10


def test_what_hangs_behind_the_block_is_ended_too():
    """As Prefect's own unwinding does, if its server is away."""
    program = UNWINDS.format(unwinding=0, after="")
    program = "import atexit, time; atexit.register(time.sleep, 60)\n" + program
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(tasks.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "unwound\n")


def test_what_hangs_where_python_is_no_more_is_ended_by_the_kernel():
    """Its threads are frozen by then; a C library's destructor may take as long as it likes."""
    hang = "import ctypes, gc\nlock = bytes(64); wait = ctypes.PyDLL(None).pthread_mutex_lock\n"
    hang += "class Late:\n    def __del__(self, wait=wait, lock=lock): wait(lock); wait(lock)\n"
    hang += "import sys; sys.late = Late()\n"
    program = hang + UNWINDS.format(unwinding=0, after="")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(tasks.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGALRM


def test_without_a_signal_nobody_is_ended():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    threads = threading.active_count()
    with ends_in_time(0.2), ends_in_time(0.1):
        pass
    with pytest.raises(ValueError, match="a bug"), ends_in_time(0.2):
        raise ValueError("a bug")
    with pytest.raises(SystemExit), ends_in_time(0.2):
        sys.exit(2)
    time.sleep(0.4)
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(before) == before
