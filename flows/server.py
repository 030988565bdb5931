"""Prefect's API for one command: a server that starts while Python still imports, and ends with it.

Prefect would start one itself, but only once everything is imported, and would leave it behind when
the command is killed.
"""

import asyncio
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from filelock import FileLock

from tasks.errors import SetupError
from tasks.settings import Settings

ADDRESS = "PREFECT_API_URL"
LOG_FILE = "server.log"
FIRST_ANSWER_SECONDS = 120.0  # the first start makes Prefect's database
STOP_SECONDS = 3.0
# As Prefect sets them for a server of one process: no page, only the services that a run needs.
TEMPORARY = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",  # done before, under a lock
}


def start_own_server(settings: Settings) -> None:
    """Has Prefect answered by a server of this process, unless PREFECT_API_URL names another.

    Has to come before Prefect is imported, which reads the address then. Connections wait in the
    socket until the server answers; nobody has to ask again.

    Raises:
        SetupError: The project's folder cannot be written.
    """
    if ADDRESS in os.environ or "prefect" in sys.modules:
        return
    home = settings.writable_home() / "prefect"
    home.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener, (home / LOG_FILE).open("wb") as log:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = _start(listener, log.fileno(), settings.root)
    os.environ[ADDRESS] = address
    atexit.register(_stop, process)  # before Prefect's own: so after them


def reach_api() -> None:
    """Waits for the Prefect server that PREFECT_API_URL names, if it does.

    Raises:
        SetupError: It does not answer.
    """
    address = os.environ.get(ADDRESS)
    if address is None:
        return
    try:
        with urllib.request.urlopen(  # noqa: S310 - the user's own address
            f"{address.rstrip('/')}/health", timeout=FIRST_ANSWER_SECONDS
        ):
            return
    except (OSError, ValueError) as error:
        raise SetupError(
            f"Prefect's server at {address} does not answer ({error}); start it, or correct or "
            f"unset {ADDRESS}. The project's own server writes .stillmark/prefect/{LOG_FILE}"
        ) from None


def _start(listener: socket.socket, log: int, root: Path) -> subprocess.Popen[bytes]:
    """The server, in a session of its own: Ctrl-C is for the command, which then ends it."""
    return subprocess.Popen(  # noqa: S603 - our own words and a number
        [sys.executable, "-m", "flows.server", str(listener.fileno())],
        cwd=root,
        env=os.environ | TEMPORARY | {"STILLMARK_PROJECT": str(root)},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Lets the server end; one that still makes its database finishes that first, on its own."""
    if process.stdin:
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)


def serve(listener: int) -> None:
    """Serves Prefect's API on a listening socket until the process that asked for it is gone."""
    import uvicorn  # noqa: PLC0415 - the command that starts the server has no use for it

    _upgrade_database()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        fd=listener,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )


def _upgrade_database() -> None:
    """One at a time: two that make the same database at once stumble over each other's tables."""
    from prefect.server.database import provide_database_interface  # noqa: PLC0415 - as above

    with FileLock(Settings().home / "prefect" / "database.lock"):
        asyncio.run(provide_database_interface().create_db())


def _end_with_parent() -> None:
    """The other end of standard input closes when the parent ends, however it ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(0)  # all that was told is in the database


if __name__ == "__main__":
    serve(int(sys.argv[1]))
