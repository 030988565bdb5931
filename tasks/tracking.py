"""Models and metrics, in MLflow: the only module that imports it.

Works through the client with explicit run ids: MLflow's active run belongs to a thread and scatters
runs.
"""

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from sqlalchemy.exc import OperationalError

from tasks.errors import ArtifactError, RegistryError, SetupError
from tasks.lineage.record import Record
from tasks.refs import DataRef, ModelRef, VersionRef

KEY_TAG, REF_TAG = "stillmark.key", "stillmark.ref"
CONTENT_TAG, RECORD_TAG = "stillmark.content", "stillmark.record"
EVALUATION_TAG, DATA_TAG = "stillmark.evaluation", "stillmark.data"
STAGE_TAG, REASON_TAG = "stillmark.stage", "stillmark.reason"
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
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        home.mkdir(parents=True, exist_ok=True)
        # Four processes that make a new SQLite store at once crash; one at a time do not.
        with FileLock(home / "mlflow.lock", timeout=120), clear_errors(uri):
            _refuse_locked(uri)
            self.client = MlflowClient(uri, uri)
            self.client.search_experiments(max_results=1)

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

    def start(self, project: str, stage: str, key: str, data: DataRef) -> str:
        """Opens a run; returns its id."""
        tags = {KEY_TAG: key, STAGE_TAG: stage, "mlflow.runName": stage}
        run = self.client.create_run(self.experiment(project), tags=tags)
        dataset = Dataset(
            name=DATASET,
            digest=data.prepared,
            source_type="dvc",
            source=json.dumps({"raw": data.raw, "manifest": data.manifest}),
        )
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [])])
        return run.info.run_id

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
        now = int(time.time() * 1000)
        about = {"model_id": model.model_id} if model else {}
        if data:
            about |= {"dataset_name": DATASET, "dataset_digest": data.prepared}
        batch = [Metric(name, value, now, step, **about) for name, value in metrics.items()]
        self.client.log_batch(run_id, metrics=batch)

    def fail(self, run_id: str, reason: str) -> None:
        """Ends a run that did not finish, with the reason."""
        self.client.set_tag(run_id, REASON_TAG, reason[:LONGEST_PARAM])
        self.client.set_terminated(run_id, "FAILED")

    def finish(self, run_id: str, ref: ModelRef) -> None:
        """Ends a run whose results are complete: from here on it is found by its key."""
        tags = {REF_TAG: ref.model_dump_json(), RECORD_TAG: ref.record, CONTENT_TAG: ref.content}
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.client.set_terminated(run_id, "FINISHED")

    def end(self, run_id: str) -> None:
        """Ends a run that is no stage's, and so is never found by a key."""
        self.client.set_terminated(run_id, "FINISHED")

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
        """Uploads a model's files and its record, and marks it READY."""
        self.client.log_model_artifacts(model_id, str(folder))
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
            return self._download(f"models:/{model_id}")
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"the files of model {model_id} cannot be fetched: {_first_line(error)}"
            ) from None

    def _download(self, uri: str) -> Path:
        return Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=self.uri))

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
        found = self.client.search_model_versions(f"name = '{name}'")
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

    def ref_of(self, version: ModelVersion) -> ModelRef:
        """The reference that a version was registered with.

        Raises:
            RegistryError: It was not registered by Stillmark.
        """
        text = version.tags.get(REF_TAG)
        if text is None:
            raise RegistryError(
                f"{version.name} version {version.version} was not registered by Stillmark"
            )
        return ModelRef.model_validate_json(text)

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

    def last_runs(self, project: str, count: int) -> list[Run]:
        """The newest runs of a project."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            return []
        return list(
            self.client.search_runs(
                [experiment.experiment_id],
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
