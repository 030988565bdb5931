"""Models and metrics, in MLflow: the only module that imports it.

Works through the client with explicit run ids: MLflow's active run belongs to a thread and scatters
runs.
"""

import hashlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities import PagedList
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from tasks.errors import ArtifactError, RegistryError, SetupError
from tasks.lineage.record import FILE_NAME as RECORD_FILE
from tasks.lineage.record import Record
from tasks.processes import Process
from tasks.refs import DataRef, ModelRef, VersionRef

KEY_TAG, REF_TAG = "stillmark.key", "stillmark.ref"
CONTENT_TAG, RECORD_TAG = "stillmark.content", "stillmark.record"
EVALUATION_TAG, DATA_TAG = "stillmark.evaluation", "stillmark.data"
STAGE_TAG, REASON_TAG = "stillmark.stage", "stillmark.reason"
OUTCOME_TAG, PROCESS_TAG = "stillmark.outcome", "stillmark.process"
COLLECTED_TAG, BACKFILL_TAG = "stillmark.collected", "stillmark.backfill"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's page shows such runs below their parent
PAYLOAD = "model"
DATASET = "prepared"
PARAMS_PER_CALL = 100
LONGEST_PARAM = 5000
VERSION_TRIES, VERSION_WAIT_SECONDS = 20, 0.05
NO_TIME = "1970-01-01 00:00:00.000000"
SIGNATURE = ModelSignature(
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    )
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished stage as found again: its reference and the folder with its files and record."""

    ref: ModelRef
    folder: Path


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a run at one of its steps, with the time at which they were measured.

    Attributes:
        run_id: MLflow's id of the run.
        step: Steps done.
        metrics: By name.
        time_ms: Milliseconds since 1970.
    """

    run_id: str
    step: int
    metrics: dict[str, float]
    time_ms: int

    @classmethod
    def now(cls, run_id: str, step: int, metrics: dict[str, float]) -> "Figures":
        """Figures that were measured at this moment."""
        return cls(run_id, step, metrics, _now_ms())


@dataclass(frozen=True, slots=True)
class Made:
    """The run that made a model or a report.

    Attributes:
        run_id: MLflow's id of it.
        started: When it began, in UTC.
        ended: When it ended, in UTC.
    """

    run_id: str
    started: datetime
    ended: datetime


class Tracking:
    """One MLflow store.

    Args:
        uri: Tracking and registry address.
        home: Where a local store keeps its artifacts.

    Raises:
        SetupError: The store does not answer, or its database is locked.
    """

    def __init__(self, uri: str, home: Path) -> None:
        self.uri, self.home = uri, home
        self._began: dict[str, int] = {}
        home.mkdir(parents=True, exist_ok=True)
        # Four processes that make a new SQLite store at once crash; one at a time do not.
        with FileLock(home / "mlflow.lock", timeout=120), clear_errors(uri):
            _refuse_locked(uri)
            self.client = MlflowClient(uri, uri)
            self.client.search_experiments(max_results=1)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)

    @property
    def is_local(self) -> bool:
        """Whether artifacts lie on this machine's disk."""
        return self.uri.startswith("sqlite:")

    def experiment(self, name: str) -> str:
        """Id of a project's experiment, made where it is missing."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        place = (self.home / "artifacts").as_uri() if self.is_local else None
        return self.client.create_experiment(name, artifact_location=place)

    def start(
        self,
        project: str,
        stage: str,
        key: str | None = None,
        data: DataRef | None = None,
        parent: str | None = None,
    ) -> str:
        """Opens a run, on a data version and below another run where it has one; returns its id."""
        tags = {STAGE_TAG: stage, "mlflow.runName": stage} | ({KEY_TAG: key} if key else {})
        tags |= {PARENT_TAG: parent} if parent else {}
        tags[PROCESS_TAG] = Process.mine().model_dump_json()
        run = self.client.create_run(self.experiment(project), tags=tags)
        self._began[run.info.run_id] = run.info.start_time or 0
        if data is not None:
            self._log_data(run.info.run_id, data)
        return run.info.run_id

    def _log_data(self, run_id: str, data: DataRef) -> None:
        dataset = Dataset(
            name=DATASET,
            digest=data.prepared,
            source_type="dvc",
            source=json.dumps({"raw": data.raw, "manifest": data.manifest}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [])])

    def log_params(self, run_id: str, params: dict[str, Any]) -> None:
        """Logs a parameter tree under dotted names."""
        flat = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in _flatten(params)]
        for at in range(0, len(flat), PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=flat[at : at + PARAMS_PER_CALL])

    def log_metrics(
        self,
        run_id: str,
        metrics: dict[str, float],
        *,
        step: int = 0,
        model: ModelRef | None = None,
        data: DataRef | None = None,
    ) -> None:
        """Logs figures on a run and, where given, on a model and a data version."""
        now = _now_ms()
        about = {"model_id": model.model_id} if model else {}
        if data:
            about |= {"dataset_name": DATASET, "dataset_digest": data.prepared}
        batch = [Metric(name, value, now, step, **about) for name, value in metrics.items()]
        self.client.log_batch(run_id, metrics=batch)

    def send(self, figures: Figures) -> None:
        """Logs figures of a step, with the time at which they were measured."""
        batch = [
            Metric(name, value, figures.time_ms, figures.step)
            for name, value in figures.metrics.items()
        ]
        self.client.log_batch(figures.run_id, metrics=batch)

    def fail(self, run_id: str, reason: str, status: str = "FAILED") -> None:
        """Ends a run that did not finish, with the reason; `KILLED` where it was ended."""
        self.client.set_tag(run_id, REASON_TAG, reason[:LONGEST_PARAM])
        self._terminate(run_id, status)

    def _terminate(self, run_id: str, status: str) -> None:
        """Ends a run, never before it began: somebody may have set the clock back meanwhile."""
        ended = max(_now_ms(), self._began.pop(run_id, 0))
        self.client.set_terminated(run_id, status, ended)

    def unended(self, project: str) -> list[tuple[Run, Process]]:
        """Runs of a project that have not ended, and the process that each was begun by.

        Those that do not say so, which Stillmark did not begin, are left out.
        """
        experiment = self.client.get_experiment_by_name(project)
        found: list[tuple[Run, Process]] = []
        wanted = "attributes.status = 'RUNNING'"
        ids = [experiment.experiment_id] if experiment else []
        for run in _all(self.client.search_runs, ids, wanted) if ids else ():
            with suppress(ValidationError):
                text = run.data.tags.get(PROCESS_TAG, "")
                found.append((run, Process.model_validate_json(text)))
        return found

    def bury(self, run: Run, reason: str) -> None:
        """Ends a run whose process died, and marks the models that it had begun as failed."""
        run_id = run.info.run_id
        wanted = f"source_run_id = '{run_id}'"
        for model in self.client.search_logged_models([run.info.experiment_id], wanted):
            if model.status == LoggedModelStatus.PENDING:
                self.client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        self._began[run_id] = run.info.start_time or 0
        self.client.set_tag(run_id, OUTCOME_TAG, "killed")
        self.fail(run_id, reason, "KILLED")

    def finish(self, run_id: str, ref: ModelRef) -> None:
        """Ends a run whose results are complete: from here on it is found by its key."""
        tags = {REF_TAG: ref.model_dump_json(), RECORD_TAG: ref.record, CONTENT_TAG: ref.content}
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._terminate(run_id, "FINISHED")

    def end(self, run_id: str) -> None:
        """Ends a run that is no stage's, and so is never found by a key."""
        self._terminate(run_id, "FINISHED")

    def new_model(self, project: str, run_id: str, role: str, key: str) -> str:
        """Opens a logged model, which stays PENDING until `store_model`; returns its id."""
        model = self.client.create_logged_model(
            self.experiment(project),
            name=role,
            source_run_id=run_id,
            tags={KEY_TAG: key},
            model_type=role,
        )
        return model.model_id

    def store_model(self, model_id: str, folder: Path) -> None:
        """Uploads a model's files and its record, and marks it READY; FAILED if that fails."""
        try:
            self.client.log_model_artifacts(model_id, str(folder))
        except BaseException:
            with suppress(MlflowException):  # then it stays PENDING, which is never used either
                self.client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
            raise
        self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)

    def store_report(self, run_id: str, folder: Path) -> None:
        """Uploads a report's files and its record to its run."""
        self.client.log_artifacts(run_id, str(folder))

    def find(self, project: str, key: str) -> Stored | None:
        """The finished stage with a key, where its files still are what its record says.

        A damaged one is passed over, so that the stage runs again; nothing is deleted.
        """
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            return None
        wanted = f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'"
        for run in self.client.search_runs([experiment.experiment_id], wanted):
            try:
                return self._stored(run)
            except ArtifactError:
                continue
        return None

    def _stored(self, run: Run) -> Stored:
        text = run.data.tags.get(REF_TAG)
        if text is None:
            raise ArtifactError(f"run {run.info.run_id} ended without a reference")
        return self.fetch(ModelRef.model_validate_json(text))

    def fetch(self, ref: ModelRef) -> Stored:
        """The files of a finished stage, hashed again.

        Raises:
            ArtifactError: They are missing or are not those recorded.
        """
        folder = self._folder(ref.model_id) if ref.model_id else self.report(ref.run_id)
        _checked(folder, ref.record)
        return Stored(ref, folder)

    def record_of(self, model_id: str | None, digest: str) -> Record:
        """The record of a stored model, its files hashed again.

        Raises:
            ArtifactError: Files or record are missing or are not those recorded.
        """
        if model_id is None:
            raise ArtifactError(f"record {digest} names no model")
        return _checked(self._folder(model_id), digest)

    def report(self, run_id: str) -> Path:
        """Folder with the files that were uploaded to a run.

        Raises:
            ArtifactError: The run or its files are gone.
        """
        try:
            return self._download(self.client.get_run(run_id).info.artifact_uri or "")
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"the files of run {run_id} cannot be fetched: {_first_line(error)}"
            ) from None

    def _folder(self, model_id: str) -> Path:
        try:
            # Not models:/…, which asks whichever store this process named last.
            return self._download(self.client.get_logged_model(model_id).artifact_location)
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"the files of model {model_id} cannot be fetched: {_first_line(error)}"
            ) from None

    def _download(self, uri: str) -> Path:
        return Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=self.uri))

    def stored_at(self, model_id: str) -> Path:
        """Folder with a stored model's files as they are: none is hashed.

        Raises:
            ArtifactError: The model or its files are gone.
        """
        place = self.about_model(model_id).artifact_location
        if not place.startswith("file:"):
            return self._folder(model_id)
        # Read in place: MLflow would leave a note of its own beside the files.
        folder = Path(url2pathname(urlsplit(place).path))
        if not folder.is_dir():
            raise ArtifactError(f"the files of model {model_id} are gone: {folder} is missing")
        return folder

    def about_model(self, model_id: str) -> LoggedModel:
        """What MLflow notes of a stored model: its run, its role, its tags.

        Raises:
            ArtifactError: It was deleted.
        """
        try:
            return self.client.get_logged_model(model_id)
        except MlflowException as error:
            raise ArtifactError(f"model {model_id} is gone: {_first_line(error)}") from None

    def run_tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run.

        Raises:
            ArtifactError: It was deleted.
        """
        try:
            return dict(self.client.get_run(run_id).data.tags)
        except MlflowException as error:
            raise ArtifactError(f"run {run_id} is gone: {_first_line(error)}") from None

    def attached(self, run_id: str, name: str) -> Path | None:
        """A file that was uploaded to a run, or None where it was not.

        Raises:
            ArtifactError: The run is gone.
        """
        self.run_tags(run_id)
        if name not in {found.path for found in self.client.list_artifacts(run_id)}:
            return None
        return self.report(run_id) / name

    def versions_of(self, run_id: str) -> list[ModelVersion]:
        """Every registered version that a run's model was registered as, oldest first."""
        found = _all(self.client.search_model_versions, f"run_id = '{run_id}'")
        return sorted(found, key=lambda version: (version.name, int(version.version)))

    def noted(self, name: str, number: int) -> ModelVersion:
        """What MLflow notes of a version, whoever registered it.

        Raises:
            RegistryError: There is none of that number.
        """
        try:
            return self.client.get_model_version(name, str(number))
        except MlflowException:
            raise RegistryError(f"'{name}' has no version {number}") from None

    def register(self, name: str, ref: ModelRef, tags: dict[str, str]) -> VersionRef:
        """The version of a registered model with these very files; made where there is none.

        Raises:
            RegistryError: The model is not READY, or MLflow refuses it.
            ArtifactError: Its files are not those recorded.
        """
        if ref.model_id is None:
            raise RegistryError(f"{ref.role} is a report, not a model; it cannot be registered")
        known = self._with_content(name, ref.content)
        if known is not None:
            return known
        status = self.client.get_logged_model(ref.model_id).status
        if status != LoggedModelStatus.READY:
            raise RegistryError(f"{ref.role} {ref.model_id} is {status}, expected READY; retrain")
        self.fetch(ref)
        self._make_registered(name)
        made = self._make_version(name, ref, tags)
        # Two processes may register the same files at once; the earlier version stays.
        first = self._with_content(name, ref.content)
        if first is not None and first.version < made:
            self.client.delete_model_version(name, str(made))
            return first
        return VersionRef(name=name, version=made, model=ref)

    def _with_content(self, name: str, content: str) -> VersionRef | None:
        """The oldest version with these files, or None."""
        for version in reversed(self.versions(name)):
            if version.tags.get(CONTENT_TAG) == content:
                return VersionRef(
                    name=name, version=int(version.version), model=self.ref_of(version)
                )
        return None

    def _make_version(self, name: str, ref: ModelRef, tags: dict[str, str]) -> int:
        """A new version; MLflow numbers it MAX + 1, which others may be taking at the moment."""
        for attempt in range(VERSION_TRIES):
            time.sleep(attempt * VERSION_WAIT_SECONDS)
            try:
                made = self.client.create_model_version(
                    name,
                    source=f"models:/{ref.model_id}",
                    run_id=ref.run_id,
                    model_id=ref.model_id,
                    tags={
                        CONTENT_TAG: ref.content,
                        RECORD_TAG: ref.record,
                        REF_TAG: ref.model_dump_json(),
                        **tags,
                    },
                )
            except MlflowException as error:
                if "giving up after" not in str(error).lower():
                    raise RegistryError(
                        f"{ref.role} cannot be registered as '{name}': {_first_line(error)}"
                    ) from None
                continue
            return int(made.version)
        raise RegistryError(
            f"'{name}' got no version number in {VERSION_TRIES} tries, as other processes took "
            "them; run again"
        )

    def _make_registered(self, name: str) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise RegistryError(f"'{name}' cannot be registered: {error}") from None

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version of a registered model, newest first."""
        found = _all(self.client.search_model_versions, f"name = '{name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def registered(self) -> list[str]:
        """Names of all registered models."""
        names: list[str] = []
        token: str | None = None
        while token is None or token:
            page = self.client.search_registered_models(page_token=token)
            names += [model.name for model in page]
            token = page.token or ""
        return sorted(names)

    def finished(self, since_ms: int = 0) -> Iterator[Run]:
        """Finished runs of all projects, deleted ones too.

        Args:
            since_ms: Only those that ended then or later, in milliseconds since 1970.
        """
        wanted = f"attributes.status = 'FINISHED' and attributes.end_time >= {since_ms}"
        for experiment in _all(self.client.search_experiments, view_type=ViewType.ALL):
            yield from _all(
                self.client.search_runs,
                [experiment.experiment_id],
                wanted,
                run_view_type=ViewType.ALL,
                # A run that ends meanwhile moves no later one to a page that was read.
                order_by=["attributes.start_time ASC"],
            )

    def read_record(self, model_id: str | None, run_id: str, digest: str) -> Record:
        """The record of a model, or of a run's report; its own digest is checked, no other file.

        Raises:
            ArtifactError: It is missing, unreadable or not the one recorded.
        """
        whose = f"the record of {model_id or f'run {run_id}'}"
        try:
            if model_id is None:
                place = self.client.get_run(run_id).info.artifact_uri
            else:
                place = self.client.get_logged_model(model_id).artifact_location
            with tempfile.TemporaryDirectory() as scratch:
                # A local store's own file: nothing is copied.
                target = None if str(place).startswith("file:") else scratch
                path = mlflow.artifacts.download_artifacts(
                    f"{place}/{RECORD_FILE}", dst_path=target, tracking_uri=self.uri
                )
                content = Path(path).read_bytes()
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"{whose} cannot be fetched: {_first_line(error)}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ArtifactError(f"{whose} is {found}, the registry says {digest}")
        try:
            return Record.parse(content)
        except ArtifactError as error:
            raise ArtifactError(f"{whose} is {error}") from None

    def all_versions(self) -> Iterator[ModelVersion]:
        """Every version of every registered model."""
        yield from _all(self.client.search_model_versions)

    def aliases(self) -> dict[tuple[str, str], int]:
        """Number of the version that holds an alias, by model and alias, of all models."""
        return {
            (model.name, alias): int(number)
            for model in _all(self.client.search_registered_models)
            for alias, number in model.aliases.items()
        }

    def made(self, run_id: str) -> Made:
        """When a finished run began and ended.

        Raises:
            ArtifactError: The run is gone, or has not ended.
        """
        try:
            info = self.client.get_run(run_id).info
        except MlflowException as error:
            raise ArtifactError(f"run {run_id} is gone: {_first_line(error)}") from None
        if info.start_time is None or info.end_time is None:
            raise ArtifactError(f"run {run_id} is {info.status}, expected one that has ended")
        ended = max(info.start_time, info.end_time)  # written by whoever, by whatever clock
        return Made(run_id, _moment(info.start_time), _moment(ended))

    def maker(self, model_id: str) -> Made:
        """The run that made a model.

        Raises:
            ArtifactError: The model or the run is gone.
        """
        try:
            run_id = self.client.get_logged_model(model_id).source_run_id
        except MlflowException as error:
            raise ArtifactError(f"model {model_id} is gone: {_first_line(error)}") from None
        return self.made(str(run_id))

    def report_of(self, project: str, record: str) -> ModelRef:
        """The finished report with a record.

        Raises:
            ArtifactError: No run of the project has one.
        """
        experiment = self.client.get_experiment_by_name(project)
        wanted = f"tags.`{RECORD_TAG}` = '{record}' and attributes.status = 'FINISHED'"
        ids = [experiment.experiment_id] if experiment else []
        for run in self.client.search_runs(ids, wanted) if ids else []:
            text = run.data.tags.get(REF_TAG)
            if text is not None:
                return ModelRef.model_validate_json(text)
        raise ArtifactError(f"no run of '{project}' left the report with record {record}")

    def evaluation_of(self, version: VersionRef) -> Path | None:
        """Folder with the evaluation that a version was registered with, hashed again.

        Raises:
            ArtifactError: It is gone or is not the recorded one.
        """
        digest = self.tags(version).get(EVALUATION_TAG)
        if digest is None:
            return None
        project = version.name.rpartition(".")[0]
        return payload_of(self.fetch(self.report_of(project, digest)).folder)

    def registered_as(self, record: str) -> list[ModelVersion]:
        """Every registered version with a record, by name and number."""
        found = self.client.search_model_versions(f"tags.`{RECORD_TAG}` = '{record}'")
        return sorted(found, key=lambda version: (version.name, int(version.version)))

    def ref_of(self, version: ModelVersion) -> ModelRef:
        """The reference that a version was registered with.

        Raises:
            RegistryError: It was not registered by Stillmark, or its tag was changed.
        """
        text = version.tags.get(REF_TAG)
        if text is None:
            raise RegistryError(
                f"{version.name} version {version.version} was not registered by Stillmark"
            )
        try:
            return ModelRef.model_validate_json(text)
        except ValidationError:
            raise RegistryError(
                f"{version.name} version {version.version}: its tag {REF_TAG} was changed; "
                "`stillmark verify` says what else was"
            ) from None

    def version(self, name: str, number: int) -> VersionRef:
        """One version of a registered model.

        Raises:
            RegistryError: There is none of that number, or Stillmark did not register it.
        """
        try:
            found = self.client.get_model_version(name, str(number))
        except MlflowException:
            known = ", ".join(str(version.version) for version in self.versions(name)) or "none"
            raise RegistryError(f"'{name}' has no version {number}; versions: {known}") from None
        return VersionRef(name=name, version=number, model=self.ref_of(found))

    def sibling(self, version: VersionRef, name: str) -> VersionRef | None:
        """The version of another model that was evaluated together with a version, or None."""
        tags = self.client.get_model_version(version.name, str(version.version)).tags
        together = tags.get(EVALUATION_TAG)
        for found in self.versions(name) if together else []:
            if found.tags.get(EVALUATION_TAG) == together:
                return VersionRef(name=name, version=int(found.version), model=self.ref_of(found))
        return None

    def tags(self, version: VersionRef) -> dict[str, str]:
        """All tags of a version."""
        return dict(self.client.get_model_version(version.name, str(version.version)).tags)

    def holder(self, name: str, alias: str) -> VersionRef | None:
        """The version that holds an alias, or None."""
        number = self.alias(name, alias)
        return None if number is None else self.version(name, number)

    def alias(self, name: str, alias: str) -> int | None:
        """Number of the version that holds an alias, or None."""
        try:
            return int(self.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise

    def set_alias(self, version: VersionRef, alias: str) -> None:
        """Points an alias at a version."""
        self.client.set_registered_model_alias(version.name, alias, str(version.version))

    def tag_version(self, version: VersionRef, tags: dict[str, str]) -> None:
        """Adds tags to a version."""
        for name, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.version), name, value)

    def load_pyfunc(self, uri: str) -> PyFuncModel:
        """A stored model that predicts on raw rows.

        Raises:
            RegistryError: There is no such model, or it does not predict.
        """
        try:
            return mlflow.pyfunc.load_model(uri)
        except MlflowException as error:
            raise RegistryError(f"{uri} cannot be loaded: {error.message}") from None

    def runs(self, project: str) -> Iterator[Run]:
        """Every run of a project, deleted ones too, oldest first."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is not None:
            yield from _all(
                self.client.search_runs,
                [experiment.experiment_id],
                run_view_type=ViewType.ALL,
                order_by=["attributes.start_time ASC"],
            )

    def models(self, project: str) -> Iterator[LoggedModel]:
        """Every logged model of a project, those without files too."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is not None:
            yield from _all(self.client.search_logged_models, [experiment.experiment_id])

    def knows(self, name: str) -> bool:
        """Whether there is a run or a logged model of that id, in whatever experiment."""
        ask = self.client.get_logged_model if name.startswith("m-") else self.client.get_run
        try:
            ask(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def drop_version(self, name: str, number: int) -> None:
        """Takes a version out of the registry; its number is never given again.

        Raises:
            RegistryError: The store refuses it.
        """
        with _refused(f"{name} version {number}"):
            self.client.delete_model_version(name, str(number))

    def untag_evaluation(self, name: str, number: int) -> None:
        """Lets a version name no evaluation any more.

        Raises:
            RegistryError: The store refuses it.
        """
        with _refused(f"{name} version {number}"):
            self.client.delete_model_version_tag(name, str(number), EVALUATION_TAG)

    def disown(self, run: Run, places: list[str]) -> None:
        """Makes a run no result any more, and notes where its files lie, for whoever deletes them.

        Args:
            run: The run, as it was read.
            places: Addresses of its files and of its models'.

        Raises:
            RegistryError: The store refuses it.
        """
        run_id = run.info.run_id
        with _refused(f"run {run_id}"):
            if run.info.lifecycle_stage == "deleted":
                self.client.restore_run(run_id)  # MLflow lets nobody change tags of a deleted run
            self.client.set_tag(run_id, COLLECTED_TAG, json.dumps(places))
            for name in (REF_TAG, RECORD_TAG, CONTENT_TAG):
                if name in run.data.tags:
                    self.client.delete_tag(run_id, name)

    def drop_model(self, model_id: str) -> None:
        """Deletes a logged model's row, not its files; for good where the store can.

        Raises:
            RegistryError: The store refuses it.
        """
        with _refused(f"model {model_id}"):
            self.client.delete_logged_model(model_id)
            self._purge("_hard_delete_logged_model", model_id)

    def drop_run(self, run_id: str) -> None:
        """Deletes a run's rows, not its files; for good where the store can.

        Raises:
            RegistryError: The store refuses it.
        """
        with _refused(f"run {run_id}"):
            self.client.delete_run(run_id)
            self._purge("_hard_delete_run", run_id)

    @property
    def forgets(self) -> bool:
        """Whether deleted rows are gone for good; a server's own administrator has to do that."""
        return hasattr(self.client._tracking_client.store, "_hard_delete_run")  # noqa: SLF001

    def _purge(self, how: str, name: str) -> None:
        """As `mlflow gc` does it; a server lets nobody but its own administrator do it."""
        purge = getattr(self.client._tracking_client.store, how, None)  # noqa: SLF001 - no public name
        if purge is not None:
            purge(name)

    def size_of(self, place: str) -> int:
        """Bytes of the files at an address.

        Raises:
            ArtifactError: They cannot be listed.
        """
        folder = local_folder(place)
        try:
            if folder is not None:
                return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
            return _bytes_in(get_artifact_repository(place))
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"{place} cannot be listed: {_first_line(error)}") from None

    def remove(self, place: str) -> None:
        """Deletes the files at an address; what is gone already is no mistake.

        Raises:
            ArtifactError: They cannot be deleted.
        """
        folder = local_folder(place)
        try:
            if folder is None:
                get_artifact_repository(place).delete_artifacts()
            elif folder.exists():
                shutil.rmtree(folder)
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"{place} cannot be deleted: {_first_line(error)}") from None

    def place_of(self, project: str) -> str | None:
        """Where a project's artifacts lie, or None of a project that never ran."""
        experiment = self.client.get_experiment_by_name(project)
        return None if experiment is None else experiment.artifact_location

    def note(self, run_id: str, tags: dict[str, str]) -> None:
        """Adds tags to a run."""
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def last_runs(self, project: str, count: int, wanted: str = "") -> list[Run]:
        """The newest runs of a project, or those of them that MLflow's filter lets pass."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            return []
        return list(
            self.client.search_runs(
                [experiment.experiment_id],
                wanted,
                order_by=["attributes.start_time DESC"],
                max_results=count,
            )
        )


def wrap(
    payload: Path, runtime: Path, target: Path, content: str, requirements: tuple[str, ...]
) -> None:
    """Makes an MLflow pyfunc of an exported model, with the code that serves it beside it.

    Args:
        payload: Folder with the model's files.
        runtime: The module that serves them; copied, so that the model needs no Stillmark.
        target: Folder to write.
        content: sha256 of the model's files, from which the envelope's id follows.
        requirements: Packages that the runtime needs beside numpy, pandas and onnxruntime.
    """
    # MLflow would write a random id and the time of day; equal models are to be equal files.
    envelope = Model(signature=SIGNATURE, model_uuid=content[:32], utc_time_created=NO_TIME)
    with tempfile.TemporaryDirectory() as scratch:
        module = f"stillmark_{runtime.stem}"
        copy = Path(shutil.copy(runtime, Path(scratch) / f"{module}.py"))
        data = Path(shutil.copytree(payload, Path(scratch) / PAYLOAD))
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=module,
            data_path=str(data),
            code_paths=[str(copy)],
            mlflow_model=envelope,
            pip_requirements=["mlflow", "numpy", "onnxruntime", "pandas", *requirements],
        )


def validate(accuracy: float, floor: float) -> str | None:
    """Asks `mlflow.validate_evaluation_results`; returns its reason where it says no."""
    from mlflow.models import (  # noqa: PLC0415 - half a second that no other command needs
        EvaluationResult,
        MetricThreshold,
    )
    from mlflow.models.evaluation.validation import (  # noqa: PLC0415
        ModelValidationFailedException,
    )

    found = EvaluationResult(metrics={"accuracy": accuracy}, artifacts={})
    thresholds = {"accuracy": MetricThreshold(threshold=floor, greater_is_better=True)}
    try:
        mlflow.validate_evaluation_results(thresholds, found)
    except ModelValidationFailedException as error:
        return _first_line(error)
    return None


def payload_of(folder: Path) -> Path:
    """Where the stage's own files lie in a stored model."""
    wrapped = folder / "data" / PAYLOAD
    return wrapped if wrapped.is_dir() else folder / PAYLOAD


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Says in one line what the store did not delete."""
    try:
        yield
    except (MlflowException, OperationalError) as error:
        raise RegistryError(f"{what} cannot be deleted: {_first_line(error)}") from None


def local_folder(place: str) -> Path | None:
    """The folder that an address of artifacts means, or None where it is no folder of this host."""
    parts = urlsplit(place)
    if parts.scheme not in {"", "file"}:
        return None
    return Path(url2pathname(parts.path))


def _bytes_in(repository: ArtifactRepository, path: str | None = None) -> int:
    return sum(
        _bytes_in(repository, one.path) if one.is_dir else one.file_size or 0
        for one in repository.list_artifacts(path)
    )


def _all(search: Callable[..., PagedList[Any]], *words: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - MLflow's
    """What a search of MLflow's finds, page by page."""
    token: str | None = None
    while token is None or token:
        page = search(*words, page_token=token, **options)
        yield from page
        token = page.token or ""


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flatten({str(at): item for at, item in enumerate(value)}, f"{path}.")
        else:
            yield path, value


def _checked(folder: Path, digest: str) -> Record:
    record = Record.read(folder)
    if record.digest != digest:
        raise ArtifactError(f"{folder}: the record is {record.digest}, the registry says {digest}")
    record.check(folder)
    return record


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Says in one line that a store is locked or does not answer."""
    try:
        yield
    except (MlflowException, OperationalError, sqlite3.Error, OSError) as error:
        raise SetupError(f"MLflow's store {uri} does not answer: {_first_line(error)}") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refuse_locked(uri: str) -> None:
    """SQLite lets readers in while a writer sits on the file: try to write before work starts."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return
    connection = sqlite3.connect(path, timeout=10)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
    except sqlite3.OperationalError as error:
        raise SetupError(
            f"{path} cannot be written ({error}); end the process that holds it, or wait"
        ) from None
    except sqlite3.DatabaseError as error:
        raise SetupError(f"{path} is no MLflow database ({error}); move it away") from None
    finally:
        connection.close()
