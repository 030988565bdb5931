"""sha256 of files, folders and plain values."""

import hashlib
from pathlib import Path
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict

EXACT = 2**53


class FileDigest(BaseModel):
    """What one stored file must be: its sha256 (hex) and its size in bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sha256: str
    size_bytes: int


def canonical(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """JSON in its canonical form (RFC 8785), so that equal values have equal bytes."""
    return rfc8785.dumps(_doubles(value))


def _doubles(value: Any) -> Any:  # noqa: ANN401
    """A whole double beyond 2^53 is read back from JSON as an int; it means the double."""
    if isinstance(value, dict):
        return {name: _doubles(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_doubles(inner) for inner in value]
    return float(value) if isinstance(value, int) and abs(value) >= EXACT else value


def digest_of_value(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """sha256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_of_file(path: Path) -> FileDigest:
    """sha256 and size of a file."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileDigest(sha256=sha256, size_bytes=path.stat().st_size)


def digests_of_folder(folder: Path) -> dict[str, FileDigest]:
    """Digest of every file below a folder, by its relative POSIX path, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in files}


def digest_of_files(files: dict[str, FileDigest]) -> str:
    """One sha256 for a set of files: names, sizes and contents."""
    return digest_of_value({name: digest.model_dump() for name, digest in files.items()})
