"""Telling a full disk from other trouble, however deep a library hides it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import SetupError

# No space, no quota, and a limit on the size of files.
CODES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# SQLite's words, and the C library's where only they are passed on.
WORDS = ("database or disk is full", "No space left on device", "Disk quota exceeded")


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is that nothing more can be written."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in CODES:
            return True
        if any(words in str(found) for words in WORDS):
            return True
        # torch raises another error while it handles the true one.
        found = found.__cause__ or found.__context__
    return False


@contextmanager
def clear_when_full(what: str, place: Path) -> Iterator[None]:
    """Says in one line that a disk is full.

    Args:
        what: What was being written.
        place: Where.

    Raises:
        SetupError: It is.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise SetupError(
            f"no space is left on the disk of {place} for {what}: free some (`stillmark gc` says "
            "what can go) and run again; nothing half-made counts"
        ) from error
