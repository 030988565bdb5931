"""The lineage record: one canonical JSON document per model, named by its own sha256."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import ArtifactError
from tasks.lineage.digests import (
    FileDigest,
    canonical,
    digest_of_file,
    digest_of_value,
)
from tasks.refs import DataRef

FILE_NAME = "record.json"


class Parent(BaseModel):
    """A model that this one was made from."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    role: str
    record: str
    model_id: str | None


class Code(BaseModel):
    """The code that ran: a digest of `tasks/`, and the git commit it was checked out from.

    `clean` is False where the working tree differed from the commit, and `commit` is None outside
    a git repository: then only the digest says what ran.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    digest: str
    commit: str | None
    clean: bool


class Record(BaseModel):
    """What an auditor needs to check a model again, byte by byte.

    Holds no time of day, so that the same inputs give the same record; times are the MLflow run's.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["stillmark-record/1"] = "stillmark-record/1"
    stage: str
    role: str
    key: str
    data: DataRef
    code: Code
    parameters: dict[str, Any]
    environment: dict[str, Any]
    parents: tuple[Parent, ...]
    files: dict[str, FileDigest]
    content: str
    metrics: dict[str, float]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical form: the record's name."""
        return digest_of_value(self.model_dump(mode="json"))

    def write(self, folder: Path) -> None:
        """Writes the canonical form as `record.json` into a folder."""
        (folder / FILE_NAME).write_bytes(canonical(self.model_dump(mode="json")))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Reads a folder's record.

        Raises:
            ArtifactError: The record is missing or is not one that this version reads.
        """
        path = folder / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing: the model was never finished") from None
        except ValidationError as error:
            raise ArtifactError(
                f"{path} is not a readable record: {error.errors()[0]['msg']}"
            ) from None

    def check(self, folder: Path) -> None:
        """Hashes every recorded file again.

        Raises:
            ArtifactError: A file is missing or differs, by name, with both digests.
        """
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; the record names it")
            found = digest_of_file(path)
            if found != expected:
                raise ArtifactError(f"{path} has sha256 {found.sha256}, recorded {expected.sha256}")
