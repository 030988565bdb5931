"""What MLflow and its database raise, in one line of ours."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from tasks.errors import RegistryError, SetupError


@contextmanager
def clear_errors(uri: str) -> Iterator[None]:
    """Says in one line that a store is locked or does not answer."""
    try:
        yield
    except (MlflowException, OperationalError, sqlite3.Error, OSError) as error:
        raise SetupError(f"MLflow's store {uri} does not answer: {first_line(error)}") from error


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
