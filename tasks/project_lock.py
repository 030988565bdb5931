"""One retraining of a project at a time: on this machine, and among the machines of a team."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.database import Database
from tasks.errors import BusyError
from tasks.processes import Note
from tasks.settings import Settings

LOCK_FILE = "retrain.lock"
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.2

log = logging.getLogger("stillmark")


@contextmanager
def locked(
    settings: Settings, project: str, *, wait_seconds: float = 0.0, about: str = ""
) -> Iterator[None]:
    """Holds a project for the block.

    A lock on a file in the project keeps other processes of this machine out; the kernel frees it
    when its holder is gone, however it went. Where the ledger is PostgreSQL, a lock of a session in
    its database, by the project's name, keeps other machines out; it is free again when that
    session's connection ends.

    Args:
        settings: Where the project is.
        project: Its name.
        wait_seconds: How long to wait for whoever has it.
        about: What for; who has to wait is told.

    Raises:
        BusyError: Somebody has it, and did not let go in time; says who.
        LedgerError: The ledger's database does not answer.
    """
    until = time.monotonic() + wait_seconds
    note = Note.mine(about)
    with _file_lock(settings, until, note):
        if not settings.ledger_address.startswith("postgresql"):
            yield
            return
        database = Database(settings.ledger_address, PATIENCE_SECONDS)
        with database.reserved(_key(project), project, str(note), until - time.monotonic()):
            yield


@contextmanager
def _file_lock(settings: Settings, until: float, note: Note) -> Iterator[None]:
    lock = FileLock(settings.home / LOCK_FILE)
    place = settings.home / f"{LOCK_FILE}.json"
    _acquire(lock, until, f"another run of {settings.root} is going on", place)
    try:
        note.write(place)
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, until: float, busy: str, place: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        left = until - time.monotonic()
        if left <= 0:
            raise BusyError(f"{busy}; wait until it has ended{_holder(place)}") from None
        log.warning("%s; waiting for its end, %.0f s at most%s", busy, left, _holder(place))
    else:
        return
    try:
        lock.acquire(timeout=left, poll_interval=POLL_SECONDS)
    except Timeout:
        raise BusyError(
            f"{busy}; wait until it has ended: it did not within {left:.0f} s{_holder(place)}"
        ) from None


def _holder(place: Path) -> str:
    note = Note.read(place)
    return f" ({note})" if note else ""


def _key(project: str) -> int:
    """A number for PostgreSQL, 63 bits of a digest of the name."""
    return int.from_bytes(hashlib.sha256(f"stillmark {project}".encode()).digest()[:8]) >> 1
