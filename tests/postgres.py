"""A real PostgreSQL for the tests: the installed server in a temporary folder, gone afterwards."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

USER, PASSWORD = "stillmark", "open-sesame"
NEEDED = ("initdb", "postgres", "setpriv")
FRESH = count()


@dataclass(frozen=True)
class Server:
    """A running server, reached through a socket in its own folder alone."""

    folder: Path

    def url(self, database="postgres", password=PASSWORD):
        return f"postgresql://{USER}:{password}@/{database}?host={self.folder}"

    def connect(self, database="postgres"):
        import psycopg2  # noqa: PLC0415 - an extra that may be missing

        return psycopg2.connect(
            dbname=database, user=USER, password=PASSWORD, host=str(self.folder)
        )

    def database(self):
        """Address of a new, empty database."""
        name = f"fresh_{next(FRESH)}"
        with contextlib.closing(self.connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def is_ready(self):
        import psycopg2  # noqa: PLC0415

        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True


def program(name):
    """Where a program lies: Debian keeps its server's off PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


def missing():
    """Why no server can be started here, or None."""
    absent = [name for name in NEEDED if program(name) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install postgresql util-linux"
    if find_spec("psycopg2") is None:
        return "psycopg2 is not installed: pip install psycopg2-binary"
    return None


@contextlib.contextmanager
def server():
    """Starts a server; it ends with the block, and with this process if that is killed."""
    folder = Path(tempfile.mkdtemp(prefix="stillmark-postgres-"))
    # The server refuses to run as root.
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    own = ["setpriv", "--pdeathsig=INT", *user]
    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        with _started(own, folder) as process:
            found = Server(folder)
            until = time.monotonic() + 60
            while not found.is_ready():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.05)
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(own, folder):
    place, password = folder / "data", folder / "password"
    make = [*own, program("initdb"), "-D", place, "-U", USER, "--pwfile", password]
    make += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True, text=True)
    options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*own, program("postgres"), "-D", place, *words],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()  # would wait for clients
        process.send_signal(2)  # does not
        process.wait(30)


@pytest.fixture(scope="session")
def postgres():
    """The server, one per test run."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with server() as running:
        yield running


@pytest.fixture
def postgres_url(postgres):
    """Address of a new, empty database."""
    return postgres.database()
