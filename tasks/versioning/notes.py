"""The files in which DVC notes what a project's data is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks.versioning.places import NAMED

DATA_FILE, LOCK_FILE = "data.dvc", "dvc.lock"
STAGE = "prepare"
PREPARED = "prepared"
OUTPUTS = ("data", PREPARED)


def read(path: Path) -> dict[str, Any]:
    """What one of them says.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def digests(content: bytes) -> set[str]:
    """Digests of what one of them keeps; none of one that DVC would not read either."""
    try:
        tree = yaml.safe_load(content)
        stages = [tree, *(tree.get("stages") or {}).values()]
        found = {str(out.get("md5")) for stage in stages for out in stage.get("outs") or ()}
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        return set()
    return {name for name in found if NAMED.fullmatch(name)}


def below(root: Path) -> Iterator[Path]:
    """All of them in a working tree."""
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name[0] != "." and name not in OUTPUTS]
        yield from (
            Path(folder, name) for name in files if name == LOCK_FILE or name.endswith(".dvc")
        )
