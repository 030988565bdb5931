"""The process before each service: real ones, really killed."""

import signal
import subprocess
import sys

import psutil
import pytest

import flows.guard

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(below.pid, flush=True)
time.sleep(600)
"""
LEAVES_ONE = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
sys.exit(7)
"""
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("farewell", flush=True), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def guarded():
    """Starts a program behind a guard that gives it so many seconds to end."""
    started = []

    def start(program, seconds=30):
        words = [sys.executable, flows.guard.__file__, str(seconds), sys.executable, "-c", program]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.stdin.close()
        process.wait(40)
        process.stdout.close()


def test_the_exit_code_is_the_commands_and_what_it_left_goes_with_it(guarded):
    process = guarded(LEAVES_ONE)
    below = psutil.Process(int(process.stdout.readline()))
    assert process.wait(20) == 7
    assert psutil.wait_procs([below], 5)[1] == []


def test_sigterm_lets_the_command_say_farewell(guarded):
    process = guarded(POLITE)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(20) == 0
    assert process.stdout.read() == "farewell\n"


def test_a_command_that_does_not_end_is_killed_with_all_beneath_it(guarded):
    process = guarded(STUBBORN, seconds=0.2)
    below = psutil.Process(int(process.stdout.readline()))
    (command,) = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGKILL
    assert psutil.wait_procs([below, command], 5)[1] == []


def test_ctrl_c_is_not_for_it(guarded):
    process = guarded(POLITE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)


def test_it_ends_when_nobody_holds_the_other_end_of_its_standard_input(guarded):
    process = guarded(POLITE)
    process.stdout.readline()
    process.stdin.close()
    assert process.wait(20) == 0
