"""MLflow's server goes away while a stage trains, and comes back: nothing is lost."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tasks.settings import Settings
from tasks.stage import stage
from tasks.tracking import Tracking

AWAY_SECONDS = 8.0
STEPS = 60


class Line:
    """A TCP line to a server that can be cut and mended, at the same address."""

    def __init__(self, target):
        self.target, self.is_cut = target, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self):
        return self.listener.getsockname()[1]

    def cut(self):
        self.is_cut = True
        for one in self.open:
            one.close()
        self.open.clear()

    def mend(self):
        self.is_cut = False

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass  # it was cut
        finally:
            source.close()
            target.close()

    def close(self):
        self.listener.close()
        self.cut()


@pytest.fixture
def line(bench):
    """The line to a real MLflow server with the bench's store."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--backend-store-uri", bench.tracking.uri, "--workers", 1]
    command += ["--artifacts-destination", bench.root / ".stillmark" / "artifacts"]
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (bench.root / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = Line(port)
    try:
        until = time.monotonic() + 200
        while not answers(port):
            assert server.poll() is None, (bench.root / "server.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield found
    finally:
        found.close()
        os.killpg(server.pid, 15)
        server.wait(60)


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_training_goes_on_and_every_figure_arrives(line, bench, toy, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("STILLMARK_MLFLOW_URI", f"http://127.0.0.1:{line.port}")
    settings = Settings()
    trained = []

    def train(work, params):
        """Steps take no notice of the server; the line is cut for a while among them."""
        began = time.monotonic()
        line.cut()
        threading.Timer(AWAY_SECONDS, line.mend).start()
        for at in range(1, STEPS + 1):
            work.watch.progress(at, STEPS, {"loss": 1 / at})
        trained.append(time.monotonic() - began)
        (work.folder / "report.json").write_text("{}")
        return {}

    ref = stage("report", is_model=False)(train)._run(bench.run, toy.section(quality="good"))
    assert trained[0] < AWAY_SECONDS / 2  # nobody waited
    tracking = Tracking(settings.tracking_uri, settings.home)
    history = tracking.client.get_metric_history(ref.run_id, "loss")
    assert sorted(one.step for one in history) == list(range(1, STEPS + 1))
    assert tracking.client.get_run(ref.run_id).info.status == "FINISHED"
    assert (Path(tracking.fetch(ref).folder) / "record.json").exists()
