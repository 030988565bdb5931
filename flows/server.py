"""Prefect's API for one command: a server that starts while Python still imports, and ends with it.

Prefect would start one itself, but only once everything is imported, and would leave it behind when
the command is killed. While `stillmark up` runs, commands ask its server. The server with a page
and a scheduler, which that one starts, is here too.
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
from typing import Any

from filelock import FileLock

from flows.services import LOOPBACK, PREFECT_ADDRESS, Running, prefect_trouble
from tasks.errors import SetupError
from tasks.settings import Settings

ADDRESS = PREFECT_ADDRESS
LOG_FILE = "server.log"
FIRST_ANSWER_SECONDS = 120.0  # the first start makes Prefect's database
LOOK_SECONDS = 2.0  # that a server which runs already may take to answer
STOP_SECONDS = 3.0
# As Prefect sets them for a server of one process: no page, only the services that a run needs.
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
SERVER = {
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",  # done before, under a lock
}


def start_own_server(settings: Settings) -> None:
    """Has Prefect answered by the server of `stillmark up`, or else by one of this process.

    Where PREFECT_API_URL names another, that one answers. Has to come before Prefect is imported,
    which reads the address then. Connections wait in the socket until the server answers; nobody
    has to ask again.

    Raises:
        SetupError: The project's folder cannot be written.
    """
    if ADDRESS in os.environ or "prefect" in sys.modules:
        return
    running = Running.of(settings.home)
    if running is not None and prefect_trouble(running.prefect, LOOK_SECONDS) is None:
        os.environ[ADDRESS] = running.prefect
        return
    home = settings.writable_home() / "prefect"
    home.mkdir(exist_ok=True)
    with socket.create_server((LOOPBACK, 0)) as listener, (home / LOG_FILE).open("wb") as log:
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/api"
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
        env=os.environ | TEMPORARY | SERVER | {"STILLMARK_PROJECT": str(root)},
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
    _upgrade_database()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _serve(fd=listener, log_level="error")


def serve_page(port: int) -> None:
    """Serves Prefect's API, page and scheduler on loopback until SIGTERM."""
    _upgrade_database()
    _serve(host=LOOPBACK, port=port, log_level="warning")


def _serve(**place: Any) -> None:  # noqa: ANN401 - uvicorn's own
    import uvicorn  # noqa: PLC0415 - the command that starts the server has no use for it

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        lifespan="on",
        timeout_graceful_shutdown=1,
        **place,
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
    if sys.argv[1] == "page":
        serve_page(int(sys.argv[2]))
    else:
        serve(int(sys.argv[1]))
