"""How a store is opened: the one writer of a new database, and the first word with a server."""

import sqlite3
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_BACKOFF_JITTER,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER,
)
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from tasks.database import reach
from tasks.errors import SetupError
from tasks.tracking.failures import clear_errors

# Internal error, bad gateway, unavailable, gateway timeout (RFC 9110): a proxy of nobody.
ABSENT = frozenset({500, 502, 503, 504})
# Three tries of 4 seconds, with a pause of 2 before the last. What the user set holds instead.
FIRST_CONTACT = {
    "max_retries": (MLFLOW_HTTP_REQUEST_MAX_RETRIES, 2),
    "timeout": (MLFLOW_HTTP_REQUEST_TIMEOUT, 4),
    "backoff_factor": (MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR, 1),
    "backoff_jitter": (MLFLOW_HTTP_REQUEST_BACKOFF_JITTER, 0),
    "respect_retry_after_header": (MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER, False),
}


def opened(uri: str, home: Path) -> MlflowClient:
    """A client of the store at an address, which from here on is MLflow's own default too.

    Args:
        uri: Tracking and registry address.
        home: Folder with the lock that the store is opened under.

    Raises:
        SetupError: The store does not answer, or its database is locked.
    """
    home.mkdir(parents=True, exist_ok=True)
    reach("MLflow's store", uri)
    if urlsplit(uri).scheme in {"http", "https"}:
        with clear_errors(uri):
            _first_contact(uri)
    # Four processes that make a new SQLite store at once crash; one at a time do not.
    with clear_errors(uri), FileLock(home / "mlflow.lock", timeout=120):
        _refuse_locked(uri)
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return client


@cache  # an answer is remembered, a failure is not
def _first_contact(uri: str) -> None:
    """Asks a server, once per process, whether it is there; any answer will do.

    MLflow's own retries take four minutes. That is right for a server that restarts while work
    runs; one that has never answered this process is more likely a wrong address.

    Raises:
        MlflowException: Nobody answered within 14 seconds.
    """
    limits = {
        name: ours for name, (variable, ours) in FIRST_CONTACT.items() if not variable.is_set()
    }
    http_request(get_default_host_creds(uri), "/health", "GET", retry_codes=ABSENT, **limits)


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
