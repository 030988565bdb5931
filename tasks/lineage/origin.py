"""What ran, and on what: digests of the code and a list of the packages."""

import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from tasks import git
from tasks.lineage.digests import digest_of_file, digest_of_files
from tasks.lineage.record import Code

CODE = Path(__file__).parents[1]
PACKAGE = "stillmark"
DECIDING = ("flows", "tasks", "params.yaml", "dvc.yaml")


@cache
def code() -> Code:
    """The code of all stages: every Python file of `tasks/`, whatever a stage may reach.

    A stale reuse would be a defect; a needless rerun is not.
    """
    files = {
        path.relative_to(CODE).as_posix(): digest_of_file(path)
        for path in sorted(CODE.rglob("*.py"))
    }
    commit = git.answer(CODE.parent, "rev-parse", "HEAD")
    changed = git.answer(CODE.parent, "status", "--porcelain", "--", *DECIDING)
    return Code(
        digest=digest_of_files(files),
        commit=None if commit is None else commit.decode().strip(),
        clean=commit is not None and changed == b"",
    )


@cache
def packages() -> dict[str, str]:
    """Python and every package that the project needs at run time, with versions."""
    found: dict[str, str] = {"python": platform.python_version()}
    waiting = [PACKAGE]
    while waiting:
        name = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on other platforms only
        needs = [need for need in distribution.requires or [] if "extra ==" not in need]
        names = {_normal(re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0]) for need in needs}
        waiting += sorted(names - found.keys())
        found[_normal(name)] = distribution.version
    return dict(sorted(found.items()))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
