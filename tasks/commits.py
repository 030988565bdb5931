"""What git still has of a project's files: every version of them, and when each came to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks import git
from tasks.errors import DataError, SetupError


@dataclass(frozen=True, slots=True)
class Change:
    """A commit that changed a file.

    Attributes:
        commit: Its id.
        date: When it was committed.
        content: The file as it was from then on, or None where the commit removed it.
    """

    commit: str
    date: datetime
    content: str | None


def is_kept(root: Path) -> bool:
    """Whether a folder lies in a git repository.

    Raises:
        SetupError: It does, but git cannot be asked about it.
    """
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return False
    _git(root, "rev-parse", "--git-dir")
    return True


def all_contents(root: Path, patterns: Sequence[str]) -> list[bytes]:
    """Every content that files have in any commit that git still has, and in its index.

    Args:
        root: A folder in the repository.
        patterns: Which files below it, as git's pathspecs.

    Returns:
        Each content once; nothing where there is no repository.

    Raises:
        SetupError: Git cannot be asked.
    """
    if not is_kept(root):
        return []
    # Without the full history git leaves out a branch whose changes a merge undid.
    told = ("--raw", "--no-abbrev", "--no-renames", "--format=", "-m", "--full-history")
    asked = ("-c", "log.showRoot=true", "log", "--all", "--reflog", *told, "--", *patterns)
    # :<mode> <mode> <blob before> <blob after> <letter> <path>
    sides = [line.split()[2:4] for line in _git(root, *asked).splitlines() if line[:1] == ":"]
    names = {name for pair in sides for name in pair if name.strip("0")}
    staged = _git(root, "ls-files", "-s", "--", *patterns).splitlines()
    names |= {line.split()[1] for line in staged}
    return list(_blobs(root, sorted(names)))


def _blobs(root: Path, names: list[str]) -> Iterator[bytes]:
    """The contents of those objects that are files."""
    asked = "".join(f"{name}\n" for name in names).encode()
    found = git.output(root, ("cat-file", "--batch"), asked)
    at = 0
    while at < len(found):
        end = found.index(b"\n", at)
        words = found[at:end].split()
        if words[-1] == b"missing":  # of a partial clone
            raise SetupError(f"git lacks object {words[0].decode()}; fetch it (`git fetch`)")
        size = int(words[2])
        if words[1] == b"blob":
            yield found[end + 1 : end + 1 + size]
        at = end + size + 2


def changes(root: Path, file: str) -> list[Change]:
    """The commits from HEAD back that changed a file, oldest first.

    Raises:
        SetupError: The project is in no git repository, or git cannot be asked.
    """
    _need_git(root)
    if not _known(root, "HEAD"):
        return []
    lines = _git(root, "log", "--reverse", "--format=%H %cI", "--", file).splitlines()
    return [_change(root, file, *line.split()) for line in lines]


def _change(root: Path, file: str, commit: str, date: str) -> Change:
    place = f"{commit}:./{file}"
    content = _git(root, "show", place) if _known(root, place) else None
    return Change(commit, datetime.fromisoformat(date), content)


def ancestors(root: Path, revision: str) -> set[str]:
    """Ids of a commit, named as git names them, and of all before it.

    Raises:
        DataError: There is no such commit.
        SetupError: Git cannot be asked.
    """
    _need_git(root)
    if revision.startswith("-") or not _known(root, f"{revision}^{{commit}}"):
        raise DataError(
            f"'{revision}' is neither a date (2026-01-31) nor a commit that git has; see `git log`"
        )
    return set(_git(root, "rev-list", revision).split())


def _need_git(root: Path) -> None:
    if not is_kept(root):
        raise SetupError(f"{root} is in no git repository, so nothing says what data came when")


def _known(root: Path, name: str) -> bool:
    return git.ask(root, ("rev-parse", "--verify", "--quiet", name)).returncode == 0


def _git(root: Path, *words: str) -> str:
    return git.output(root, words).decode()
