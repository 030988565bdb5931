"""Stores that are locked, are something else, are far away or are nowhere."""

import json
import socket
import sqlite3
import threading
import time
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
from filelock import FileLock

from tasks.errors import SetupError
from tasks.tracking import Tracking
from tests.conftest import free_port


class Server(ThreadingHTTPServer):
    """Answers what a store is asked when it is opened; hangs up on as many calls as it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.hang_up, self.status, self.paths = 0, 200, []


class Handler(BaseHTTPRequestHandler):
    """One call."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        if self.server.hang_up:
            self.server.hang_up -= 1
            return
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps({}).encode())

    do_GET = do_POST = answer  # noqa: N815 - the standard library's names

    def log_message(self, *_):
        """Nobody reads it."""


@pytest.fixture
def at_once(monkeypatch):
    """No pause between tries."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.fixture
def server():
    """A server that is there; MLflow's own default is as before afterwards."""
    default = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    with Server() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()
    mlflow.set_tracking_uri(default[0])
    mlflow.set_registry_uri(default[1])


@pytest.fixture(params=["silent", "swallowing"])
def mute(request):
    """A host that takes connections and says nothing, or does not even take them."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        if request.param == "silent":
            listener.listen(64)
        else:
            stack.enter_context(socket.create_connection(address))  # which fills the queue
        yield f"http://127.0.0.1:{address[1]}"


def refused(uri, home):
    """How many seconds it takes to be told in one line that nobody answers."""
    began = time.monotonic()
    with pytest.raises(SetupError, match=rf"^MLflow's store {uri} does not answer: ") as caught:
        Tracking(uri, home)
    assert len(str(caught.value).splitlines()) == 1
    return time.monotonic() - began


def test_a_store_that_someone_holds_is_named(bench, monkeypatch):
    quick = partial(sqlite3.connect, timeout=0.1)
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_options: quick(path))
    path = bench.root / "mlflow.db"
    holder = sqlite3.Connection(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SetupError, match=rf"{path} cannot be written \(database is locked\)"):
            Tracking(f"sqlite:///{path}", bench.root / ".stillmark")
    finally:
        holder.close()
    Tracking(f"sqlite:///{path}", bench.root / ".stillmark")


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(SetupError, match=r"mlflow.db is no MLflow database .* move it away"):
        Tracking(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes().startswith(b"this is no database")


def test_another_programs_database_is_one_line(tmp_path):
    path = tmp_path / "mlflow.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE experiments (other TEXT)")
    other.commit()
    other.close()
    with pytest.raises(SetupError, match=r"does not answer: ") as caught:
        Tracking(f"sqlite:///{path}", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_server_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError, match=r"http://127.0.0.1:9 does not answer") as caught:
        Tracking("http://127.0.0.1:9", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_password_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9") as caught:
        Tracking("http://ann:s%40cret@127.0.0.1:9", tmp_path)
    assert "cret" not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_port_that_nobody_listens_on_is_given_up_soon(tmp_path):
    assert 2 <= refused(f"http://127.0.0.1:{free_port()}", tmp_path) < 15


def test_a_host_that_says_nothing_is_given_up_after_three_tries(
    mute, at_once, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    assert 3 <= refused(mute, tmp_path) < 7  # MLflow's own eight tries take eight


@pytest.mark.slow
def test_a_host_that_says_nothing_is_given_up_within_seconds(mute, tmp_path):
    assert 14 <= refused(mute, tmp_path) < 20


def test_who_waits_for_a_host_keeps_nobody_from_opening_a_store(at_once, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        waiting = threading.Thread(target=refused, args=(uri, tmp_path))
        waiting.start()
        asked, _ = listener.accept()
        with asked, FileLock(tmp_path / "mlflow.lock", timeout=0):
            pass
    waiting.join()


def test_a_hiccup_is_no_absence(server, at_once, tmp_path):
    server.hang_up = 2
    Tracking(server.uri, tmp_path)
    assert server.paths[:3] == ["/health"] * 3
    assert "/health" not in server.paths[3:]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_proxy_of_nobody_is_given_up_soon(server, at_once, tmp_path, status):
    server.status = status
    refused(server.uri, tmp_path)
    assert server.paths == ["/health"] * 3


def test_a_server_that_has_answered_once_is_waited_for(server, at_once, tmp_path):
    """It restarts, most likely: MLflow's own seven retries."""
    Tracking(server.uri, tmp_path)
    server.paths.clear()
    server.hang_up = 7
    Tracking(server.uri, tmp_path)
    assert "/health" not in server.paths
    assert len(server.paths) == 8


def test_a_server_that_has_never_answered_is_not_waited_for_next_time_either(
    server, at_once, tmp_path
):
    server.hang_up = 7
    for tries in (3, 6):
        refused(server.uri, tmp_path)
        assert server.paths == ["/health"] * tries
    Tracking(server.uri, tmp_path)


def test_what_the_user_set_of_the_retries_holds(server, at_once, tmp_path, monkeypatch):
    server.hang_up = 5
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    refused(server.uri, tmp_path)
    assert len(server.paths) == 1
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    Tracking(server.uri, tmp_path)
    assert server.paths[:6] == ["/health"] * 6
