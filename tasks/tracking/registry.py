"""The registry: versions of models, one per content, and the aliases that point at them."""

import time
from collections.abc import Iterator
from pathlib import Path

from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from tasks.errors import RegistryError
from tasks.refs import ModelRef, VersionRef
from tasks.tracking.failures import first_line
from tasks.tracking.pyfunc import payload_of
from tasks.tracking.results import Results
from tasks.tracking.store import every
from tasks.tracking.tags import CONTENT_TAG, EVALUATION_TAG, RECORD_TAG, REF_TAG

VERSION_TRIES, VERSION_WAIT_SECONDS = 20, 0.05


class Registry(Results):
    """The registered versions of a store's models."""

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
                        f"{ref.role} cannot be registered as '{name}': {first_line(error)}"
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

    def registered(self) -> list[str]:
        """Names of all registered models."""
        names: list[str] = []
        token: str | None = None
        while token is None or token:
            page = self.client.search_registered_models(page_token=token)
            names += [model.name for model in page]
            token = page.token or ""
        return sorted(names)

    def versions(self, name: str) -> list[ModelVersion]:
        """Every version of a registered model, newest first."""
        found = every(self.client.search_model_versions, f"name = '{name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def all_versions(self) -> Iterator[ModelVersion]:
        """Every version of every registered model."""
        yield from every(self.client.search_model_versions)

    def versions_of(self, run_id: str) -> list[ModelVersion]:
        """Every registered version that a run's model was registered as, oldest first."""
        found = every(self.client.search_model_versions, f"run_id = '{run_id}'")
        return sorted(found, key=lambda version: (version.name, int(version.version)))

    def registered_as(self, record: str) -> list[ModelVersion]:
        """Every registered version with a record, by name and number."""
        found = self.client.search_model_versions(f"tags.`{RECORD_TAG}` = '{record}'")
        return sorted(found, key=lambda version: (version.name, int(version.version)))

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

    def noted(self, name: str, number: int) -> ModelVersion:
        """What MLflow notes of a version, whoever registered it.

        Raises:
            RegistryError: There is none of that number.
        """
        try:
            return self.client.get_model_version(name, str(number))
        except MlflowException:
            raise RegistryError(f"'{name}' has no version {number}") from None

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

    def sibling(self, version: VersionRef, name: str) -> VersionRef | None:
        """The version of another model that was evaluated together with a version, or None."""
        tags = self.client.get_model_version(version.name, str(version.version)).tags
        together = tags.get(EVALUATION_TAG)
        for found in self.versions(name) if together else []:
            if found.tags.get(EVALUATION_TAG) == together:
                return VersionRef(name=name, version=int(found.version), model=self.ref_of(found))
        return None

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

    def tags(self, version: VersionRef) -> dict[str, str]:
        """All tags of a version."""
        return dict(self.client.get_model_version(version.name, str(version.version)).tags)

    def tag_version(self, version: VersionRef, tags: dict[str, str]) -> None:
        """Adds tags to a version."""
        for name, value in tags.items():
            self.client.set_model_version_tag(version.name, str(version.version), name, value)

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

    def aliases(self) -> dict[tuple[str, str], int]:
        """Number of the version that holds an alias, by model and alias, of all models."""
        return {
            (model.name, alias): int(number)
            for model in every(self.client.search_registered_models)
            for alias, number in model.aliases.items()
        }

    def set_alias(self, version: VersionRef, alias: str) -> None:
        """Points an alias at a version."""
        self.client.set_registered_model_alias(version.name, alias, str(version.version))
