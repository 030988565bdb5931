"""A team's services on this machine: MLflow and Prefect on PostgreSQL, and an S3 service."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import boto3

from tests.conftest import free_port
from tests.postgres import Server

BUCKET = "stillmark"
START_SECONDS = 180


@dataclass(frozen=True)
class Team:
    """Addresses, as a member of the team sets them."""

    environment: dict


@contextlib.contextmanager
def running(command, address, log, **environment):
    """A service until the end of the block, from when it answers."""
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [str(word) for word in command],
            env=os.environ | environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        ) as process,
    ):
        try:
            until = time.monotonic() + START_SECONDS
            while not answers(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str, port=None):
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("mlflow"), "server", "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", folder / "artifacts"]
    command += ["--host", "127.0.0.1", "--port", port]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, f"{address}/health", folder / "mlflow.log", **quiet):
        yield address


@contextlib.contextmanager
def prefect_server(folder: Path, store: str):
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    command = [Path(sys.executable).with_name("prefect"), "server", "start"]
    command += ["--host", "127.0.0.1", "--port", port]
    places = {"PREFECT_HOME": str(folder), "PREFECT_API_DATABASE_CONNECTION_URL": store}
    with running(command, f"{address}/health", folder / "prefect.log", **places):
        yield address


@contextlib.contextmanager
def s3_service(folder: Path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", port]
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with running(command, address, folder / "s3.log"):
        names = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **names)
        client.create_bucket(Bucket=BUCKET)
        yield (
            client,
            {
                **keys,
                "AWS_DEFAULT_REGION": "us-east-1",
                "STILLMARK_DVC_REMOTE": f"s3://{BUCKET}/data",
                "STILLMARK_DVC_ENDPOINT": address,
            },
        )


@contextlib.contextmanager
def services(folder: Path, postgres: Server):
    """All of them."""
    with contextlib.ExitStack() as stack:
        mlflow = postgres.database().replace("postgresql:", "postgresql+psycopg2:")
        prefect = postgres.database().replace("postgresql:", "postgresql+asyncpg:")
        enter = stack.enter_context
        bucket, s3 = enter(s3_service(folder))
        environment = {
            **s3,
            "STILLMARK_MLFLOW_URI": enter(mlflow_server(folder, mlflow)),
            "STILLMARK_PREFECT_URI": enter(prefect_server(folder, prefect)),
            "STILLMARK_LEDGER_URI": postgres.database(),
        }
        yield Team(environment), bucket
