import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from tasks import processes
from tasks.processes import Note, Process, kill


@pytest.fixture
def child():
    """A process that says who it is, and waits."""
    program = "import sys; from tasks.processes import Process; "
    program += "print(Process.mine().model_dump_json(), flush=True); sys.stdin.read()"
    root = os.path.dirname(os.path.dirname(processes.__file__))  # noqa: PTH120
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        process.kill()


def test_the_process_that_asks_is_alive():
    mine = Process.mine()
    assert mine.pid == os.getpid()
    assert mine.is_alive() is True
    assert Process.model_validate_json(mine.model_dump_json()) == mine
    began = psutil.Process().create_time() - psutil.boot_time()
    assert mine.started / os.sysconf("SC_CLK_TCK") == pytest.approx(began, abs=2)


def test_a_killed_process_is_dead_whether_or_not_somebody_has_heard_of_it(child):
    other = Process.model_validate_json(child.stdout.readline())
    assert other.pid == child.pid
    assert other.is_alive() is True
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert psutil.pid_exists(child.pid)
    assert other.is_alive() is False
    child.wait()
    assert other.is_alive() is False


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


def test_what_a_killed_process_had_started_is_killed_too():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        below = psutil.Process(int(parent.stdout.readline()))
        both = [psutil.Process(parent.pid), below]
        kill(both[0])
        assert psutil.wait_procs(both, 20)[1] == []
        assert both[0].returncode == -signal.SIGKILL
        kill(both[0])  # gone already


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({"host": "elsewhere"}, None),
        ({"host": "elsewhere", "boot": "another"}, None),
        ({"boot": "another"}, False),
        ({"started": 1}, False),
        ({"pid": 2**22 + 1}, False),  # past the kernel's largest
    ],
)
def test_whatever_differs_it_is_not_this_one(change, alive):
    assert Process.mine().model_copy(update=change).is_alive() is alive


def test_a_pid_that_was_given_again_is_another_process(child):
    other = Process.model_validate_json(child.stdout.readline())
    taken = other.model_copy(update={"started": other.started - 1})
    assert other.is_alive() is True
    assert taken.is_alive() is False


def test_a_name_with_brackets_and_blanks_is_read_over(tmp_path):
    """proc_pid_stat(5): the second field is whatever the program is called."""
    program = tmp_path / "a) Z (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as odd:
        found = Process.mine().model_copy(
            update={"pid": odd.pid, "started": processes._started(odd.pid)}
        )
        assert found.is_alive() is True
        odd.kill()


def test_a_note_is_found_again_and_half_of_one_is_not(tmp_path):
    note = Note.mine("retraining")
    note.write(tmp_path / "deep" / "note.json")
    assert Note.read(tmp_path / "deep" / "note.json") == note
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["note.json"]
    assert f"process {os.getpid()} on " in str(note)
    assert str(note).endswith(", retraining")
    (tmp_path / "half.json").write_text(note.model_dump_json()[:-9])
    assert Note.read(tmp_path / "half.json") is None
    assert Note.read(tmp_path / "none.json") is None


def test_readers_see_whole_notes(tmp_path):
    """While somebody writes one after the other."""
    place, notes = tmp_path / "note.json", [Note.mine("a" * 5000), Note.mine("b" * 9000)]
    notes[0].write(place)
    over = threading.Event()

    def write():
        while not over.is_set():
            for note in notes:
                note.write(place)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [Note.read(place) for _ in range(300)]
    finally:
        over.set()
        writer.join()
    assert all(note in notes for note in seen)
