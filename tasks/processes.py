"""Which process is at work, so that what a dead one left is told from what a living one does."""

import hashlib
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

PROC = Path("/proc")
BOOT_ID = PROC / "sys/kernel/random/boot_id"
FIRST_NAMESPACE = "pid:[4026531836]"  # of the machine itself, not of a container (proc_ns.h)


class Process(BaseModel):
    """A process, named so that no later one is taken for it.

    Attributes:
        host: The machine, or the container, that it runs on.
        boot: Which start of the machine; the pids of another one mean nothing.
        pid: Its number.
        started: When it began, in clock ticks since the boot: setting the clock changes it not.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    host: str
    boot: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> "Process":
        """The process that asks."""
        pid = os.getpid()
        return cls(host=host(), boot=boot(), pid=pid, started=_started(pid) or 0)

    def is_alive(self) -> bool | None:
        """Whether it still runs; None where it is on another machine, so that none can tell."""
        if self.host != host():
            return None
        return self.boot == boot() and _started(self.pid) == self.started

    @property
    def label(self) -> str:
        """A name for files; short, and never given to two processes of one boot."""
        return f"{self.pid}-{self.started}"

    def __str__(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}"


class Note(BaseModel):
    """A file that says which process is at something; it outlives a process that was killed.

    Attributes:
        process: Who.
        since: Since when (UTC, ISO 8601); for people, nothing is decided by it.
        about: At what.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    process: Process
    since: str
    about: str = ""

    @classmethod
    def mine(cls, about: str = "") -> "Note":
        """A note of the process that asks, from now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(process=Process.mine(), since=now, about=about)

    @classmethod
    def read(cls, path: Path) -> "Note | None":
        """The note in a file; None where there is no such file, or it is no note."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        """Writes it so that a reader sees all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{self.process.label}.partial")
        partial.write_text(self.model_dump_json(), encoding="utf-8")
        partial.replace(path)

    def __str__(self) -> str:
        """For people."""
        return f"{self.process}, since {self.since}" + (f", {self.about}" if self.about else "")


def kill(process: psutil.Process) -> None:
    """Kills a process and all beneath it, from above, so that none is started anew meanwhile."""
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()


@cache
def host() -> str:
    """Name of this machine or container; machines that all call themselves localhost differ."""
    parts = [platform.node() or "unnamed"]
    with suppress(OSError):
        number = Path("/etc/machine-id").read_bytes().strip()
        parts += [hashlib.sha256(number).hexdigest()[:8]] if number else []
    with suppress(OSError):
        # A container may bear the machine's name, and yet does not see its processes.
        own = (PROC / "self/ns/pid").readlink()
        parts += [] if str(own) == FIRST_NAMESPACE else ["container"]
    return "-".join(parts)


@cache
def boot() -> str:
    """Which start of the machine this is."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return str(round(psutil.boot_time()))


def _started(pid: int) -> int | None:
    """Start of a process in clock ticks since the boot; None where it is gone or only a zombie."""
    if BOOT_ID.exists():
        return _started_by_proc(pid)
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(process.create_time() * 100)
    except psutil.Error:
        return None


def _started_by_proc(pid: int) -> int | None:
    """Fields 3 and 22 of proc_pid_stat(5); the name before them may hold anything."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
