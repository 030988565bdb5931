"""References: the few hundred bytes that stages hand to one another instead of data and models."""

from pydantic import BaseModel, ConfigDict


class Ref(BaseModel):
    """A frozen, plain value; safe to send between processes and machines."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataRef(Ref):
    """One version of the prepared data.

    Attributes:
        raw: DVC's digest of `data/` (`<md5>.dir`).
        prepared: DVC's digest of `prepared/` (`<md5>.dir`).
        manifest: sha256 of the row manifest.
        content: sha256 over every prepared file; what stage keys depend on.
    """

    raw: str
    prepared: str
    manifest: str
    content: str


class ModelRef(Ref):
    """What a finished stage left in MLflow.

    Attributes:
        stage: Name of the stage.
        role: What the model is in the chain, for example `teacher`.
        key: The stage key under which it is found again.
        run_id: MLflow run that holds its metrics.
        model_id: MLflow logged model, or None for a stage that makes a report.
        record: sha256 of its lineage record.
        content: sha256 over the files that the stage wrote; what later stage keys depend on.
    """

    stage: str
    role: str
    key: str
    run_id: str
    model_id: str | None
    record: str
    content: str


class VersionRef(Ref):
    """A registered version of a model."""

    name: str
    version: int
    model: ModelRef
