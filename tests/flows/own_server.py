"""A process that has a Prefect server of its own."""

import contextlib
import subprocess
import sys

WAIT = """
import os, sys
from flows.server import reach_api, start_own_server
from flows.services import Running
from tasks.settings import Settings
start_own_server(Settings())
assert "prefect" not in sys.modules
reach_api()
start_own_server(Settings())  # the same one
print(os.environ["PREFECT_API_URL"], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def waiting(project):
    """The process, which says the server's address, and ends when its standard input closes."""
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=project.root,
        env=project.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            process.kill()
