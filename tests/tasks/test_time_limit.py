import signal
import threading
import time

import pytest
import torch
from torch import nn

from tasks.errors import TimeLimitError
from tasks.fit import FitParams, Watch, fit
from tasks.time_limit import limited

SECOND = 1 / 60


def test_without_a_limit_nothing_is_set():
    before = signal.getsignal(signal.SIGALRM)
    with limited(None, "stage teach"):
        assert signal.getsignal(signal.SIGALRM) is before


def test_at_the_limit_it_stops_with_one_line():
    began = time.monotonic()
    with pytest.raises(TimeLimitError) as caught, limited(0.2 * SECOND, "stage teach"):
        time.sleep(30)
    assert time.monotonic() - began < 10
    assert str(caught.value).startswith("stage teach took longer than compute.time_limit_minutes")
    assert "raise the limit and run again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_ends_in_time_is_not_stopped_later():
    before = signal.getsignal(signal.SIGALRM)
    with limited(0.2 * SECOND, "stage teach"):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.5)


def test_another_timer_goes_on_where_it_was(monkeypatch):
    """pytest's own, for example."""
    left, every = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with limited(SECOND, "stage teach"):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 1
            time.sleep(0.3)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(99.7, abs=0.25)
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)


def test_a_training_loop_stops_between_two_steps_and_keeps_its_state(compute, tmp_path):
    network, at_work = nn.Linear(1, 1), []

    def step(at, _generator):
        at_work.append(at)
        time.sleep(0.02)
        at_work.pop()
        return network(torch.ones(1, 1)).square().mean()

    fit(network, step, FitParams(steps=1, learning_rate=0.1), compute)  # torch imports late
    params = FitParams(steps=5000, learning_rate=0.1)
    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=3600)
    with pytest.raises(TimeLimitError), limited(0.5 * SECOND, "stage teach"):
        fit(network, step, params, compute, watch)
    assert at_work == []  # no step was torn apart
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert 0 < state["at"] < 5000
    assert torch.equal(state["network"]["weight"], network.weight)


STUCK = """
import ctypes, sys
from tasks import time_limit
time_limit.GRACE_SECONDS = 0.5
with time_limit.limited(0.5 / 60, "stage teach"):
    print("ready", flush=True)
    {call}
print("never")
"""


@pytest.mark.parametrize(
    "call",
    [
        # Waits for itself and holds the interpreter's lock meanwhile: no Python code can run.
        "lock = b' ' * 0 + bytes(64); [ctypes.PyDLL(None).pthread_mutex_lock(lock) for _ in '12']",
        "exec('while True:\\n  try:\\n    __import__(\"time\").sleep(60)\\n  except Exception: 0')",
    ],
)
def test_a_process_that_is_stuck_is_ended_for_real(python, call):
    began = time.monotonic()
    done = python("-c", STUCK.format(call=call))
    assert done.returncode != 0
    assert done.stdout == "ready\n"
    assert time.monotonic() - began < 30
    assert "Timeout (0:00:01" in done.stderr
    assert "in <module>" in done.stderr  # where it was


def test_off_the_main_thread_only_the_hard_end_remains(python):
    ran = []

    def work():
        with limited(0.1 * SECOND, "stage teach"):
            time.sleep(0.4)
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
