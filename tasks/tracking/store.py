"""One MLflow store and what everybody asks of it: its experiments, one run, one model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from tasks.errors import ArtifactError
from tasks.tracking.failures import first_line
from tasks.tracking.opening import opened


class Store:
    """One MLflow store.

    Args:
        uri: Tracking and registry address.
        home: Where a local store keeps its artifacts.

    Raises:
        SetupError: The store does not answer, or its database is locked.
    """

    def __init__(self, uri: str, home: Path) -> None:
        self.uri, self.home = uri, home
        self.client = opened(uri, home)

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

    def place_of(self, project: str) -> str | None:
        """Where a project's artifacts lie, or None of a project that never ran."""
        experiment = self.client.get_experiment_by_name(project)
        return None if experiment is None else experiment.artifact_location

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

    def about_model(self, model_id: str) -> LoggedModel:
        """What MLflow notes of a stored model: its run, its role, its tags.

        Raises:
            ArtifactError: It was deleted.
        """
        try:
            return self.client.get_logged_model(model_id)
        except MlflowException as error:
            raise ArtifactError(f"model {model_id} is gone: {first_line(error)}") from None

    def about_run(self, run_id: str) -> Run:
        """What MLflow notes of a run: when it ran, its tags, where its files lie.

        Raises:
            ArtifactError: It was deleted.
        """
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            raise ArtifactError(f"run {run_id} is gone: {first_line(error)}") from None

    def run_tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run.

        Raises:
            ArtifactError: It was deleted.
        """
        return dict(self.about_run(run_id).data.tags)


def every(search: Callable[..., PagedList[Any]], *words: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - MLflow's
    """What a search of MLflow's finds, page by page."""
    token: str | None = None
    while token is None or token:
        page = search(*words, page_token=token, **options)
        yield from page
        token = page.token or ""
