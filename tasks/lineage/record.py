"""The lineage record: one canonical JSON document per model, named by its own sha256.

Specified in docs/lineage-record.md; `record.schema.json` says the same to other programs.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import from_json

from tasks.errors import ArtifactError
from tasks.lineage.digests import (
    FileDigest,
    canonical,
    digest_of_file,
    digest_of_value,
)
from tasks.refs import DataRef

FILE_NAME = "record.json"
READABLE = ("stillmark-record/1",)
SCHEMA = Path(__file__).with_name("record.schema.json")
LONGEST = 40
SCHEMA_ID = "urn:stillmark:record:1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


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
            content = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing: the model was never finished") from None
        except OSError as error:
            raise ArtifactError(f"{path} is not a readable record: {error.strerror}") from None
        try:
            return cls.parse(content)
        except ArtifactError as error:
            raise ArtifactError(f"{path} is {error}") from None

    @classmethod
    def parse(cls, content: bytes) -> "Record":
        """A record from its bytes.

        Raises:
            ArtifactError: They are no record, are one of a format that this version does not read,
                or differ from the canonical form, by whose sha256 a record is named.
        """
        _refuse_format(content)
        try:
            found = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _unreadable(f"{place}: {first['msg']}") from None
        try:
            is_canonical = canonical(found.model_dump(mode="json")) == content
        except (ValueError, OverflowError) as error:
            raise _unreadable(str(error)) from None
        if not is_canonical:
            raise _unreadable("it is not in canonical form (RFC 8785), so it was changed since")
        return found

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


class _Untitled(GenerateJsonSchema):
    """Fields have names; a title would only repeat them."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - pydantic's own
        return False


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the newest format, made from the class that reads it.

    `record.schema.json` is this, as a file for other programs.
    """
    plain = Record.model_json_schema(mode="serialization", schema_generator=_Untitled)
    return {"$schema": DIALECT, "$id": SCHEMA_ID, **plain}


def _refuse_format(content: bytes) -> None:
    """Before anything else: a newer format may differ in every other field."""
    try:
        plain = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise _unreadable(f"it was cut or changed ({error})") from None
    found = plain.get("format") if isinstance(plain, dict) else None
    if found not in READABLE:
        raise _unreadable(
            f"its format is {str(found)[:LONGEST]!r}, this version of Stillmark reads "
            f"{', '.join(READABLE)}; read a newer one with the version that wrote it"
        )


def _unreadable(reason: str) -> ArtifactError:
    return ArtifactError(f"not a readable record: {reason}")
