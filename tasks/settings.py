"""Where things are: the project's folder and addresses. Telemetry stays off."""

import contextlib
import os
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import SetupError

PARAMS_FILE = "params.yaml"
LAST_PORT = 65535

QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    # 2 + 4 + … + 64 seconds: a server may be away for two minutes; MLflow's client waits as long.
    "PREFECT_CLIENT_MAX_RETRIES": "6",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Settings(BaseSettings):
    """Addresses, each from an environment variable `STILLMARK_<NAME>`.

    Attributes:
        project: The project's folder; by default the nearest one above the working directory that
            holds params.yaml.
        mlflow_uri: MLflow's tracking and registry address; by default `mlflow.db` in the project,
            which is where plain MLflow code run there looks too.
        ledger_uri: The ledger's database; by default `ledger.db` in the project. A team shares a
            PostgreSQL database (`postgresql://…`).
        prefect_uri: Prefect's API (`http://…/api`); by default the server of `stillmark up`, or one
            that each command starts.
        dvc_remote: Remote for the data versions (`s3://bucket/folder`, or a folder), in place of
            the repository's default one: retrainings push to it, and pull what is missing.
        dvc_endpoint: Address of the S3 service, where it is not Amazon's.
        signing_key: File with a private key (PEM); what is promoted is signed with it.
        signing_password: Of that key, where it is encrypted.
        webhook: Address that promotions, rejections and rollbacks are posted to; none by default.
        prefect_port: Where `stillmark up` serves Prefect, on loopback.
        mlflow_port: Where it serves MLflow.
        checkpoint_seconds: Time between two checkpoints of a training loop: what a kill can cost.
        litert_python: Python of an environment that holds LiteRT's converter, see docs/export.md.
    """

    model_config = SettingsConfigDict(env_prefix="STILLMARK_", frozen=True, extra="ignore")

    project: Path = Field(default_factory=lambda: find_project(Path.cwd()))
    mlflow_uri: str | None = None
    ledger_uri: SecretStr | None = None
    prefect_uri: str | None = None
    dvc_remote: str | None = None
    dvc_endpoint: str | None = None
    signing_key: Path | None = None
    signing_password: SecretStr | None = None
    webhook: SecretStr | None = None
    checkpoint_seconds: float = Field(default=20.0, ge=0)
    litert_python: Path | None = None
    prefect_port: int = 4200
    mlflow_port: int = 5000

    @field_validator("prefect_port", "mlflow_port", mode="before")
    @classmethod
    def _port(cls, value: object, info: ValidationInfo) -> object:
        """A mistake in the environment is one line too, which pydantic's own error is not."""
        if not str(value).isdecimal() or not 0 < int(str(value)) <= LAST_PORT:
            raise SetupError(
                f"STILLMARK_{str(info.field_name).upper()} is '{value}'; expected a port, 1 to "
                f"{LAST_PORT}"
            )
        return value

    @cached_property
    def root(self) -> Path:
        """The project's folder, absolute."""
        return self.project.resolve()

    @property
    def home(self) -> Path:
        """What the project keeps for itself: artifacts, checkpoints, Prefect's database, locks."""
        return self.root / ".stillmark"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address."""
        return self.mlflow_uri or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def ledger_address(self) -> str:
        """The ledger's address, password included."""
        if self.ledger_uri is not None:
            return self.ledger_uri.get_secret_value()
        return f"sqlite:///{self.root / 'ledger.db'}"

    def writable_home(self) -> Path:
        """The home folder, made where it is missing.

        Raises:
            SetupError: It cannot be written.
        """
        probe = self.home / f".write-{os.getpid()}"
        try:
            self.home.mkdir(exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SetupError(
                f"cannot write to {self.home} ({error.strerror}); make it writable for this user"
            ) from None
        return self.home


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds params.yaml.

    Raises:
        SetupError: There is none.
    """
    for folder in (start, *start.parents):
        if (folder / PARAMS_FILE).is_file():
            return folder
    raise SetupError(
        f"no {PARAMS_FILE} in {start} or above it; run this inside a Stillmark project"
    )


def isolate() -> None:
    """Turns telemetry off and keeps Prefect's files inside the project.

    Has to run before Prefect or MLflow is imported: both read the environment then. What the user
    has set stays as it is.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        settings = Settings()
        home = settings.home
    except SetupError:
        return  # the command that needs a project says so
    if settings.prefect_uri is not None:
        os.environ.setdefault("PREFECT_API_URL", settings.prefect_uri)
    with contextlib.suppress(OSError):  # as above; Prefect wants its folder while it is imported
        home.mkdir(exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(home / "dvc"))
