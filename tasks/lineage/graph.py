"""What the index says: models, reports and versions, and the edges among them."""

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tasks.lineage.record import Record
from tasks.refs import DataRef

DATA_COLUMNS = ("raw", "prepared", "manifest", "data_content")


@dataclass(frozen=True, slots=True)
class Copy:
    """One stored record as it was found in the registry.

    Attributes:
        digest: sha256 that the registry says it has; empty where it does not say.
        record: The record, or None where it could not be read.
        reason: Why it could not be read.
    """

    stage: str
    role: str
    run_id: str
    model_id: str | None
    digest: str
    record: Record | None = None
    reason: str | None = None


class Edge(NamedTuple):
    """A model and one that it was made from, both by their records."""

    child: str
    role: str
    parent: str


class Version(NamedTuple):
    """A registered version; `digest` is its record's, `reason` says why there is none."""

    name: str
    number: int
    digest: str
    reason: str | None = None


class Holding(NamedTuple):
    """An alias that a version holds (`now`) or is known to have held."""

    name: str
    number: int
    alias: str
    now: bool


class Held(NamedTuple):
    """A registered version with its aliases."""

    name: str
    number: int
    now: tuple[str, ...]
    ever: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model or report in the graph.

    Attributes:
        digest: sha256 of its record.
        state: `known`; `unknown` where its record cannot be read; `missing` where only its child
            names it.
        reason: Why it is not known.
        run_ids: MLflow runs that made it.
        model_ids: MLflow models that hold it.
        versions: Registered versions of it.
        facts: The record's other fields, by the columns of the table `records`; empty where it is
            not known.
    """

    digest: str
    stage: str
    role: str
    is_model: bool
    state: Literal["known", "unknown", "missing"]
    reason: str | None
    run_ids: tuple[str, ...]
    model_ids: tuple[str, ...]
    versions: tuple[Held, ...]
    facts: dict[str, Any]

    @property
    def data(self) -> DataRef | None:
        """The data version that it was made from, where it is known."""
        if not self.facts:
            return None
        raw, prepared, manifest, content = (self.facts[name] for name in DATA_COLUMNS)
        return DataRef(raw=raw, prepared=prepared, manifest=manifest, content=content)

    @property
    def metrics(self) -> dict[str, float]:
        """Figures that its stage returned; none where it is not known."""
        return json.loads(self.facts["metrics"]) if self.facts else {}


@dataclass(frozen=True, slots=True)
class Graph:
    """Part of the graph: artifacts by their records' digests, and the edges among them."""

    artifacts: dict[str, Artifact]
    edges: tuple[Edge, ...]
