"""Files as DVC 3 keeps them in its cache and in remotes: each under the md5 of its bytes."""

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import DataError

LISTED = ".dir"
NAMED = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True, slots=True)
class Places:
    """Where DVC keeps data files, each under its md5.

    Attributes:
        cache: The cache's folder.
        remote: Name of the default remote, or None where there is none.
        address: The remote's address, or None.
    """

    cache: Path
    remote: str | None
    address: str | None

    @property
    def folder(self) -> Path | None:
        """The remote's folder, where it lies on this machine."""
        if self.address is None or "://" in self.address:
            return None
        return Path(self.address)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a data file, as it was found and hashed.

    Attributes:
        name: Path inside the data version; empty for the listing of the version itself.
        place: `cache`, or the remote's name.
        path: Where the copy lies, or should.
        expected: md5 (hex) that it is named by.
        found: md5 (hex) of its bytes, or None where it is missing.
        size_bytes: Its size, or None where it is missing.
    """

    name: str
    place: str
    path: Path
    expected: str
    found: str | None
    size_bytes: int | None

    @classmethod
    def find(cls, name: str, place: str, folder: Path, md5: str) -> "Copy":
        """Looks for a file in the folder of a cache or a remote, and hashes it."""
        path = place_of(folder, md5)
        try:
            size, found = path.stat().st_size, md5_of_file(path)
        except OSError:
            return cls(name, place, path, md5, None, None)
        return cls(name, place, path, md5, f"{found}{LISTED if md5.endswith(LISTED) else ''}", size)

    @property
    def is_whole(self) -> bool:
        """Whether the bytes are those that it is named by."""
        return self.found == self.expected


def md5_of_file(path: Path) -> str:
    """md5 (hex) of a file's bytes: the name under which DVC keeps it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest()


def _md5() -> Any:  # noqa: ANN401 - hashlib has no public name for it
    return hashlib.md5(usedforsecurity=False)


def place_of(folder: Path, md5: str) -> Path:
    """Where a cache or a remote of DVC 3 keeps a file."""
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def check_name(md5: str) -> None:
    """Refuses what DVC never named a file.

    Raises:
        DataError: It is no digest.
    """
    if not NAMED.fullmatch(md5):
        raise DataError(f"'{md5}' is no digest of DVC's, expected 32 hex digits")


def read_listing(path: Path) -> dict[str, str]:
    """The files that a stored listing names: md5 by relative POSIX path.

    Raises:
        DataError: It is no listing, or names a file outside its folder.
    """
    try:
        found = {str(one["relpath"]): str(one["md5"]) for one in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is no listing of DVC's; remove it and fetch it again") from None
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path} names '{name}', which lies outside the data version")
    return found


def adopt(source: Path, path: Path, md5: str) -> None:
    """Copies a remote's file into the cache, whole or not at all.

    Raises:
        DataError: The remote's copy is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        copy = Path(shutil.copyfile(source, Path(scratch) / "copy"))
        found = md5_of_file(copy)
        if found != md5.removesuffix(LISTED):
            raise DataError(
                f"{source} has md5 {found}, expected {md5.removesuffix(LISTED)}: the remote's copy "
                "is damaged; `dvc push` it again where it still is whole"
            )
        copy.chmod(0o444)  # as DVC keeps it
        copy.replace(path)
