"""What stages leave behind: logged models and reports, with their files and records."""

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow.artifacts
import mlflow.pyfunc
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from tasks.errors import ArtifactError, RegistryError
from tasks.lineage.record import FILE_NAME as RECORD_FILE
from tasks.lineage.record import Record
from tasks.refs import ModelRef
from tasks.tracking.failures import first_line
from tasks.tracking.store import Store, every
from tasks.tracking.tags import KEY_TAG, RECORD_TAG, REF_TAG
from tasks.tracking.values import Stored


class Results(Store):
    """The models and reports of a store: a finished one is found by its key, record or id."""

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
            raise ArtifactError(f"{whose} cannot be fetched: {first_line(error)}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ArtifactError(f"{whose} is {found}, the registry says {digest}")
        try:
            return Record.parse(content)
        except ArtifactError as error:
            raise ArtifactError(f"{whose} is {error}") from None

    def report(self, run_id: str) -> Path:
        """Folder with the files that were uploaded to a run.

        Raises:
            ArtifactError: The run or its files are gone.
        """
        try:
            return self._download(self.client.get_run(run_id).info.artifact_uri or "")
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"the files of run {run_id} cannot be fetched: {first_line(error)}"
            ) from None

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

    def attached(self, run_id: str, name: str) -> Path | None:
        """A file that was uploaded to a run, or None where it was not.

        Raises:
            ArtifactError: The run is gone.
        """
        self.about_run(run_id)
        if name not in {found.path for found in self.client.list_artifacts(run_id)}:
            return None
        return self.report(run_id) / name

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

    def _folder(self, model_id: str) -> Path:
        try:
            # Not models:/…, which asks whichever store this process named last.
            return self._download(self.client.get_logged_model(model_id).artifact_location)
        except (MlflowException, OSError) as error:
            raise ArtifactError(
                f"the files of model {model_id} cannot be fetched: {first_line(error)}"
            ) from None

    def _download(self, uri: str) -> Path:
        return Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=self.uri))

    def models(self, project: str) -> Iterator[LoggedModel]:
        """Every logged model of a project, those without files too."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is not None:
            yield from every(self.client.search_logged_models, [experiment.experiment_id])

    def load_pyfunc(self, uri: str) -> PyFuncModel:
        """A stored model that predicts on raw rows.

        Raises:
            RegistryError: There is no such model, or it does not predict.
        """
        try:
            with _no_bytecode():
                return mlflow.pyfunc.load_model(uri)
        except MlflowException as error:
            raise RegistryError(f"{uri} cannot be loaded: {error.message}") from None


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Has Python write no bytecode beside code that it imports from where models are stored."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _checked(folder: Path, digest: str) -> Record:
    record = Record.read(folder)
    if record.digest != digest:
        raise ArtifactError(f"{folder}: the record is {record.digest}, the registry says {digest}")
    record.check(folder)
    return record
