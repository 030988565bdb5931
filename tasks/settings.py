"""Where things are: the project's folder and addresses. Telemetry stays off."""

import contextlib
import os
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import SetupError

PARAMS_FILE = "params.yaml"

QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "WARNING",
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
        signing_key: File with a private key (PEM); what is promoted is signed with it.
        signing_password: Of that key, where it is encrypted.
        webhook: Address that promotions, rejections and rollbacks are posted to; none by default.
        litert_python: Python of an environment that holds LiteRT's converter, see docs/export.md.
    """

    model_config = SettingsConfigDict(env_prefix="STILLMARK_", frozen=True, extra="ignore")

    project: Path = Field(default_factory=lambda: find_project(Path.cwd()))
    mlflow_uri: str | None = None
    ledger_uri: SecretStr | None = None
    signing_key: Path | None = None
    signing_password: SecretStr | None = None
    webhook: SecretStr | None = None
    litert_python: Path | None = None

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
        home = Settings().home
    except SetupError:
        return  # the command that needs a project says so
    with contextlib.suppress(OSError):  # as above; Prefect wants its folder while it is imported
        home.mkdir(exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(home / "dvc"))
