"""Prefect's API for one command: a server that starts while Python still imports, and ends with it.

Prefect would start one itself, but only once everything is imported, and would leave it behind when
the command is killed. While `stillmark up` runs, commands ask its server. The server with a page
and a scheduler, which that one starts, is here too.
"""

import asyncio
import atexit
import contextlib
import logging
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
from tasks.errors import SetupError, StillmarkError
from tasks.settings import Settings

ADDRESS = PREFECT_ADDRESS
LOG_FILE = "server.log"
FIRST_ANSWER_SECONDS = 120.0  # the first start makes Prefect's database
LOOK_SECONDS = 2.0  # that a server which runs already may take to answer
STOP_SECONDS = 3.0
RESTARTS = 5  # that one command may need
CLOSED = -1  # number of a socket that is
# As Prefect sets them for a server of one process: no page, only the services that a run needs.
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
SERVER = {
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",  # done before, under a lock
}

logger = logging.getLogger("stillmark")


class OwnServer:
    """The server of this command, in a session of its own: Ctrl-C is for the command.

    The command keeps the listening socket, too. Where the server is killed, what wants to connect
    waits there until the next one, on the same database, takes over.

    Args:
        settings: Of the project.
        home: Where it keeps its files.

    Attributes:
        address: Of its API.
    """

    def __init__(self, settings: Settings, home: Path) -> None:
        self._root, self._log = settings.root, home / LOG_FILE
        self._log.unlink(missing_ok=True)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address = f"http://{LOOPBACK}:{self._listener.getsockname()[1]}/api"
        self._lock, self._is_ending = threading.Lock(), False
        self._process = self._start()
        threading.Thread(target=self._keep, name="prefect-server", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own words and a number
                [sys.executable, "-m", "flows.server", str(self._listener.fileno())],
                cwd=self._root,
                env=os.environ | TEMPORARY | SERVER | {"STILLMARK_PROJECT": str(self._root)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[self._listener.fileno()],
                start_new_session=True,
            )

    def _keep(self) -> None:
        """Starts it again where a signal ended it; where it gave up, the next one would as well."""
        for again in (*[True] * RESTARTS, False):
            code = self._process.wait()
            with self._lock:
                if code >= 0 or self._is_ending or not again:
                    break
                name = signal.Signals(-code).name
                logger.warning("Prefect's server was ended by %s; starting it again", name)
                _close(self._process)
                self._process = self._start()
        self._listener.close()  # who waits there is refused

    @property
    def goes_on(self) -> bool:
        """Whether who connects is answered, now or by the next one."""
        return self._listener.fileno() != CLOSED

    def why_ended(self) -> str | None:
        """The last that it said, where it gave up; None while it goes on, or was ended."""
        if self.goes_on or not self._process.poll():
            return None
        said = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return said.splitlines()[-1] if said else f"exit code {self._process.returncode}"

    def stop(self) -> None:
        """Lets it end; one that still makes its database finishes that first, on its own."""
        with self._lock:
            self._is_ending = True
        _close(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)


own: list[OwnServer] = []
"""The one of this process, if it has started one."""


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
    server = OwnServer(settings, home)
    own.append(server)
    os.environ[ADDRESS] = server.address
    atexit.register(server.stop)  # before Prefect's own: so after them


def reach_api() -> None:
    """Waits for the Prefect server that PREFECT_API_URL names, if it does.

    Raises:
        SetupError: It does not answer.
    """
    address = os.environ.get(ADDRESS)
    while address is not None:
        try:
            with urllib.request.urlopen(  # noqa: S310 - the user's own address
                f"{address.rstrip('/')}/health", timeout=FIRST_ANSWER_SECONDS
            ):
                return
        except (OSError, ValueError) as error:
            _refuse(address, error)


def _refuse(address: str, error: Exception) -> None:
    """Says why nobody answers; returns where the next server of this process is on its way."""
    is_cut = isinstance(getattr(error, "reason", error), ConnectionError)
    for server in (one for one in own if one.address == address):
        if why := server.why_ended():
            raise SetupError(f"Prefect's server ended at its start: {why}") from None
        if is_cut and server.goes_on:
            return
    raise SetupError(
        f"Prefect's server at {address} does not answer ({error}); start it, or correct or "
        f"unset {ADDRESS}. The project's own server writes .stillmark/prefect/{LOG_FILE}"
    ) from None


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()


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
    """One at a time: two that make the same database at once stumble over each other's tables.

    Raises:
        SetupError: The database cannot be used.
    """
    # The command that starts the server has no use for any of these.
    from asyncpg import InterfaceError, PostgresError  # noqa: PLC0415
    from prefect.server.database import provide_database_interface  # noqa: PLC0415
    from sqlalchemy.engine import make_url  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from tasks.database import trouble  # noqa: PLC0415

    interface = provide_database_interface()
    try:
        with FileLock(Settings().home / "prefect" / "database.lock"):
            asyncio.run(interface.create_db())
    except (OSError, SQLAlchemyError, PostgresError, InterfaceError) as error:
        url = make_url(interface.database_config.connection_url)
        raise SetupError(trouble("Prefect's database", url, error)) from None


def _end_with_parent() -> None:
    """The other end of standard input closes when the parent ends, however it ends."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(0)  # all that was told is in the database


def main(words: list[str]) -> int:
    """Serves, until it is ended; an error of ours is its line and 2."""
    try:
        if words[0] == "page":
            serve_page(int(words[1]))
        else:
            serve(int(words[0]))
    except StillmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
