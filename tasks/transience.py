"""Which failures pass by themselves: a server that restarts, a database that is busy."""

import re
from collections.abc import Iterator
from typing import Any

from tasks.errors import SetupError, StillmarkError

# Request timeout, too many requests, bad gateway, unavailable, gateway timeout (RFC 9110, 6585).
STATUSES = frozenset({408, 429, 502, 503, 504})
# What MLflow says where the answer was one of these, or where its own retries ran out.
CODES = frozenset({"TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"})
# Errors of httpx, urllib3 and requests that are no ConnectionError or TimeoutError of Python's.
NAMES = frozenset(
    {
        "ConnectError", "ConnectTimeout", "ConnectionError", "NewConnectionError", "PoolTimeout",
        "ProtocolError", "ReadError", "ReadTimeout", "RemoteProtocolError", "Timeout", "WriteError",
        "WriteTimeout",
    }
)  # fmt: skip
BUSY = re.compile(r"database (table )?is (locked|busy)", re.IGNORECASE)
LOST = re.compile(
    r"could not connect|connection refused|server closed the connection|"
    r"terminating connection|connection .* timed out|starting up|shutting down",
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later.

    An error of ours never does, whatever caused it, except that a service did not answer.
    """
    if isinstance(error, StillmarkError) and not isinstance(error, SetupError):
        return False
    return any(_passes(one) for one in _chain(error))


def worth_another_try(_task: object, _task_run: object, state: Any) -> bool:  # noqa: ANN401 - Prefect's State
    """Prefect's `retry_condition_fn`: try again what is transient, and nothing else."""
    return isinstance(state.data, BaseException) and is_transient(state.data)


RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": [2, 8, 30, 60],
    "retry_condition_fn": worth_another_try,
}
"""For `@task(…)`: five tries over 100 seconds; a stage's checkpoint makes each one cheap."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        # Libraries often raise their own error while they handle the true one.
        hidden = found.__suppress_context__
        found = found.__cause__ or (None if hidden else found.__context__)


def _passes(error: BaseException) -> bool:
    if isinstance(error, StillmarkError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ in NAMES:
        return True
    text = str(error)
    # SQLite's, psycopg's and SQLAlchemy's are called so; MLflow passes their name on.
    if type(error).__name__ == "OperationalError" or "OperationalError" in text:
        return bool(BUSY.search(text) or LOST.search(text))
    response = getattr(error, "response", None)
    return (
        getattr(response, "status_code", None) in STATUSES
        or getattr(error, "error_code", None) in CODES
    )
