"""What gc takes away: versions, runs and models that nobody needs, and their files."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from tasks.errors import ArtifactError
from tasks.tracking.failures import first_line, refused
from tasks.tracking.store import Store
from tasks.tracking.tags import COLLECTED_TAG, CONTENT_TAG, EVALUATION_TAG, RECORD_TAG, REF_TAG


class Disposal(Store):
    """What a store can be told to forget."""

    def disown(self, run: Run, places: list[str]) -> None:
        """Makes a run no result any more, and notes where its files lie, for whoever deletes them.

        Args:
            run: The run, as it was read.
            places: Addresses of its files and of its models'.

        Raises:
            RegistryError: The store refuses it.
        """
        run_id = run.info.run_id
        with refused(f"run {run_id}"):
            if run.info.lifecycle_stage == "deleted":
                self.client.restore_run(run_id)  # MLflow lets nobody change tags of a deleted run
            self.client.set_tag(run_id, COLLECTED_TAG, json.dumps(places))
            for name in (REF_TAG, RECORD_TAG, CONTENT_TAG):
                if name in run.data.tags:
                    self.client.delete_tag(run_id, name)

    def drop_version(self, name: str, number: int) -> None:
        """Takes a version out of the registry; its number is never given again.

        Raises:
            RegistryError: The store refuses it.
        """
        with refused(f"{name} version {number}"):
            self.client.delete_model_version(name, str(number))

    def untag_evaluation(self, name: str, number: int) -> None:
        """Lets a version name no evaluation any more.

        Raises:
            RegistryError: The store refuses it.
        """
        with refused(f"{name} version {number}"):
            self.client.delete_model_version_tag(name, str(number), EVALUATION_TAG)

    def drop_model(self, model_id: str) -> None:
        """Deletes a logged model's row, not its files; for good where the store can.

        Raises:
            RegistryError: The store refuses it.
        """
        with refused(f"model {model_id}"):
            self.client.delete_logged_model(model_id)
            self._purge("_hard_delete_logged_model", model_id)

    def drop_run(self, run_id: str) -> None:
        """Deletes a run's rows, not its files; for good where the store can.

        Raises:
            RegistryError: The store refuses it.
        """
        with refused(f"run {run_id}"):
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
            raise ArtifactError(f"{place} cannot be listed: {first_line(error)}") from None

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
            raise ArtifactError(f"{place} cannot be deleted: {first_line(error)}") from None


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
