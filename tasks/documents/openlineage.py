"""OpenLineage run events: a START and a COMPLETE of every stage (openlineage.io, spec 2-0-2).

Every stage is a job of the namespace `stillmark.<project>`; models and prepared data are its
datasets. The file holds one event a line. `send` posts the same events to the address that
OpenLineage's own variables name: OPENLINEAGE_URL, OPENLINEAGE_ENDPOINT, OPENLINEAGE_API_KEY.
"""

import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    JobFacet,
    RunFacet,
    dataset_type_dataset,
    dataset_version_dataset,
    execution_parameters_run,
    job_type_job,
    processing_engine_run,
    schema_dataset,
    set_producer,
    source_code_location_job,
    tags_dataset,
    tags_job,
)
from openlineage.client.transport.file import FileConfig, FileTransport
from openlineage.client.transport.http import HttpConfig, HttpTransport
from openlineage.client.transport.transport import Transport

from tasks.documents import Chain, Link, Manifest, dotted
from tasks.errors import SetupError
from tasks.refs import DataRef

FILE_NAME = "openlineage.ndjson"
PACKAGE = "stillmark"
URL, ENDPOINT, API_KEY = "OPENLINEAGE_URL", "OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY"
DATA = "prepared"

# This version of Stillmark, as a package URL; OpenLineage keeps it for all events and facets.
set_producer(f"pkg:pypi/{PACKAGE}@{metadata.version(PACKAGE)}")


def events(chain: Chain) -> list[RunEvent]:
    """START and COMPLETE of every stage of a chain, and of its evaluation, in the order of time."""
    links = [*chain.links, *([chain.report] if chain.report else [])]
    found = [event for link in links for event in _Told(chain, link).events()]
    return sorted(found, key=lambda event: datetime.fromisoformat(event.eventTime))


def render(chain: Chain) -> bytes:
    """The events as newline-delimited JSON, by OpenLineage's file transport."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / FILE_NAME
        _emit(chain, FileTransport(FileConfig(log_file_path=str(path), append=True)))
        return path.read_bytes()


def send(chain: Chain) -> int:
    """Posts the events to the address in OPENLINEAGE_URL.

    Returns:
        How many were posted.

    Raises:
        SetupError: No address is set, or it does not take the events.
    """
    address = os.environ.get(URL)
    if not address:
        raise SetupError(f"{URL} is not set; set it to OpenLineage's address, or write the file")
    key = os.environ.get(API_KEY)
    config: dict[str, Any] = {"url": address}
    config |= {"endpoint": os.environ[ENDPOINT]} if os.environ.get(ENDPOINT) else {}
    config |= {"auth": {"type": "api_key", "apiKey": key}} if key else {}
    try:
        return _emit(chain, HttpTransport(HttpConfig.from_dict(config)))
    except (OSError, RuntimeError, ValueError) as error:
        # The address may hold a password, and so may the error's own words.
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP status {status}" if status else type(error).__name__
        raise SetupError(
            f"OpenLineage at {urlsplit(address).hostname} does not take the events: {reason}; "
            f"check {URL}"
        ) from None


def _emit(chain: Chain, transport: Transport) -> int:
    found = events(chain)
    try:
        for event in found:
            transport.emit(event)
    finally:
        transport.close()
    return len(found)


class _Told:
    """One stage of a chain as events."""

    def __init__(self, chain: Chain, link: Link) -> None:
        self.chain, self.link, self.record = chain, link, link.record
        self.namespace = f"{PACKAGE}.{chain.project}"

    def events(self) -> Iterator[RunEvent]:
        yield self.event(RunState.START, self.link.made.started, [])
        yield self.event(RunState.COMPLETE, self.link.made.ended, [self.output()])

    def event(self, state: RunState, time: datetime, outputs: list[OutputDataset]) -> RunEvent:
        return RunEvent(
            eventType=state,
            eventTime=time.isoformat(timespec="milliseconds"),
            # MLflow's run ids are UUIDs without their dashes.
            run=Run(str(UUID(self.link.made.run_id)), self.run_facets()),
            job=Job(self.namespace, self.record.stage, self.job_facets()),
            inputs=[self.data(self.record.data), *self.parents()],
            outputs=outputs,
        )

    def run_facets(self) -> dict[str, RunFacet]:
        parameters = [
            execution_parameters_run.ExecutionParameter(key=name, name=name, value=value)
            for name, value in dotted(self.record.parameters)
        ]
        facets: dict[str, RunFacet] = {
            "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(parameters)
        }
        version = self.record.environment.get("packages", {}).get(PACKAGE)
        if version is not None:
            facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(
                version=str(version),
                name=PACKAGE,
                openlineageAdapterVersion=metadata.version("openlineage-python"),
            )
        return facets

    def job_facets(self) -> dict[str, JobFacet]:
        code = self.record.code
        told = {"code.digest": code.digest, "code.clean": str(code.clean).lower()}
        facets: dict[str, JobFacet] = {
            "jobType": job_type_job.JobTypeJobFacet(
                processingType="BATCH", integration=PACKAGE.upper(), jobType="TASK"
            ),
            "tags": tags_job.TagsJobFacet(
                [tags_job.TagsJobFacetFields(*pair, source=PACKAGE) for pair in told.items()],
            ),
        }
        if code.commit is not None:
            # A Software Heritage identifier names a commit wherever the repository lies.
            facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
                type="git", url=f"swh:1:rev:{code.commit}", version=code.commit
            )
        return facets

    def data(self, ref: DataRef) -> InputDataset:
        told = {"raw": ref.raw, "prepared": ref.prepared, "manifest": ref.manifest}
        facets = self.facets("TABLE", ref.content, told)
        manifest = self.chain.manifests.get(ref.content)
        if isinstance(manifest, Manifest):
            fields = [
                schema_dataset.SchemaDatasetFacetFields(name, kind, ordinal_position=at)
                for at, (name, kind) in enumerate(manifest.columns.items(), start=1)
            ]
            facets["schema"] = schema_dataset.SchemaDatasetFacet(fields)
        return InputDataset(self.namespace, DATA, facets=facets)

    def parents(self) -> Iterator[InputDataset]:
        for parent in self.record.parents:
            known = self.chain.by_digest.get(parent.record)
            if known is not None:
                yield InputDataset(self.namespace, known.name, facets=self.model(known))
            else:
                # A report also compares models that are none of this chain's.
                name = f"{self.chain.project}.{parent.role}"
                facets = self.facets("MODEL", parent.record, {"role": parent.role})
                yield InputDataset(self.namespace, name, facets=facets)

    def output(self) -> OutputDataset:
        return OutputDataset(self.namespace, self.link.name, facets=self.model(self.link))

    def model(self, link: Link) -> dict[str, DatasetFacet]:
        told = {"content": link.record.content, "role": link.record.role}
        told |= {"mlflow.model": link.model_id} if link.model_id else {}
        told |= {"version": str(link.version)} if link.version else {}
        return self.facets("MODEL" if link.model_id else "FILE", link.digest, told)

    def facets(self, kind: str, version: str, told: dict[str, str]) -> dict[str, DatasetFacet]:
        tags = [tags_dataset.TagsDatasetFacetFields(*pair, source=PACKAGE) for pair in told.items()]
        return {
            "version": dataset_version_dataset.DatasetVersionDatasetFacet(version),
            "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(kind),
            "tags": tags_dataset.TagsDatasetFacet(tags),
        }
