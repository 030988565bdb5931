"""Git's command: the one place that starts it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import SetupError


def ask(root: Path, words: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Asks git, whatever it answers.

    Args:
        root: The folder to stand in.
        words: Its arguments; a name that came from outside must not begin with `-`.
        given: Its standard input.

    Raises:
        SetupError: Git is not installed.
    """
    try:
        return subprocess.run(  # noqa: S603 - our own words, and what git itself named
            ["git", "-C", str(root), *words],  # noqa: S607 - the user's git, wherever it is
            input=given,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise SetupError("git is not installed; install it, or put it on the PATH") from None


def output(root: Path, words: Sequence[str], given: bytes = b"") -> bytes:
    """What git prints; arguments as those of `ask`.

    Raises:
        SetupError: Git is not installed, or refuses.
    """
    done = ask(root, words, given)
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[0]
        raise SetupError(f"git cannot be asked about {root}: {said}")
    return done.stdout


def answer(root: Path, *words: str) -> bytes | None:
    """What git prints, or None where it is not installed, or refuses: no repository, no object."""
    try:
        done = ask(root, words)
    except SetupError:
        return None
    return None if done.returncode else done.stdout
