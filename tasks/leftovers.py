"""Files that a killed process leaves in a project's own folder."""

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.settings import Settings

KEY_DIGITS = 64
# What processes work in; what is old is nobody's any more, and is not gone on with.
WORK = ("backfill/*", "tmp*", ".write-*", "lineage/rows/tmp*")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that is of no use.

    Attributes:
        name: How it is called to people.
        path: Where it lies.
        size_bytes: What deleting it frees.
    """

    name: str
    path: Path
    size_bytes: int


def of_checkpoints(
    settings: Settings, since: datetime, finished: Collection[str]
) -> Iterator[Leftover]:
    """Checkpoints of stages that are finished, that nobody resumed for long, or half written.

    Args:
        settings: Whose.
        since: Whatever was written from then on may be resumed.
        finished: Keys of stages that need no checkpoint any more.
    """
    for path in sorted((settings.home / "checkpoints").glob("*")):
        is_old = path.stat().st_mtime < since.timestamp()
        if path.suffix == ".partial" or is_old or path.name[:KEY_DIGITS] in finished:
            yield Leftover(path.name, path, size_below(path))


def of_work(settings: Settings, since: datetime) -> Iterator[Leftover]:
    """Unfinished files and scratch folders."""
    for pattern in WORK:
        for path in sorted(settings.home.glob(pattern)):
            if path.lstat().st_ctime < since.timestamp():
                yield Leftover(path.relative_to(settings.root).as_posix(), path, size_below(path))


def size_below(path: Path) -> int:
    """Bytes that deleting a file or folder frees; a file that has other names frees none."""
    files = [path] if not path.is_dir() or path.is_symlink() else path.rglob("*")
    stats = [one.lstat() for one in files if one.is_symlink() or one.is_file()]
    return sum(one.st_size for one in stats if one.st_nlink == 1)


def removed(path: Path) -> None:
    """Deletes a file or a folder; what is gone already is no mistake.

    Raises:
        OSError: It cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
