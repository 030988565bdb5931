"""What git's history knows of data versions."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks import commits, git
from tasks.versioning import notes
from tasks.versioning.notes import DATA_FILE, LOCK_FILE

NOTES = ("*.dvc", LOCK_FILE, f"*/{LOCK_FILE}")


@dataclass(frozen=True, slots=True)
class Past:
    """A data version as git's history knows it.

    Attributes:
        raw: DVC's digest of `data/` (`<md5>.dir`).
        commit: The commit that brought it in.
        date: When that was.
    """

    raw: str
    commit: str
    date: datetime


@dataclass(frozen=True, slots=True)
class History:
    """The data versions that a project has had.

    Attributes:
        root: The project's folder.
    """

    root: Path

    def past(self) -> list[Past]:
        """The data versions that git's history knows from HEAD back, oldest first.

        One that was brought back later is there twice.

        Raises:
            SetupError: The project is in no git repository.
        """
        return [
            Past(raw, change.commit, change.date)
            for change in commits.changes(self.root, DATA_FILE)
            for raw in notes.digests((change.content or "").encode())
        ]

    def named(self) -> set[str]:
        """Every digest that a file of DVC's names, in the working tree or any commit of git's.

        Raises:
            SetupError: Git cannot be asked.
        """
        contents = [path.read_bytes() for path in notes.below(self.root)]
        contents += commits.all_contents(self.root, NOTES)
        return {name for content in set(contents) for name in notes.digests(content)}

    def changed(self) -> datetime:
        """When the data last changed: the commit of data.dvc, or its file where git knows less."""
        file = self.root / DATA_FILE
        if not git.answer(self.root, "status", "--porcelain", "--", DATA_FILE):
            committed = git.answer(self.root, "log", "-1", "--format=%cI", "--", DATA_FILE)
            if committed:
                return datetime.fromisoformat(committed.decode().strip())
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
