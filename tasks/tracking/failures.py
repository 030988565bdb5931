"""What MLflow and its database raise, in one line of ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from tasks.errors import RegistryError, SetupError


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Says in one line, without a password, that a store is locked or does not answer."""
    try:
        yield
    except (MlflowException, OperationalError, sqlite3.Error, OSError) as error:
        said = f"MLflow's store {uri} does not answer: {first_line(error)}"
        raise SetupError(_without_password(said, uri)) from error


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Says in one line what the store did not delete."""
    try:
        yield
    except (MlflowException, OperationalError) as error:
        raise RegistryError(f"{what} cannot be deleted: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error says first, at most 200 characters; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _without_password(said: str, uri: str) -> str:
    parts = urlsplit(uri)
    secrets = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    for secret in filter(None, [*secrets, *map(unquote, secrets)]):
        said = said.replace(secret, "***")
    return said
