"""What an MLflow store and a ledger hold of a project, as plain facts for `tasks.reachable`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from tasks.errors import ArtifactError
from tasks.ledger import Ledger
from tasks.reachable import Facts, Made, Model, Node, Read, Run, Version, version_node
from tasks.refs import ModelRef
from tasks.tracking import (
    BACKFILL_TAG,
    COLLECTED_TAG,
    EVALUATION_TAG,
    KEY_TAG,
    PARENT_TAG,
    RECORD_TAG,
    REF_TAG,
    STAGE_TAG,
    Tracking,
)

WITNESS = "stillmark.ledger."
SOURCE = "models:/"


@dataclass(frozen=True)
class Inventory:
    """What a store holds of a project.

    Attributes:
        facts: Versions, runs and models.
        runs: MLflow's own notes of the runs, by id.
        models: MLflow's own notes of the models, by id.
        begun: Runs that an earlier collection has begun to delete, with the addresses of what
            belongs to them.
    """

    facts: Facts
    runs: dict[str, Any]
    models: dict[str, Any]
    begun: dict[str, list[str]]


def take(tracking: Tracking, project: str) -> Inventory:
    """Reads all that a store holds of a project."""
    runs = {run.info.run_id: run for run in tracking.runs(project)}
    models = {model.model_id: model for model in tracking.models(project)}
    begun = {
        run_id: json.loads(run.data.tags[COLLECTED_TAG])
        for run_id, run in runs.items()
        if COLLECTED_TAG in run.data.tags and (tracking.forgets or not _is_deleted(run))
    }
    facts = Facts(
        versions=tuple(_versions(tracking, project)),
        runs=tuple(_run(run) for run in runs.values() if COLLECTED_TAG not in run.data.tags),
        models=tuple(
            Model(one.model_id, one.source_run_id, _moment(one.creation_timestamp))
            for one in models.values()
        ),
    )
    return Inventory(facts, runs, models, begun)


def _is_deleted(run: Any) -> bool:  # noqa: ANN401 - MLflow's Run
    return run.info.lifecycle_stage == "deleted"


def _versions(tracking: Tracking, project: str) -> Iterator[Version]:
    held = {(name, number) for (name, _), number in tracking.aliases().items()}
    for noted in tracking.all_versions():
        name, number, ref = noted.name, int(noted.version), reference(noted.tags)
        source = str(noted.source or "")
        named = source.removeprefix(SOURCE) if source.startswith(SOURCE) else None
        yield Version(
            name=name,
            number=number,
            created=_moment(noted.creation_timestamp),
            run_id=noted.run_id or (ref.run_id if ref else None),
            model_id=(ref and ref.model_id) or noted.model_id or named,
            record=noted.tags.get(RECORD_TAG),
            evaluation=noted.tags.get(EVALUATION_TAG),
            key=ref.key if ref else None,
            is_ours=name.rpartition(".")[0] == project and ref is not None,
            is_held=(name, number) in held or any(tag.startswith(WITNESS) for tag in noted.tags),
            is_backfilled=BACKFILL_TAG in noted.tags,
        )


def _run(run: Any) -> Run:  # noqa: ANN401 - MLflow's Run
    tags, info, ref = run.data.tags, run.info, reference(run.data.tags)
    return Run(
        run_id=info.run_id,
        stage=tags.get(STAGE_TAG, ""),
        status=info.status,
        touched=_moment(info.end_time or info.start_time),
        record=ref.record if ref else tags.get(RECORD_TAG),
        model_id=ref.model_id if ref else None,
        key=ref.key if ref else tags.get(KEY_TAG),
        parent=tags.get(PARENT_TAG),
    )


def reference(tags: dict[str, str]) -> ModelRef | None:
    """What tags say of a result, or None where they say nothing that can be read."""
    try:
        return ModelRef.model_validate_json(tags.get(REF_TAG, ""))
    except ValidationError:
        return None


def _moment(milliseconds: int | None) -> datetime:
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)


def named_by(ledger: Ledger) -> set[Node]:
    """What the rows, the open intents and the requests of a ledger name.

    Raises:
        LedgerError: It cannot be read.
    """
    entries, requests = ledger.entries(), ledger.requests()
    found = {version_node(one.model, one.version) for one in (*entries, *requests)}
    found |= {version_node(one.model, one.version) for one in ledger.open_intents()}
    found |= {
        version_node(one.model, one.previous_version) for one in entries if one.previous_version
    }
    found |= {Node("record", one.record) for one in entries}
    runs = {one.evidence_run for one in (*entries, *requests)} - {None}
    return found | {Node("run", str(run_id)) for run_id in runs}


def named_as(refs: Iterable[ModelRef]) -> set[Node]:
    """The nodes of results, for example of those that a retraining would take as they are."""
    found: set[Node] = set()
    for ref in refs:
        found |= {Node("run", ref.run_id), Node("record", ref.record)}
        found |= {Node("model", ref.model_id)} if ref.model_id else set()
    return found


def reader(tracking: Tracking) -> Read:
    """Reads records out of a store."""

    def read(digest: str, model_id: str | None, run_id: str) -> Made | None:
        try:
            record = tracking.read_record(model_id, run_id, digest)
        except ArtifactError:
            if tracking.knows(model_id or run_id):
                raise
            return None  # nothing of it is stored: there is no record to follow
        data = record.data
        return Made(
            parents=tuple((parent.record, parent.model_id) for parent in record.parents),
            data=(data.raw, data.prepared),
        )

    return read
