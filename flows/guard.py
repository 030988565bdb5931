"""One command in a group of its own, which ends with whoever asked for it, however that one ends.

A program of its own: `python guard.py SECONDS COMMAND…`. Its parent holds the other end of standard
input, so that a parent that was killed is noticed. SIGTERM ends the command; what is left of its
group after some seconds, or after its own end, is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from types import FrameType


def guard(command: list[str], seconds: float) -> int:
    """Runs a command.

    Args:
        command: The program and its arguments.
        seconds: How long it may take to end once it was asked to.

    Returns:
        Its exit code, as a shell gives it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603 - as given
    timer = threading.Timer(seconds, _kill, [child.pid])
    timer.daemon = True

    def end(_number: int, _frame: FrameType | None) -> None:
        child.terminate()
        if not timer.ident:
            timer.start()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = child.wait()
    _kill(child.pid)
    return code if code >= 0 else 128 - code


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock a daemon thread may not hold at exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[2:], float(sys.argv[1])))
